"""The fingerprint of a model's weights: a hash over the first numbers of every tensor."""

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def weights_fingerprint(*modules: "nn.Module") -> str:
    """Return 16 hex digits that change with the weights of these modules."""
    return joint_fingerprint(map(first_numbers, modules))


def joint_fingerprint(parts: Iterable[bytes]) -> str:
    """Return the fingerprint of modules with these `first_numbers`."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def first_numbers(module: "nn.Module") -> bytes:
    """Return name, shape and the first numbers of each tensor of a module, in fp32."""
    return b"".join(
        f"{name}{tuple(tensor.shape)}".encode() + tensor.detach().flatten()[:64].float().cpu().numpy().tobytes()
        for name, tensor in module.state_dict().items()
    )
