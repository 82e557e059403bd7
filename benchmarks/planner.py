"""Measure the memory of short trainings, each in a process of its own, beside what the planner said before.

    python -m benchmarks.planner [--mini DIR] [--full DIR] [--fit] [--only NAME ...]
    python -m benchmarks.planner --cuda [--full DIR]

A training makes three updates, then samples and a save where asked for. On the CPU the figure is the rise of the
process's largest resident memory over what it held with all libraries imported and no weights; on a GPU what torch's
allocator reserved at most, its statistics reset and its cache emptied before each setting. `--fit` measures the
settings that the planner's constants come from, without it those that had no part in them. Without `--full` the
settings of the full-size base (16 GB of memory) are left out; `--mini` is written when left out.
"""

import argparse
import dataclasses
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bases import random_base
from benchmarks.measuring import heading, keep, random_pictures, status_of, told, watched
from dreambooth.config import Concept, TrainingConfig
from dreambooth.memory_plan import memory_need
from dreambooth.models.shape import read_shape

MARKER = "MEASURED "
STEPS = 3
MINI = {"train_batch_size": 1, "resolution": 128, "with_prior_preservation": True, "train_text_encoder": True}

# What the constants of `dreambooth.memory_plan` are fitted to, by hand, phase by phase.
FITTED: dict[str, dict[str, Any]] = {
    "mini": MINI,
    "mini, batch 4": MINI | {"train_batch_size": 4},
    "mini, 256 px": MINI | {"resolution": 256},
    "mini, checkpointing": MINI | {"gradient_checkpointing": True, "resolution": 256},
    "mini, bf16": MINI | {"mixed_precision": "bf16"},
    "mini, samples": MINI | {"resolution": 256, "save_sample_prompt": "photo", "save_infer_steps": 2},
    "starter": MINI | {"resolution": 64},
}
# None of these was looked at when the constants were fitted.
HELD_OUT: dict[str, dict[str, Any]] = {
    "mini, 192 px": MINI | {"resolution": 192},
    "mini, 320 px, UNet only": MINI | {"resolution": 320, "train_text_encoder": False},
    "mini, batch 2": MINI | {"train_batch_size": 2},
    "mini, batch 8, no prior": MINI | {"train_batch_size": 8, "with_prior_preservation": False},
    "mini, 8-bit": MINI | {"use_8bit_adam": True},
    "mini, 8-bit, checkpointing": MINI | {"use_8bit_adam": True, "gradient_checkpointing": True},
    "mini, bf16, batch 4": MINI | {"mixed_precision": "bf16", "train_batch_size": 4},
    "mini, bf16, 256 px, checkpointing": MINI
    | {"mixed_precision": "bf16", "resolution": 256, "gradient_checkpointing": True},
    "mini, moving average": MINI | {"use_ema": True},
    "mini, two micro-batches": MINI | {"gradient_accumulation_steps": 2, "train_batch_size": 2},
    "mini, UNet only, 8-bit, 256 px": MINI | {"train_text_encoder": False, "use_8bit_adam": True, "resolution": 256},
    "mini, crops encoded at each step": MINI | {"not_cache_latents": True, "resolution": 256},
    "mini, samples at 384 px": MINI | {"resolution": 384, "save_sample_prompt": "photo", "save_infer_steps": 2,
                                       "gradient_checkpointing": True},
    "starter, batch 4": MINI | {"resolution": 64, "train_batch_size": 4},
    "starter, 8-bit, UNet only": MINI | {"resolution": 64, "use_8bit_adam": True, "train_text_encoder": False},
    "full, 8-bit, checkpointing, 256 px": MINI
    | {"resolution": 256, "use_8bit_adam": True, "gradient_checkpointing": True},
    "full, 8-bit, UNet only, 128 px": MINI | {"use_8bit_adam": True, "train_text_encoder": False},
}  # fmt: skip


def main() -> None:
    """Measure setting by setting and print the table."""
    if sys.argv[1:2] == ["--one"]:
        print(MARKER + json.dumps(measured_here(TrainingConfig.from_json(json.loads(sys.argv[2])), cuda=False)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mini", type=Path)
    parser.add_argument("--full", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bases = {
            "mini": str(arguments.mini or random_base(folder / "mini", "mini")),
            "starter": "starter",
            "full": str(arguments.full) if arguments.full else None,
        }
        random_pictures(folder / "photos", 5, 256)
        random_pictures(folder / "class", 5, 256)
        for what, changes in (FITTED if arguments.fit else HELD_OUT).items():
            base = bases[what.split(",")[0]]
            if base is None or (arguments.only and what not in arguments.only):
                continue
            config = setting(base, folder, changes)
            done = watched([sys.executable, "-m", "benchmarks.planner", "--one", json.dumps(config.to_json())])
            found.append({"setting": what, "predicted": predicted(config, "cpu"), **told(done.output, MARKER)})
            print(line(found[-1]), file=sys.stderr, flush=True)
    print(heading(), table(found), sep="\n\n")
    if not arguments.only:
        keep("planner_fit" if arguments.fit else "planner", found)


def setting(base: str, folder: Path, changes: dict[str, Any]) -> TrainingConfig:
    """Return a short training on these photos, in a run folder of its own."""
    concept = Concept("photo of zwx dog", str(folder / "photos"), "photo of dog", str(folder / "class"))
    values = {
        "pretrained_model_name_or_path": base, "concepts": (concept,), "num_class_images": 5, "num_crop_variants": 1,
        "max_train_steps": STEPS, "seed": 1, "n_save_sample": 4, "learning_rate": 1e-6, "lr_warmup_steps": 0,
        "output_dir": tempfile.mkdtemp(prefix="run-", dir=folder),
    }  # fmt: skip
    return TrainingConfig(**(values | changes))


def predicted(config: TrainingConfig, kind: Any) -> dict[str, Any]:
    """Return what the planner says of these settings."""
    need = memory_need(config, read_shape(config.pretrained_model_name_or_path), kind)
    return dataclasses.asdict(need) | {"peak_bytes": need.peak_bytes}


def measured_here(config: TrainingConfig, *, cuda: bool) -> dict[str, Any]:
    """Train in this process, and return the largest memory over the whole run and in each of its phases, in bytes."""
    from dreambooth.events import Event, PhaseProgress
    from dreambooth.runs import train

    import_libraries()
    gc.collect()
    peaks: dict[str, int] = {}
    phase = "loading"
    before = 0 if cuda else status_of_this()["VmRSS"]
    reset_peak(cuda)

    def on_event(event: Event) -> None:
        nonlocal phase
        if isinstance(event, PhaseProgress):
            peaks[phase] = max(peaks.get(phase, 0), read_peak(cuda) - before)
            reset_peak(cuda)
            phase = event.phase

    train(config, on_event=on_event)
    peaks[phase] = max(peaks.get(phase, 0), read_peak(cuda) - before)
    return {"peak_bytes": max(peaks.values()), "phases": peaks, "before_bytes": before}


def import_libraries() -> None:
    """Import what a training imports, so that its memory is not counted as the training's."""
    import accelerate  # noqa: F401
    import bitsandbytes.optim  # noqa: F401
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from diffusers.optimization import get_scheduler  # noqa: F401
    from diffusers.training_utils import EMAModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

    torch.ones(1).requires_grad_().sum().backward()


def status_of_this() -> dict[str, int]:
    """Return Linux's sizes of this process."""
    import os

    return status_of(os.getpid())


def reset_peak(cuda: bool) -> None:
    """Let the largest memory be counted anew from here on."""
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def read_peak(cuda: bool) -> int:
    """Return the largest memory since it was last reset."""
    if cuda:
        import torch

        return torch.cuda.max_memory_reserved()
    return status_of_this()["VmHWM"]


def line(one: dict[str, Any]) -> str:
    """Return one row."""
    predicted, peak = one["predicted"], one["peak_bytes"]
    phases = ", ".join(f"{name} {value / 2**20:.0f}" for name, value in one["phases"].items())
    return (
        f"| {one['setting']} | {predicted['peak_bytes'] / 2**30:.2f} ({predicted['phase']}) | {peak / 2**30:.2f} | "
        f"{predicted['peak_bytes'] / peak:.2f} | {phases} |"
    )


def table(found: list[dict[str, Any]]) -> str:
    """Return predicted and measured as Markdown."""
    head = "| setting | predicted, GiB | measured, GiB | predicted / measured | measured by phase, MiB |"
    return "\n".join([head, "|---|---|---|---|---|", *map(line, found)])


if __name__ == "__main__":
    main()
