"""Whether the machine's own memory holds out (Colab's free one has 12 GB), and how long a save stops a training.

    python -m benchmarks.host_memory BASE

Loads a base, writes it as a step folder, converts it into one file, and writes an exact state of it with 8-bit moments,
each in a process of its own whose memory is watched: all pages, and those that belong to no file. Beside the time of
the step folder stands that of the mere copy of its weights in fp16, which is the least that a training could be stopped
for; beside that of the exact state, how large it is and what the process held before it was written.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import heading, keep, memory_of, told, watched

MARKER = "TOOK "
GB = 1e9


def main() -> None:
    """Measure one after the other and print the table."""
    if sys.argv[1:2] == ["--part"]:
        print(MARKER + json.dumps(PARTS[sys.argv[2]](sys.argv[3], Path(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    arguments = parser.parse_args()
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            command = [sys.executable, "-m", "benchmarks.host_memory", "--part", part, arguments.base, folder]
            done = watched(command)
            found.append({
                "part": part, **told(done.output, MARKER), "peak_bytes": done.peak_bytes,
                "own_bytes": done.peak_own_bytes,
            })  # fmt: skip
            print(found[-1], file=sys.stderr, flush=True)
    print(heading(), table(found), sep="\n\n")
    keep("host_memory", found)


def load(base: str, folder: Path) -> dict[str, float]:
    """Load the base as a training does, and read every weight once."""
    from dreambooth.models.base import load_base
    from dreambooth.models.fingerprint import weights_fingerprint

    began_s = time.perf_counter()
    loaded = load_base(base)
    weights_fingerprint(loaded.unet, loaded.text_encoder)
    for part in (loaded.unet, loaded.text_encoder, loaded.vae):
        for parameter in part.parameters():
            parameter.data = parameter.data.clone()  # as a first update makes them the process's own
    return {"seconds": time.perf_counter() - began_s}


def save(base: str, folder: Path) -> dict[str, float]:
    """Write the base as a step folder, and take the time of the copy of its weights by itself."""
    import torch

    from dreambooth.durable import new_folder
    from dreambooth.models.base import load_base
    from dreambooth.models.saving import write_model

    loaded = load_base(base)
    parts = (loaded.unet, loaded.text_encoder, loaded.vae)
    for part in parts:
        for parameter in part.parameters():
            parameter.data = parameter.data.clone()
    began_s = time.perf_counter()
    for part in parts:
        copies = [tensor.to(torch.float16) for tensor in part.state_dict().values()]
        del copies
    copy_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    with new_folder(folder / "1") as temporary:
        write_model(temporary, loaded, torch.float16)
    return {"seconds": time.perf_counter() - began_s, "copy_s": copy_s}


def convert(base: str, folder: Path) -> dict[str, float]:
    """Write one file from the step folder, with its check."""
    from dreambooth.commands.cli import main as command_line

    began_s = time.perf_counter()
    status = command_line(["convert", str(folder / "1"), str(folder / "model.safetensors"), "--half"])
    assert status == 0
    return {"seconds": time.perf_counter() - began_s}


def state(base: str, folder: Path) -> dict[str, float]:
    """Write an exact state of the base with its text encoder, as a training with 8-bit AdamW has it."""
    import torch

    from dreambooth.config.training import TrainingConfig
    from dreambooth.models.base import load_base
    from dreambooth.records.workspace import RunFolder
    from dreambooth.training.checkpoint import Learner, write_checkpoint
    from dreambooth.training.method import parameters_of
    from dreambooth.training.optimizer import build_optimizer
    from dreambooth.training.run_identity import RunIdentity

    loaded = load_base(base)
    weights = {name: dict(getattr(loaded, name).named_parameters()) for name in ("unet", "text_encoder")}
    for parameter in parameters_of(weights):
        parameter.data = parameter.data.clone()
    optimizer: Any = build_optimizer(TrainingConfig(use_8bit_adam=True), weights, num_processes=1, notice=print)
    for group_number, group in enumerate(optimizer.param_groups):
        for index, parameter in enumerate(group["params"]):
            optimizer.init_state(group, parameter, group_number, index)
    del loaded.vae
    gc.collect()
    learner = Learner(weights, optimizer, torch.amp.GradScaler("cpu", enabled=False))
    run = RunFolder(folder / "run")
    held_bytes, began_s = memory_of(os.getpid())[1], time.perf_counter()
    write_checkpoint(run, 1, learner, RunIdentity({}, "", {}), keep=1)
    seconds = time.perf_counter() - began_s
    files = (run.checkpoints / "1").iterdir()
    return {"seconds": seconds, "held_bytes": held_bytes, "file_bytes": sum(file.stat().st_size for file in files)}


PARTS = {"load": load, "save": save, "convert": convert, "state": state}


def table(found: list[dict[str, Any]]) -> str:
    """Return seconds and memory as Markdown."""
    lines = [
        "| | seconds | of it copying the weights | written, GB | held before, GB | memory, GB | of it no file |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        copying = f"{one['copy_s']:.1f}" if "copy_s" in one else ""
        written, held = (f"{one[name] / GB:.2f}" if name in one else "" for name in ("file_bytes", "held_bytes"))
        lines.append(
            f"| {one['part']} | {one['seconds']:.1f} | {copying} | {written} | {held} | {one['peak_bytes'] / GB:.2f} | "
            f"{one['own_bytes'] / GB:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
