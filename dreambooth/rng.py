"""Randomness as a function of (seed, stream, step).

Nothing depends on how the process got to a step, so a resumed run draws the same numbers as one that was never
interrupted, and a sample during training has no influence. All generators are on the CPU: the same noise on every
device.
"""

import hashlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Stream = Literal[
    "noise",
    "timesteps",
    "posterior",
    "crops",
    "order",
    "class_images",
    "samples",
    "generation",
    "probes",
    "starter",
    "rounding",
    "captions",
    "gauges",  # evaluation at fixed noise; the name is part of every seed
    "adapter",
]


def derived_seed(seed: int, stream: Stream, *position: int) -> int:
    """Return 63 bits for this stream at this position (a step, then an index within it)."""
    key = ":".join(map(str, (seed, stream, *position))).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator(seed: int, stream: Stream, *position: int) -> "torch.Generator":
    """Return a CPU generator for this stream at this position."""
    import torch

    return torch.Generator("cpu").manual_seed(derived_seed(seed, stream, *position))
