"""What SDXL takes on a card: LoRA and the whole UNet, at 1024 and 512 px, each beside the planner's figure."""

import dataclasses
from typing import Any

from benchmarks.gpu_runs import GIB, HEAD, Ground, Measured, measured
from dreambooth.config.presets import MEMORY_CONFIGURATIONS
from dreambooth.config.training import SDXL_BASE, TrainingConfig
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.shape import read_shape

# Text encoders and prior are off but where the row says so, and prompts have 77 tokens, as SDXL's always have.
PLAIN: dict[str, Any] = {"train_text_encoder": False, "with_prior_preservation": False}
LORA = PLAIN | {"method": "lora"}
LEAN, LEANEST = (PLAIN | MEMORY_CONFIGURATIONS[name] | PLAIN for name in ("lean", "leanest"))
RECOMPUTED = {"gradient_checkpointing": True}
# By name: the share of the base's own side that it is trained at, and the settings.
ROWS: dict[str, tuple[float, dict[str, Any]]] = {
    "LoRA, 1024 px, bf16": (1, LORA | {"mixed_precision": "bf16"}),
    "LoRA, 1024 px, bf16, checkpointing": (1, LORA | RECOMPUTED | {"mixed_precision": "bf16"}),
    "LoRA, 1024 px, fp16, checkpointing": (1, LORA | RECOMPUTED | {"mixed_precision": "fp16"}),
    "LoRA, 1024 px, fp16, checkpointing, both text encoders": (
        1, LORA | RECOMPUTED | {"mixed_precision": "fp16", "train_text_encoder": True},
    ),
    "LoRA, 1024 px, bf16, checkpointing, prior": (
        1, LORA | RECOMPUTED | {"mixed_precision": "bf16", "with_prior_preservation": True},
    ),
    "LoRA, 512 px, bf16": (0.5, LORA | {"mixed_precision": "bf16"}),
    "LoRA, 512 px, bf16, checkpointing": (0.5, LORA | RECOMPUTED | {"mixed_precision": "bf16"}),
    "whole UNet, 1024 px, leanest": (1, LEANEST),
    "whole UNet, 1024 px, lean": (1, LEAN),
    "whole UNet and text encoders, 1024 px, leanest": (1, LEANEST | {"train_text_encoder": True}),
    "whole UNet, 512 px, leanest": (0.5, LEANEST),
    "whole UNet, 512 px, lean": (0.5, LEAN),
}  # fmt: skip


def measured_rows(here: Ground, steps: int) -> list[Measured]:
    """Return all rows measured, at shares of the side that the base has."""
    return [
        measured(here, name, steps, **changes, resolution=round(share * here.side_px))
        for name, (share, changes) in ROWS.items()
    ]


def table(found: list[Measured]) -> str:
    """Return the measured rows as Markdown."""
    return "\n".join([HEAD, *(one.row() for one in found)])


def planned() -> str:
    """Return the rows as Markdown with what the planner says of SDXL's own sizes; no card is needed."""
    shape = read_shape(SDXL_BASE)
    lines = ["| sdxl | predicted, GiB | most in |", "| --- | --- | --- |"]
    for name, (share, changes) in ROWS.items():
        config = TrainingConfig(train_batch_size=1, pad_tokens=True, resolution=round(share * shape.native_px))
        need = memory_need(dataclasses.replace(config, **changes).in_range(), shape, "cuda", num_steps=20)
        lines.append(f"| {name} | {need.peak_bytes / GIB:.2f} | {need.phase} |")
    return "\n".join(lines)
