"""Measure the memory of short trainings, each in a process of its own, beside what the planner said before.

    python -m benchmarks.planner [--mini DIR] [--full DIR] [--fit] [--only NAME ...]
    python -m benchmarks.planner --cuda [--full DIR] [--fit]

A training makes three updates (two of the full-size base on the CPU), then samples and a save where asked for. On the
CPU the figure is the rise of the process's largest resident memory over what it held with all libraries imported and no
weights. On a GPU all run in one process, and the figure is what torch's allocator reserved at most, its statistics
reset and its cache emptied before each. `--fit` measures the settings that the planner's constants come from and
prints those that fit best; without it, settings that had no part in them. Without `--full` the CPU leaves out the
full-size base (11 GB of memory), and a GPU's is made. With `--only` these settings are added to the results of before.
"""

import argparse
import dataclasses
import gc
import importlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bases import random_base
from benchmarks.measuring import RESULTS, heading, keep, random_pictures, status_of, told, watched
from dreambooth.config.concepts import Concept
from dreambooth.config.presets import MEMORY_CONFIGURATIONS
from dreambooth.config.training import TrainingConfig
from dreambooth.forecast.constants import CONSTANTS, Constants, DeviceKind
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.shape import read_shape

MARKER = "MEASURED "
STEPS = 3
# Packages, and what a training asks of them.
TRAINED_WITH = {
    "accelerate": (),
    "bitsandbytes.optim": (),
    "diffusers": ("AutoencoderKL", "DDIMScheduler", "DDPMScheduler", "UNet2DConditionModel"),
    "diffusers.optimization": ("get_scheduler",),
    "diffusers.training_utils": ("EMAModel",),
    "transformers": ("CLIPTextModel", "CLIPTokenizer"),
}
MINI = {"train_batch_size": 1, "resolution": 128, "with_prior_preservation": True, "train_text_encoder": True}
FULL = {"use_8bit_adam": True, "max_train_steps": 2, "gauge_interval": 0, "with_prior_preservation": False}
INSIDE = {"update_in_backward": True, "max_grad_norm": 0.0}
BF16 = {"mixed_precision": "bf16", "weight_precision": "bf16"}
LORA = MINI | {"method": "lora"}

# What the constants of `dreambooth.forecast.constants` are fitted to, by hand, phase by phase.
FITTED: dict[str, dict[str, Any]] = {
    "mini": MINI,
    "mini, batch 4": MINI | {"train_batch_size": 4},
    "mini, checkpointing": MINI | {"gradient_checkpointing": True, "resolution": 256},
    "mini, bf16": MINI | {"mixed_precision": "bf16"},
    "mini, 8-bit": MINI | {"use_8bit_adam": True},
    "mini, two micro-batches": MINI | {"gradient_accumulation_steps": 2, "train_batch_size": 2},
    "mini, inside backward": MINI | INSIDE | {"use_8bit_adam": True},
    "mini, bf16 weights, batch 4": MINI | INSIDE | BF16 | {"use_8bit_adam": True, "train_batch_size": 4},
    "starter": MINI | {"resolution": 64},
    "starter, batch 4": MINI | {"resolution": 64, "train_batch_size": 4},
    # For what lies idle in the heap; nothing else of a LoRA had a part in the fit.
    "mini, LoRA": LORA,
    "mini, LoRA, attention, UNet only, 256 px": LORA
    | {"lora_targets": "attention", "train_text_encoder": False, "resolution": 256},
}
# None of these was looked at when the constants were fitted.
HELD_OUT: dict[str, dict[str, Any]] = {
    "mini, 192 px": MINI | {"resolution": 192},
    "mini, 320 px, UNet only": MINI | {"resolution": 320, "train_text_encoder": False},
    "mini, batch 3": MINI | {"train_batch_size": 3},
    "mini, batch 8, no prior": MINI | {"train_batch_size": 8, "with_prior_preservation": False},
    "mini, 8-bit, checkpointing": MINI | {"use_8bit_adam": True, "gradient_checkpointing": True},
    "mini, bf16, batch 4": MINI | {"mixed_precision": "bf16", "train_batch_size": 4},
    "mini, bf16, 256 px, checkpointing": MINI
    | {"mixed_precision": "bf16", "resolution": 256, "gradient_checkpointing": True},
    "mini, moving average": MINI | {"use_ema": True},
    "mini, three micro-batches, 192 px": MINI | {"gradient_accumulation_steps": 3, "resolution": 192},
    "mini, inside backward, AdamW, 256 px": MINI | INSIDE | {"resolution": 256},
    "mini, bf16 weights, 192 px, checkpointing": MINI | INSIDE | BF16
    | {"use_8bit_adam": True, "resolution": 192, "gradient_checkpointing": True},
    "mini, UNet only, 8-bit, 256 px": MINI | {"train_text_encoder": False, "use_8bit_adam": True, "resolution": 256},
    "mini, crops encoded at each step": MINI | {"not_cache_latents": True, "resolution": 256},
    "mini, samples at 384 px": MINI | {"resolution": 384, "save_sample_prompt": "photo", "save_infer_steps": 2,
                                       "gradient_checkpointing": True},
    "starter, bf16, batch 2": MINI | {"resolution": 64, "train_batch_size": 2, "mixed_precision": "bf16"},
    "starter, checkpointing, two micro-batches": MINI
    | {"resolution": 64, "gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    "starter, inside backward": MINI | INSIDE | {"resolution": 64},
    "starter, 8-bit, UNet only": MINI | {"resolution": 64, "use_8bit_adam": True, "train_text_encoder": False},
    "full, 8-bit, checkpointing, 256 px": MINI | FULL | {"resolution": 256, "gradient_checkpointing": True},
    "full, 8-bit, UNet only, 128 px": MINI | FULL | {"train_text_encoder": False},
    "full, inside backward, 8-bit, checkpointing, 256 px": MINI | FULL | INSIDE
    | {"resolution": 256, "gradient_checkpointing": True},
    "mini, LoRA, all targets, rank 64": LORA | {"lora_targets": "all", "lora_rank": 64},
    "mini, LoRA, batch 4": LORA | {"train_batch_size": 4},
    "mini, LoRA, bf16, 256 px": LORA | {"mixed_precision": "bf16", "resolution": 256},
    "mini, LoRA, checkpointing, 256 px": LORA | {"gradient_checkpointing": True, "resolution": 256},
    "mini, LoRA, bf16, checkpointing, 384 px": LORA
    | {"mixed_precision": "bf16", "gradient_checkpointing": True, "resolution": 384},
    "mini, LoRA, rank 128, moving average, two micro-batches, 192 px": LORA
    | {"lora_rank": 128, "use_ema": True, "gradient_accumulation_steps": 2, "resolution": 192},
    "starter, LoRA, batch 4": LORA | {"resolution": 64, "train_batch_size": 4},
    "full, LoRA, bf16, checkpointing, 256 px": LORA | FULL | {"use_8bit_adam": False, "mixed_precision": "bf16",
                                                              "gradient_checkpointing": True, "resolution": 256},
    "full, LoRA, 128 px": LORA | FULL | {"use_8bit_adam": False},
    "full, bf16 weights, checkpointing, 512 px": MINI | FULL | INSIDE | BF16
    | {"resolution": 512, "gradient_checkpointing": True},
}  # fmt: skip


SD15 = MINI | {"resolution": 512, "save_sample_prompt": "photo", "save_infer_steps": 2}
# On a GPU, at SD 1.5's own size: the presets are fitted, the others held out.
CUDA_FITTED: dict[str, dict[str, Any]] = {
    name: SD15 | changes | ({"train_batch_size": 2} if name == "high_speed" else {})
    for name, changes in MEMORY_CONFIGURATIONS.items()
}
CUDA_HELD_OUT: dict[str, dict[str, Any]] = {
    "768 px, checkpointing": CUDA_FITTED["minimum"] | {"resolution": 768},
    "640 px": CUDA_FITTED["recommended"] | {"resolution": 640},
    "UNet only": CUDA_FITTED["recommended"] | {"train_text_encoder": False},
    "UNet only, checkpointing": CUDA_FITTED["minimum"] | {"train_text_encoder": False},
    "batch 4": CUDA_FITTED["recommended"] | {"train_batch_size": 4},
    "batch 8, checkpointing": CUDA_FITTED["minimum"] | {"train_batch_size": 8},
    "bf16, plain AdamW": CUDA_FITTED["recommended"] | {"mixed_precision": "bf16", "use_8bit_adam": False},
    "fp32, 8-bit, checkpointing": CUDA_FITTED["full_precision"] | {"use_8bit_adam": True},
    "two micro-batches": CUDA_FITTED["recommended"] | {"gradient_accumulation_steps": 2},
    "moving average": CUDA_FITTED["minimum"] | {"use_ema": True},
    "no prior": CUDA_FITTED["recommended"] | {"with_prior_preservation": False},
    "lean, 768 px": CUDA_FITTED["lean"] | {"resolution": 768},
    "leanest, batch 4": CUDA_FITTED["leanest"] | {"train_batch_size": 4},
}


def main() -> None:
    """Measure setting by setting and print the table."""
    if sys.argv[1:2] == ["--one"]:
        print(MARKER + json.dumps(measured_here(TrainingConfig.from_json(json.loads(sys.argv[2])), cuda=False)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mini", type=Path)
    parser.add_argument("--full", type=Path)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--cuda", action="store_true")
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    kind: DeviceKind = "cuda" if arguments.cuda else "cpu"
    name = f"planner{'_cuda' * arguments.cuda}{'_fit' * arguments.fit}"
    found = measured_before(name) if arguments.only else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_pictures(folder / "photos", 5, 512)
        random_pictures(folder / "class", 5, 512)
        bases = bases_of(arguments, folder)
        for what, changes in asked_for(arguments, bases):
            config = setting(bases[base_of(what, arguments.cuda)], folder, changes)
            said = predicted(config, kind)
            if arguments.cuda:
                measured = measured_here(config, cuda=True)
            else:
                command = [sys.executable, "-m", "benchmarks.planner", "--one", json.dumps(config.to_json())]
                measured = told(watched(command).output, MARKER)
            found[what] = {"setting": what, "changes": changes, "predicted": said, **measured}
            print(line(found[what]), file=sys.stderr, flush=True)
            keep(name, list(found.values()))
        print(heading(), table(list(found.values())), sep="\n\n")
        if arguments.fit and found.keys() >= asked_of(arguments).keys():
            known = {
                what: setting(bases[base_of(what, arguments.cuda)], folder, row["changes"])
                for what, row in found.items()
            }  # fmt: skip
            print(f"\nBest: {best_constants([(known[what], found[what]['peak_bytes']) for what in found], kind)}")


def measured_before(name: str, key: str = "setting") -> dict[str, dict[str, Any]]:
    """Return what earlier parts have measured, by setting or by another key of theirs."""
    file = RESULTS / f"{name}.json"
    rows = json.loads(file.read_text("utf-8"))["found"] if file.exists() else []
    return {row[key]: row for row in rows}


def bases_of(arguments: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Return the bases that are there, by name; the small ones are made."""
    if arguments.cuda:
        return {"full": str(arguments.full or random_base(folder / "full", "full"))}
    bases = {"mini": str(arguments.mini or random_base(folder / "mini", "mini")), "starter": "starter"}
    return bases | ({"full": str(arguments.full)} if arguments.full else {})


def base_of(what: str, cuda: bool) -> str:
    """Return the name of the base that a setting is for."""
    return "full" if cuda else what.split(",")[0]


def asked_of(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the settings of this device that are fitted, or those that are not."""
    if arguments.cuda:
        return CUDA_FITTED if arguments.fit else CUDA_HELD_OUT
    return FITTED if arguments.fit else HELD_OUT


def asked_for(arguments: argparse.Namespace, bases: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings to measure, by name."""
    for what, changes in asked_of(arguments).items():
        if base_of(what, arguments.cuda) in bases and (not arguments.only or what in arguments.only):
            yield what, changes


def best_constants(measured: list[tuple[TrainingConfig, int]], kind: DeviceKind) -> Constants:
    """Return the constants whose largest error over these settings and their peaks is smallest, from a grid."""
    grid = itertools.product(
        (0, 44, 52, 60, 68, 128), (1.0, 1.02, 1.03, 1.04), (0.95, 1.0, 1.05, 1.1, 1.2), (1.0, 1.5, 2.0, 2.5, 2.75),
        (0.0, 1.0),
    )  # fmt: skip
    shapes = {config.pretrained_model_name_or_path for config, _ in measured}
    known = {name: read_shape(name) for name in shapes}
    before, best = CONSTANTS[kind], (float("inf"), CONSTANTS[kind])
    for fixed_mib, slack, keeping, recomputing, workspace in grid:
        CONSTANTS[kind] = dataclasses.replace(
            before, fixed_bytes=fixed_mib << 20, slack=slack, keeping=keeping, recomputing=recomputing,
            workspace=workspace,
        )  # fmt: skip
        error = max(
            abs(memory_need(config, known[config.pretrained_model_name_or_path], kind).peak_bytes / peak - 1)
            for config, peak in measured
        )
        best = min(best, (error, CONSTANTS[kind]), key=lambda one: one[0])
    CONSTANTS[kind] = before
    print(f"largest error {best[0]:.3f}", file=sys.stderr)
    return best[1]


def setting(base: str, folder: Path, changes: dict[str, Any]) -> TrainingConfig:
    """Return a short training on these photos, in a run folder of its own."""
    concept = Concept("photo of zwx dog", str(folder / "photos"), "photo of dog", str(folder / "class"))
    values = {
        "pretrained_model_name_or_path": base, "concepts": (concept,), "num_class_images": 5, "num_crop_variants": 1,
        "max_train_steps": STEPS, "seed": 1, "n_save_sample": 4, "learning_rate": 1e-6, "lr_warmup_steps": 0,
        "output_dir": tempfile.mkdtemp(prefix="run-", dir=folder),
    }  # fmt: skip
    return TrainingConfig(**(values | changes))


def predicted(config: TrainingConfig, kind: DeviceKind) -> dict[str, Any]:
    """Return what the planner says of these settings."""
    need = memory_need(config, read_shape(config.pretrained_model_name_or_path), kind)
    return dataclasses.asdict(need) | {"peak_bytes": need.peak_bytes}


def measured_here(config: TrainingConfig, *, cuda: bool) -> dict[str, Any]:
    """Train in this process, and return the largest memory over the whole run and in each of its phases, in bytes."""
    from dreambooth.events import Event, PhaseProgress
    from dreambooth.runs.run import train

    import_libraries()
    gc.collect()
    if cuda:
        import torch

        torch.cuda.empty_cache()
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
    for package, names in TRAINED_WITH.items():
        module = importlib.import_module(package)
        for name in names:  # diffusers and transformers import what a name stands for when it is asked for
            getattr(module, name)
    import torch

    torch.ones(1).requires_grad_().sum().backward()


def status_of_this() -> dict[str, int]:
    """Return Linux's sizes of this process."""
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
    """Return one row, with the phase that takes most as it was predicted and all phases as they were measured."""
    phases = ", ".join(f"{name} {value / 2**20:.0f}" for name, value in one["phases"].items())
    row = row_of(one["setting"], one["predicted"]["peak_bytes"], one["peak_bytes"])
    return f"{row} {one['predicted']['phase']} | {phases} |"


def row_of(what: str, predicted_bytes: int, peak_bytes: int) -> str:
    """Return what docs/performance.md has of a setting."""
    ratio = predicted_bytes / peak_bytes
    return f"| {what} | {predicted_bytes / 2**30:.2f} | {peak_bytes / 2**30:.2f} | {ratio:.2f} |"


def table(found: list[dict[str, Any]]) -> str:
    """Return predicted and measured as Markdown."""
    head = "| setting | predicted, GiB | measured, GiB | predicted / measured | most in | measured by phase, MiB |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(line, found)])


if __name__ == "__main__":
    main()
