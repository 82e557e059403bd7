"""What could make a step faster on the CPU, each against the plain step, by turns in one process with one thread.

    python -m benchmarks.cpu_levers [--steps 8]

The mini base of `benchmarks.bases` at 128 px, one photo and one class picture, fp32, text encoder on; seconds are
processor time, medians. The plain step is torch's AdamW as it comes, with clipping as passes of its own.
"""

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bases import random_base
from benchmarks.measuring import heading, keep
from dreambooth.models.base import load_base

PARTS = ("forward", "backward", "clipping", "update", "all")


@dataclass(frozen=True)
class Lever:
    """A way to do the step: AdamW's options, layout, arithmetic, and whether clipping is folded into the update."""

    adamw: dict[str, bool]
    channels_last: bool = False
    dtype: torch.dtype | None = None
    folded_clipping: bool = False


LEVERS = {
    "plain": Lever({}),
    "foreach AdamW": Lever({"foreach": True}),
    "fused AdamW": Lever({"fused": True}),
    "fused AdamW, clipping folded into it (ours)": Lever({"fused": True}, folded_clipping=True),
    "channels-last weights": Lever({}, channels_last=True),
    "bf16 autocast": Lever({}, dtype=torch.bfloat16),
}


def main() -> None:
    """Measure by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--base", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in LEVERS}
    with tempfile.TemporaryDirectory() as folder:
        base = str(arguments.base or random_base(Path(folder) / "mini", "mini"))
        steps = {name: step_with(lever, base) for name, lever in LEVERS.items()}
    for number in range(arguments.steps):
        for name, step in steps.items():
            taken[name].append(step())
        print(number, file=sys.stderr, flush=True)
    medians = {
        name: [statistics.median(part) for part in zip(*times[2:], strict=True)] for name, times in taken.items()
    }
    print(heading(), table(medians), sep="\n\n")
    keep("cpu_levers", medians)


def step_with(lever: Lever, base: str) -> Callable[[], tuple[float, ...]]:
    """Return a function that makes one step in this way and returns the seconds of its parts."""
    loaded = load_base(base)
    unet, text_encoder = loaded.unet.train(), loaded.text_encoder.train()
    layout = torch.channels_last if lever.channels_last else torch.contiguous_format
    unet.to(memory_format=layout)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer: Any = torch.optim.AdamW(parameters, lr=1e-6, **lever.adamw)
    ids, timesteps = torch.arange(18).reshape(2, 9), torch.tensor([5, 800])
    noisy = torch.linspace(-1, 1, 2 * 4 * 16 * 16).reshape(2, 4, 16, 16).contiguous(memory_format=layout)
    arithmetic: Any = torch.autocast("cpu", lever.dtype) if lever.dtype else contextlib.nullcontext()

    def step() -> tuple[float, ...]:
        now = time.process_time
        stamps = [now()]
        with arithmetic:
            loss = (unet(noisy, timesteps, text_encoder(ids)[0]).sample.float() - noisy).square().mean()
        stamps.append(now())
        loss.backward()
        stamps.append(now())
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        if lever.folded_clipping:
            optimizer.grad_scale = norm.clamp(min=1.0)
        else:
            torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        stamps.append(now())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stamps.append(now())
        return *(after - before for before, after in zip(stamps, stamps[1:], strict=False)), stamps[-1] - stamps[0]

    return step


def table(medians: dict[str, list[float]]) -> str:
    """Return the parts' seconds as Markdown, and the whole against the plain step."""
    lines = [f"| | {' | '.join(PARTS)} | times as fast |", f"|{'---|' * (len(PARTS) + 2)}"]
    for name, seconds in medians.items():
        times = medians["plain"][-1] / seconds[-1]
        lines.append(f"| {name} | {' | '.join(f'{one:.3f}' for one in seconds)} | {times:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
