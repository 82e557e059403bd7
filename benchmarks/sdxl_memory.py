"""What SDXL takes of the machine's own memory at full size: loading, steps of a LoRA at 256 px, and converting.

    python -m benchmarks.sdxl_memory WORK [--size sdxl_full|sdxl_narrow] [--parts load,lora,convert] [--leave 4]
                                          [--keep_base]

Makes a base with random weights in fp16 in the folder WORK (7 GB, and as much again for the converted file), and
removes what it made but for a base that is kept for other parts. Each part is a process of its own; it is stopped where
the machine would have less than `--leave` GiB for others. *No file* is what belongs to the process alone: the rest are
pages of the base's files. Beside each part stands what the planner says of it.
"""

import argparse
import gc
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.bases import Size, native_px, random_base
from benchmarks.measuring import heading, keep, random_pictures, status_of, told, watched
from benchmarks.planner import import_libraries, measured_before, setting
from dreambooth.config.training import TrainingConfig
from dreambooth.events import Event, PhaseProgress

MARKER = "TOOK "
GIB = 2**30
POLL_S = 0.02
LORA = {
    "method": "lora", "mixed_precision": "bf16", "train_batch_size": 1, "max_train_steps": 2, "gauge_interval": 0,
    "with_prior_preservation": False, "pad_tokens": True,
}  # fmt: skip


def main() -> None:
    """Make the base, measure part by part, and print the table."""
    if sys.argv[1:2] == ["--part"]:
        print(MARKER + json.dumps(PARTS[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--size", choices=["sdxl_full", "sdxl_narrow"], default="sdxl_full")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--leave", type=float, default=4.0)
    parser.add_argument("--keep_base", action="store_true")
    arguments = parser.parse_args()
    size: Size = arguments.size
    base, own = arguments.work / "base", arguments.work / "parts"
    found = measured_before("sdxl_memory", "part") if size == "sdxl_full" else {}
    try:
        random_base(base, size, precision="fp16", tiled=True)
        gc.collect()
        random_pictures(own / "photos", 3, 512)
        print("base ready", file=sys.stderr, flush=True)
        for part in arguments.parts.split(","):
            found |= {
                row["part"]: row for row in _measured(part, arguments.work, native_px(size) // 4, arguments.leave)
            }
            if size == "sdxl_full":
                keep("sdxl_memory", list(found.values()))
    finally:
        shutil.rmtree(own, ignore_errors=True)
        if not arguments.keep_base:
            shutil.rmtree(base)
    print(heading(), table(list(found.values())), sep="\n\n")


def _measured(part: str, work: Path, side_px: int, leave_gib: float) -> list[dict[str, Any]]:
    """Return the rows of a part, measured in a process of its own."""
    places = [str(work / "base"), str(work / "parts"), str(side_px)]
    command = [sys.executable, "-m", "benchmarks.sdxl_memory", "--part", part, *places]
    done = watched(command, leave_bytes=round(leave_gib * GIB))
    if done.status:
        raise RuntimeError(f"{part} ended with status {done.status}:\n{done.output[-2000:]}")
    rows: list[dict[str, Any]] = told(done.output, MARKER)["rows"]
    print(table(rows), file=sys.stderr, flush=True)
    return rows


# Parts, each in a process of its own ---------------------------------------------------------------------------------


class Phases:
    """The most memory of this process in each phase, over what it held with all libraries imported, and its seconds."""

    def __init__(self, first: str) -> None:
        import_libraries()
        before = status_of(os.getpid())
        self._before = before["VmRSS"], before["RssAnon"]
        self._phase, self._began_s, self._is_over = first, time.monotonic(), threading.Event()
        self.found: dict[str, list[float]] = {}
        self._sampler = threading.Thread(target=self._sample)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take samples while the block runs."""
        self._sampler.start()
        try:
            yield
        finally:
            self.enter("")
            self._is_over.set()
            self._sampler.join()

    def enter(self, phase: str) -> None:
        """Begin another phase."""
        self._take()
        self.found[self._phase][2] += time.monotonic() - self._began_s
        self._phase, self._began_s = phase, time.monotonic()

    def _sample(self) -> None:
        while not self._is_over.wait(POLL_S):
            self._take()

    def _take(self) -> None:
        now = status_of(os.getpid())
        most = self.found.setdefault(self._phase, [0, 0, 0])
        most[0] = max(most[0], now["VmRSS"] - self._before[0])
        most[1] = max(most[1], now["RssAnon"] - self._before[1])

    def row(self, name: str, phases: tuple[str, ...], planned_bytes: float | None) -> dict[str, Any]:
        """Return the row of these phases together."""
        held = [self.found[phase] for phase in phases if phase in self.found]
        return {
            "part": name, "peak_bytes": max(one[0] for one in held), "own_bytes": max(one[1] for one in held),
            "seconds": sum(one[2] for one in held), "planned_bytes": planned_bytes,
        }  # fmt: skip


def load(base: Path, own: Path, side_px: int) -> dict[str, Any]:
    """Load the base as every work on it does."""
    from dreambooth.models.base import load_base

    phases = Phases("load")
    with phases.watching():
        loaded = load_base(str(base))
    del loaded
    planned = planned_bytes(setting(str(base), own, {}), "loading")
    return {"rows": [phases.row("load, in fp32", ("load",), planned)]}


def lora(base: Path, own: Path, side_px: int) -> dict[str, Any]:
    """Train a LoRA beside the base in bf16, and save it."""
    from dreambooth.runs.run import train

    config = setting(str(base), own, LORA | {"resolution": side_px})
    phases = Phases("loading")

    def on_event(event: Event) -> None:
        if isinstance(event, PhaseProgress):
            phases.enter(event.phase)

    with phases.watching():
        train(config, on_event=on_event)
    name = f"LoRA at {side_px} px, bf16, batch 1"
    before = planned_bytes(config, "loading", "half precision")
    return {
        "rows": [
            phases.row(f"{name}: until the first step", tuple(phases.found.keys() - {"training", ""}), before),
            phases.row(f"{name}: steps", ("training",), planned_bytes(config, "step")),
        ]
    }


def convert(base: Path, own: Path, side_px: int) -> dict[str, Any]:
    """Write one file in the original layout, with its check."""
    from dreambooth.commands.cli import main as command_line

    phases = Phases("convert")
    with phases.watching():
        status = command_line(["convert", str(base), str(own / "model.safetensors"), "--half"])
    assert status == 0
    return {"rows": [phases.row("convert to one file, fp16, with its check", ("convert",), None)]}


PARTS = {"load": load, "lora": lora, "convert": convert}


def planned_bytes(config: TrainingConfig, *phases: str) -> int:
    """Return what the planner says of the phase, of those named, that takes most on the CPU."""
    from dreambooth.forecast import memory
    from dreambooth.forecast.shape import read_shape

    shape = read_shape(config.pretrained_model_name_or_path)
    needs = memory._phases(config, shape, "cpu", config.max_train_steps)
    return max(need.peak_bytes for need in needs if need.phase in phases)


def table(found: list[dict[str, Any]]) -> str:
    """Return seconds, memory and plan as Markdown."""
    lines = ["| | seconds | memory, GiB | of it no file | planned, GiB |", "|---|---|---|---|---|"]
    for one in found:
        planned = "" if one["planned_bytes"] is None else f"{one['planned_bytes'] / GIB:.2f}"
        held = " | ".join(f"{one[name] / GIB:.2f}" for name in ("peak_bytes", "own_bytes"))
        lines.append(f"| {one['part']} | {one['seconds']:.0f} | {held} | {planned} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
