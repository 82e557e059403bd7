"""A whole model made for an export, as a temporary folder: a step at another strength, or a LoRA merged into a base."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.device.precision import dtype_of
from dreambooth.durable import scratch_folder
from dreambooth.errors import ExportError
from dreambooth.export.disk_room import refuse_full_disk
from dreambooth.export.saved_lora import convert_lora
from dreambooth.export.single_file import Precision
from dreambooth.formats.layout import CARD, lora_file
from dreambooth.formats.safetensors_file import stored_bytes
from dreambooth.models.adapter import fitted, module_of
from dreambooth.models.base import Base, read_card
from dreambooth.models.lora_file import read_lora
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.models.saving import write_model
from dreambooth.models.strength import Strength

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WholeModel:
    """A model's folder, and for a LoRA the share of its change that is lost in the folder's number format."""

    folder: Path
    format_loss: float | None = None


@contextmanager
def whole_model(
    model_dir: Path,
    strength: Strength,
    beside: Path,
    *,
    base: str | None = None,
    precision: Precision | None = None,
    models_dir: Path | None = None,
    token: str | None = None,
) -> Iterator[WholeModel]:
    """Yield a diffusers folder of a step at this strength: its own if it is a whole model at strength 1.

    Any other is written beside the given path for the duration of the block, takes as much disk as the model, and has
    the number format of the step's weights; a LoRA is merged in fp32 and stored in `precision` if given, and never in
    bf16. base: what a LoRA is merged into, or a model was trained from, if not what the step names. Raises
    BaseModelError for a base that is missing or does not fit, and ExportError for a full disk.
    """
    if lora_file(model_dir) is None and strength.is_whole:
        yield WholeModel(model_dir)
        return
    made = load(ModelSource(str(model_dir), strength, base=base), models_dir=models_dir, token=token)
    dtype = _dtype_of(model_dir, precision)
    weights = [module.state_dict() for module in made.modules().values()]
    refuse_full_disk(beside, sum(stored_bytes(named, dtype) for named in weights))
    card, strengths = dataclasses.replace(made.card, step=_step_of(model_dir), lora=None), str(strength)
    loss = None
    if (file := lora_file(model_dir)) is not None:
        loss = _format_loss(made, file, strength, dtype)
        own = read_card(str(model_dir))
        if base is not None:
            strengths += f", a LoRA added to {card.source or 'another local model'}"
        # The recipe names the training's base; both licences apply.
        licence = " and ".join(dict.fromkeys(text for text in (card.licence, own.licence) if text))
        card = dataclasses.replace(card, source=own.source, licence=licence)
    with scratch_folder(beside) as folder:
        write_model(
            folder,
            made,
            dtype,
            dataclasses.replace(card, strength="" if strengths == str(Strength()) else strengths),
        )
        if (model_dir / "args.json").is_file():
            shutil.copy(model_dir / "args.json", folder / "args.json")
        yield WholeModel(folder, loss)


@contextmanager
def folder_at_strength(
    model_dir: Path, strength: Strength, beside: Path, *, models_dir: Path | None = None, token: str | None = None
) -> Iterator[Path]:
    """Yield a step's folder at this strength for an archive: for a LoRA one with its file at this strength."""
    file = lora_file(model_dir)
    if file is None:
        with whole_model(model_dir, strength, beside, models_dir=models_dir, token=token) as whole:
            yield whole.folder
        return
    if strength.is_whole:
        yield model_dir
        return
    with scratch_folder(beside) as folder:
        for entry in ("args.json", "samples"):
            if (model_dir / entry).exists():
                (shutil.copytree if entry == "samples" else shutil.copy)(model_dir / entry, folder / entry)
        card = dataclasses.replace(read_card(str(model_dir)), strength=str(strength))
        (folder / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n", "utf-8")
        convert_lora(model_dir, folder / file.name, strength=strength, models_dir=models_dir, token=token)
        yield folder


def _step_of(model_dir: Path) -> int | None:
    return int(model_dir.name) if model_dir.name.isdecimal() else None


def _dtype_of(model_dir: Path, precision: Precision | None) -> "torch.dtype":
    """Return the number format of the temporary folder."""
    import torch
    from safetensors import safe_open

    file = lora_file(model_dir)
    if file is not None and precision is not None:
        return dtype_of(precision)
    stored = file or next(iter(sorted((model_dir / "unet").glob("*.safetensors"))), None)
    if stored is None:
        return torch.float32
    with safe_open(stored, framework="pt") as weights:
        own: torch.dtype = weights.get_tensor(next(iter(weights.keys()))).dtype
    # bf16 loses up to four fifths of a LoRA's change.
    return torch.float16 if file is not None and own == torch.bfloat16 else own


def _format_loss(merged: Base, file: Path, strength: Strength, dtype: "torch.dtype") -> float:
    """Return |cast(W) - W| over the LoRA's modules, as a share of the norm of its change.

    Raises ExportError if the LoRA changes nothing, or has numbers that are not finite.
    """
    change = lost = 0.0
    for one in fitted(merged, read_lora(file).factors).modules:
        weight = module_of(merged, one.place).weight.detach()
        change += float((strength.of(one.place.part) * one.factors.product()).double().square().sum())
        lost += float((weight.to(dtype).float() - weight).double().square().sum())
    if not math.isfinite(change) or change == 0:
        raise ExportError(
            f'The LoRA "{file.name}" {"changes nothing" if change == 0 else "is damaged"}.',
            "Its change at this strength is zero." if change == 0 else "It holds NaN or infinity.",
            "Choose another strength or step.",
        )
    return math.sqrt(lost / change)
