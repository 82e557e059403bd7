"""Where the time of a step goes, beside the least that the card's arithmetic and memory allow for each phase."""

import contextlib
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu_runs import Enough, Ground, Watch, prepared, settings_of

MATRIX_SIDE = 8192
COPY_BYTES = 4 << 30
NUM_STEPS = 12


@dataclass(frozen=True)
class Rates:
    """What the card does, measured: half-precision matrix products, and bytes moved (read and written both count)."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True)
class Phase:
    """A part of the step: its time, its work, and its floor, the larger of arithmetic and memory time."""

    name: str
    seconds: float
    flops: float
    num_bytes: float
    floor_s: float


def measured_rates() -> Rates:
    """Measure the two ceilings on random numbers."""
    one, other = (
        torch.randn(MATRIX_SIDE, MATRIX_SIDE, generator=torch.Generator("cuda").manual_seed(seed), device="cuda").to(
            torch.bfloat16
        )
        for seed in (0, 1)
    )
    product_s = _median_seconds(lambda: one @ other)
    source = torch.zeros(COPY_BYTES // 8, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    copy_s = _median_seconds(lambda: target.copy_(source))
    return Rates(2 * MATRIX_SIDE**3 / product_s, COPY_BYTES / copy_s)


def _median_seconds(work: Any, repeats: int = 10) -> float:
    for _ in range(3):
        work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    return statistics.median(times)


class Marks:
    """Device events at the borders of a step's phases."""

    def __init__(self) -> None:
        self.rows: list[dict[str, torch.cuda.Event]] = [{}]

    def mark(self, name: str) -> None:
        """Note the moment that this phase ends, or the step begins."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self.rows[-1][name] = event

    def seconds(self, begin: str, end: str) -> float:
        """Return the median time between two marks, the first steps left out."""
        torch.cuda.synchronize()
        rows = [row for row in self.rows[3:] if begin in row and end in row]
        return statistics.median(row[begin].elapsed_time(row[end]) / 1000 for row in rows)


def phases(here: Ground, rates: Rates, **changes: Any) -> list[Phase]:
    """Return the phases of a plain step at batch 1+1, their work counted from the model itself."""
    from torch.utils.flop_counter import FlopCounterMode

    config = settings_of(here, NUM_STEPS, **changes)
    marks = Marks()
    with prepared(here, config, Watch(NUM_STEPS, False), lambda base: None) as trainer:
        (batch,) = trainer._step.batches(0)
        captions = trainer._step.condition_inputs(batch)
        counter = FlopCounterMode(display=False)
        saved_bytes = _saved_bytes(trainer, batch, captions, counter)
        num_weights = sum(parameter.numel() for parameter in trainer._learner.parameters)
        _mark_phases(trainer, marks)
        with contextlib.suppress(Enough):
            trainer.run()
    forward = float(counter.get_total_flops())
    half = 2 if config.mixed_precision != "no" else 4
    work = {
        # Masters are read, copies written and read again, and what backward wants is written.
        "forward": (forward, num_weights * (4 + 2 * half if half == 2 else 4) + saved_bytes),
        # Twice the products; saved values and copies are read, gradients written.
        "backward": (2 * forward, num_weights * (half + 4) + saved_bytes),
        # Norm: gradients read. AdamW: weight, two moments and gradient read, three of them written.
        "update": (0.0, num_weights * (4 + 28)),
    }
    borders = {"forward": ("begin", "forward"), "backward": ("forward", "backward"), "update": ("backward", "update")}
    return [
        Phase(name, marks.seconds(*borders[name]), flops, num_bytes,
              max(flops / rates.flops_per_s, num_bytes / rates.bytes_per_s))
        for name, (flops, num_bytes) in work.items()
    ]  # fmt: skip


def _saved_bytes(trainer: Any, batch: Any, captions: Any, counter: Any) -> int:
    """Run one forward and backward without an update; returns the bytes kept for backward, weights not counted."""
    seen: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in trainer._learner.parameters}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses = trainer._step.losses(batch, captions)
    del losses
    return sum(seen.values())


def _mark_phases(trainer: Any, marks: Marks) -> None:
    updates, run = trainer._step.updates, trainer._step.run
    backward, apply = updates.backward, updates.apply

    def marked_step(*arguments: Any) -> Any:
        marks.rows.append({})
        marks.mark("begin")
        return run(*arguments)

    def marked_backward(*arguments: Any) -> None:
        marks.mark("forward")
        backward(*arguments)
        marks.mark("backward")

    def marked_apply(*arguments: Any) -> Any:
        result = apply(*arguments)
        marks.mark("update")
        return result

    trainer._step.run, updates.backward, updates.apply = marked_step, marked_backward, marked_apply


def table(found: list[Phase], rates: Rates, whole_step_s: dict[str, float]) -> str:
    """Return the phases, and each plan's whole step, beside the floor."""
    floor = sum(phase.floor_s for phase in found)
    lines = [
        f"Rates: {rates.flops_per_s / 1e12:.0f} TFLOP/s (bf16, {MATRIX_SIDE}^3), {rates.bytes_per_s / 1e12:.2f} TB/s.",
        "",
        "| phase | ms | TFLOP | GB | floor ms | share of floor |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {phase.name} | {phase.seconds * 1e3:.1f} | {phase.flops / 1e12:.2f} | {phase.num_bytes / 1e9:.1f} | "
        f"{phase.floor_s * 1e3:.1f} | {phase.floor_s / phase.seconds:.0%} |"
        for phase in found
    ]
    lines += [
        f"| whole step, {name} | {seconds * 1e3:.1f} | | | {floor * 1e3:.1f} | {floor / seconds:.0%} |"
        for name, seconds in whole_step_s.items()
    ]
    return "\n".join(lines)
