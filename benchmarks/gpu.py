"""Everything that wants a GPU, measured on one card in one run, its tables printed last.

    python -m benchmarks.gpu [--size full|mini|narrow] [--base DIR] [--sections plans,levers,batches,...] [--steps 20]
                             [--peer NAME=SCRIPT ... --runner RUN_PEER.py] [--json FILE] [--work DIR] [--list]

The base is SD 1.5's own sizes with random weights, made on the card; the section `sdxl` makes one of SDXL's, in fp16,
and takes 40 GB of the machine's own memory. `--size narrow --device cpu` goes through the same code in a minute on any
machine; its figures say nothing. `--list` measures nothing: it prints the sections, and of SDXL each row with what the
planner says of it.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_sdxl
from benchmarks.bases import Size, native_px, random_base
from benchmarks.gpu_runs import GIB, HEAD, Ground, Measured, as_json, collect, ground, measured
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.presets import MEMORY_CONFIGURATIONS
from dreambooth.models.base import Base, quiet_libraries
from dreambooth.models.manager import ModelManager
from dreambooth.pictures.generation import generate_images

FAST: dict[str, Any] = {"mixed_precision": "bf16"}
SEED_PLANS = ("minimum", "recommended", "high_speed", "full_precision")
LEAN_PLANS = ("lean", "leanest")
NUM_PLANNER_STEPS = 5
SECTIONS = ("plans", "levers", "batches", "roofline", "generation", "planner", "peers", "compile", "sdxl")
# Of SD 1.5, and of SDXL beside it.
SIZES: dict[Size, Size] = {"full": "sdxl_full", "mini": "sdxl_narrow", "narrow": "sdxl_narrow"}


def main() -> None:
    """Measure what was asked for, section by section, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--base", type=Path, help="a base that is there already; left out, one is made")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT")
    parser.add_argument("--runner", type=Path, help="what runs a peer's script and prints its step time and memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--list", action="store_true", help="print what would be measured")
    arguments = parser.parse_args()
    if arguments.list:
        print(f"sections: {', '.join(SECTIONS)}", gpu_sdxl.planned(), sep="\n\n")
        return
    quiet_libraries()  # before anything imports diffusers
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        report = Report(arguments.json, began_s)
        asked = arguments.sections.split(",")
        if of_sd := [section for section in asked if section != "sdxl"]:
            base_dir = arguments.base or random_base(work / "base", arguments.size, device=arguments.device)
            collect()
            here = ground(base_dir, work, arguments.device, native_px(arguments.size))
            report.say("ready")
            for section in of_sd:
                sections(arguments)[section](here, report)
            del here
        if "sdxl" in asked:
            sdxl(arguments, work / "sdxl", report)
        print(report.text())


class Report:
    """What was found so far: printed at the end, and kept in a file after each section in case there is none."""

    def __init__(self, file: Path | None, began_s: float) -> None:
        self._file, self._began_s = file, began_s
        self._parts: list[tuple[str, str]] = []
        self.values: dict[str, Any] = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}

    def say(self, text: str) -> None:
        """Tell on standard error how far it is."""
        print(f"[{time.monotonic() - self._began_s:6.1f} s] {text}", file=sys.stderr, flush=True)

    def add(self, title: str, table: str, values: Any) -> None:
        """Take up a section's table and values."""
        self._parts.append((title, table))
        self.values[title] = values
        self.say(title)
        print(f"\n### {title}\n\n{table}", flush=True)
        if self._file is not None:
            self._file.write_text(json.dumps(self.values, indent=1) + "\n", "utf-8")

    def text(self) -> str:
        """Return all tables under the line that names the machine."""
        parts = [f"### {title}\n\n{table}" for title, table in self._parts]
        return "\n\n".join([f"{self.values['machine']}, {self.values['date']}", *parts])


def machine() -> str:
    """Return card, driver and versions."""
    import diffusers
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    return (
        f"{card}, torch {torch.__version__}, diffusers {diffusers.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )


def sections(arguments: argparse.Namespace) -> dict[str, Callable[[Ground, Report], None]]:
    """Return what measures each section."""
    steps: int = arguments.steps

    def plain_rows(
        title: str, rows: dict[str, dict[str, Any]], num_steps: int = steps
    ) -> Callable[[Ground, Report], None]:
        def run(here: Ground, report: Report) -> None:
            found = []
            for name, changes in rows.items():
                found.append(measured(here, name, num_steps, **changes))
                report.say(found[-1].row())
            report.add(title, "\n".join([HEAD, *(one.row() for one in found)]), as_json(found))

        return run

    return {
        "plans": lambda here, report: plans(here, report, steps),
        "levers": lambda here, report: levers(here, report, steps),
        "batches": plain_rows(
            "Batch size, bf16, fused AdamW, steps recorded",
            {f"batch {n} + {n}": FAST | {"capture_step": True, "train_batch_size": n} for n in (1, 2, 4, 8)},
        ),
        "roofline": lambda here, report: roofline(here, report, steps),
        "generation": generation,
        "planner": plain_rows("Settings the planner was not fitted to", PLANNER_ROWS, NUM_PLANNER_STEPS),
        "peers": lambda here, report: peers(here, report, arguments),
        "compile": plain_rows(
            "torch.compile of the UNet, bf16, fused AdamW",
            {
                "compiled": FAST | {"compile_unet": True},
                "compiled, steps recorded": FAST | {"compile_unet": True, "capture_step": True},
            },
        ),
    }


PLANNER_ROWS: dict[str, dict[str, Any]] = {
    "384 px, bf16, 8-bit, UNet only": {
        "resolution": 384, "mixed_precision": "bf16", "use_8bit_adam": True, "train_text_encoder": False,
    },
    "384 px, fp16, batch 2": {"resolution": 384, "mixed_precision": "fp16", "train_batch_size": 2},
    "448 px, fp32, checkpointing": {"resolution": 448, "gradient_checkpointing": True},
    "512 px, bf16, no prior": {"mixed_precision": "bf16", "with_prior_preservation": False},
    "512 px, bf16, moving average": {"mixed_precision": "bf16", "use_ema": True},
    "512 px, fp16, 8-bit, batch 4, checkpointing": {
        "mixed_precision": "fp16", "use_8bit_adam": True, "train_batch_size": 4, "gradient_checkpointing": True,
    },
    "512 px, fp16, 2 micro-batches": {"mixed_precision": "fp16", "gradient_accumulation_steps": 2},
    "640 px, bf16, batch 2": {"resolution": 640, "mixed_precision": "bf16", "train_batch_size": 2},
    "640 px, bf16, checkpointing, UNet only": {
        "resolution": 640, "mixed_precision": "bf16", "gradient_checkpointing": True, "train_text_encoder": False,
    },
    "768 px, bf16, 8-bit, checkpointing": {
        "resolution": 768, "mixed_precision": "bf16", "use_8bit_adam": True, "gradient_checkpointing": True,
    },
    "768 px, lean, batch 2": MEMORY_CONFIGURATIONS["lean"] | {"resolution": 768, "train_batch_size": 2},
    "512 px, lean, UNet only": MEMORY_CONFIGURATIONS["lean"] | {"train_text_encoder": False},
    "768 px, leanest": MEMORY_CONFIGURATIONS["leanest"] | {"resolution": 768},
    "512 px, fp32, no prior": {"with_prior_preservation": False},
}  # fmt: skip


# Trainings -----------------------------------------------------------------------------------------------------------


def plans(here: Ground, report: Report, steps: int) -> None:
    """Measure the seed table's four configurations and the two lean ones, these with samples and a save."""
    found: list[Measured] = []
    for name in SEED_PLANS:
        found.append(measured(here, name, steps, **MEMORY_CONFIGURATIONS[name]))
        report.say(found[-1].row())
    found.append(measured(here, "fused AdamW, recorded, bf16", steps, **FAST | {"capture_step": True}))
    fp16 = {"mixed_precision": "fp16", "capture_step": True}
    found.append(measured(here, "fused AdamW, recorded, fp16", steps, **fp16))
    for name in LEAN_PLANS:
        pictures = {"save_sample_prompt": "photo of zwx dog"}
        found.append(measured(here, name, steps, to_the_end=True, **MEMORY_CONFIGURATIONS[name] | pictures))
        report.say(f"{found[-1].row()} {found[-1].phase_bytes}")
    report.add("Plans", "\n".join([HEAD, *(one.row() for one in found)]), as_json(found))


def channels_first(base: Base) -> None:
    """Keep the UNet's convolutions in the order of numbers that they are loaded in, against the trainer's wish."""
    base.unet.to = lambda memory_format: base.unet


def levers(here: Ground, report: Report, steps: int) -> None:
    """Measure what each means to speed does, one at a time, at batch 1 + 1."""
    rows: list[tuple[str, dict[str, Any], Callable[[Base], None]]] = [
        ("bf16, fused AdamW, channels last", FAST, _leave),
        ("... steps recorded", FAST | {"capture_step": True}, _leave),
        ("... steps recorded, channels first", FAST | {"capture_step": True}, channels_first),
        ("... 8-bit AdamW without its waits", FAST | {"use_8bit_adam": True}, _leave),
        ("... latents not cached", FAST | {"not_cache_latents": True}, _leave),
    ]
    found = []
    for name, changes, tweak in rows:
        found.append(measured(here, name, steps, tweak=tweak, **changes))
        report.say(found[-1].row())
    torch.backends.cudnn.benchmark = True
    try:
        found.append(measured(here, "... recorded, cuDNN chooses by trying", steps, **FAST | {"capture_step": True}))
    finally:
        torch.backends.cudnn.benchmark = False
    report.say(found[-1].row())
    report.add("Levers, batch 1 + 1", "\n".join([HEAD, *(one.row() for one in found)]), as_json(found))


def _leave(base: Base) -> None:
    """Leave the base as it is."""


def roofline(here: Ground, report: Report, steps: int) -> None:
    """Measure the phases of a step against the card's own rates."""
    from benchmarks.gpu_roofline import measured_rates, phases, table

    rates = measured_rates()
    found = phases(here, rates, **FAST)
    collect()
    whole = {
        name: measured(here, name, steps, **FAST | changes).step_s
        for name, changes in {"plain": {}, "recorded": {"capture_step": True}}.items()
    }
    big = measured(here, "batch 8 + 8", steps, **FAST | {"capture_step": True, "train_batch_size": 8}).step_s
    # Products grow with the batch; three times the forward's are a step's.
    share = 8 * 3 * found[0].flops / big / rates.flops_per_s
    text = table(found, rates, whole) + f"\n\nMatrix units at batch 8 + 8: {share:.0%} of their measured rate."
    report.add("Phases of a step and their floors, batch 1 + 1", text, [vars(phase) for phase in found])


def sdxl(arguments: argparse.Namespace, work: Path, report: Report) -> None:
    """Measure SDXL on a base of its own: LoRA and the whole UNet."""
    size = SIZES[arguments.size]
    base_dir = random_base(work / "base", size, device=arguments.device, precision="fp16")
    collect()
    here = ground(base_dir, work, arguments.device, native_px(size))
    report.say("SDXL ready")
    found = gpu_sdxl.measured_rows(here, arguments.steps)
    report.add("SDXL, batch 1", gpu_sdxl.table(found), as_json(found))


# Pictures ------------------------------------------------------------------------------------------------------------


def generation(here: Ground, report: Report) -> None:
    """Measure four pictures of 24 steps, ours and through diffusers' pipeline as the seed's example has it."""
    rounds = 3
    ours, theirs = [], []
    manager = ModelManager(here.device)
    base = manager.resident("measured", lambda: _copied(here.base))
    request = GenerationConfig(
        prompt="photo of zwx dog in a bucket", num_images_per_prompt=4, num_inference_steps=24, seed=52362,
        height=here.side_px, width=here.side_px,
    )  # fmt: skip
    for _ in range(rounds):
        began = time.perf_counter()
        list(generate_images(base, request, native_px=here.side_px))
        ours.append(time.perf_counter() - began)
    manager._drop_resident()
    del base
    collect()
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    own = _copied(here.base)
    pipeline: Any = StableDiffusionPipeline(
        vae=own.vae, text_encoder=own.text_encoder, tokenizer=own.tokenizer, unet=own.unet,
        scheduler=DDIMScheduler(**own.noise_scheduler_config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    ).to(here.device, manager.inference_dtype)  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    for _ in range(rounds):
        began = time.perf_counter()
        pipeline(
            request.prompt, num_images_per_prompt=4, num_inference_steps=24, guidance_scale=7.5,
            height=here.side_px, width=here.side_px,
            generator=torch.Generator(here.device).manual_seed(52362),
        )  # fmt: skip
        theirs.append(time.perf_counter() - began)
    del pipeline, own
    collect()
    rows = [("ours", ours), ("diffusers' pipeline", theirs)]
    lines = ["| | first four, s | after warm-up, s | pictures/s |", "| --- | --- | --- | --- |"]
    lines += [f"| {who} | {s[0]:.2f} | {min(s[1:]):.2f} | {4 / min(s[1:]):.2f} |" for who, s in rows]
    report.add(f"Four pictures, {here.side_px} px, 24 steps of DDIM", "\n".join(lines), dict(rows))


def _copied(base: Base) -> Base:
    import copy

    return copy.deepcopy(base)


# Peers ---------------------------------------------------------------------------------------------------------------


def peers(here: Ground, report: Report, arguments: argparse.Namespace) -> None:
    """Run the peers' scripts as they stand on the same base, photos and arguments, beside ours in that precision."""
    rows = []
    for name, _, script in (peer.partition("=") for peer in arguments.peer):
        rows.append((name, _peer(here, script, arguments)))
        report.say(f"{name}: {rows[-1][1]}")
    ours = measured(here, "ours", arguments.steps, mixed_precision="fp16", capture_step=True)
    rows.append(("ours, recorded", {"step_s": ours.step_s, "peak_reserved_gib": ours.reserved_bytes / GIB}))
    lines = ["| fp16, batch 1 + 1, AdamW in 32 bits | s/step | steps/s | GiB reserved |", "| --- | --- | --- | --- |"]
    for name, values in rows:
        step_s = values.get("step_s")
        speed = f"{step_s:.4f} | {1 / step_s:.2f}" if step_s else f"{values} |"
        lines.append(f"| {name} | {speed} | {values.get('peak_reserved_gib') or 0:.2f} |")
    report.add("Beside the peers' scripts", "\n".join(lines), dict(rows))


def _peer(here: Ground, script: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = [
        f"--pretrained_model_name_or_path={here.base_dir}", f"--instance_data_dir={here.photos}",
        f"--class_data_dir={here.class_images}", "--instance_prompt=photo of zwx dog", "--class_prompt=photo of dog",
        "--with_prior_preservation", "--prior_loss_weight=1.0", "--num_class_images=4", "--train_text_encoder",
        f"--resolution={here.side_px}", "--train_batch_size=1", "--gradient_accumulation_steps=1",
        "--learning_rate=1e-6", "--lr_scheduler=constant", "--lr_warmup_steps=0", "--seed=7",
        f"--max_train_steps={arguments.steps}", f"--output_dir={here.work / 'peer'}",
        *(["--mixed_precision=fp16"] if here.device == "cuda" else []),
    ]  # fmt: skip
    collect()
    done = subprocess.run(
        [sys.executable, str(arguments.runner), script, *options], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
    )  # fmt: skip
    line = next((line for line in done.stdout.splitlines() if line.startswith("PEER ")), None)
    values: dict[str, Any] = json.loads(line[5:]) if line else {"failed": (done.stderr or done.stdout)[-300:]}
    return values


if __name__ == "__main__":
    main()
