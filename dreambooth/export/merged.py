"""A diffusers folder of a step at another strength, merged in a copy for as long as an export reads it."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth.durable import scratch_folder
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.models.saving import write_model
from dreambooth.models.strength import Strength


@contextmanager
def folder_at_strength(model_dir: Path, strength: Strength, beside: Path, **options: Any) -> Iterator[Path]:
    """Yield a diffusers folder of the model at this strength, in the number format of the taught one.

    It lies beside the given path while it is used, takes as much disk as the model, and is the model's own folder where
    the strength is whole.
    """
    if strength.is_whole:
        yield model_dir
        return
    import torch

    mixed = load(ModelSource(str(model_dir), strength), **options)
    weights = next(iter(sorted((model_dir / "unet").glob("*.safetensors"))), None)
    with scratch_folder(beside) as folder:
        card = dataclasses.replace(mixed.card, step=_step_of(model_dir), strength=str(strength))
        write_model(folder, mixed, torch.float32 if weights is None else _dtype_of(weights), card)
        shutil.copy(model_dir / "args.json", folder / "args.json")
        yield folder


def _step_of(model_dir: Path) -> int | None:
    return int(model_dir.name) if model_dir.name.isdecimal() else None


def _dtype_of(file: Path) -> Any:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        return weights.get_tensor(next(iter(weights.keys()))).dtype
