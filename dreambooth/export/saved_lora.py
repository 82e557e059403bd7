"""A LoRA step as a file for other tools: written under its new name, read back and checked."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.device.precision import dtype_of
from dreambooth.durable import new_file, sweep_unfinished_beside
from dreambooth.errors import ExportError
from dreambooth.export.archive import EXPORT_SUFFIXES
from dreambooth.export.disk_room import refuse_full_disk
from dreambooth.export.lora_file import (
    lora_bytes,
    refuse_name,
    refuse_wrong_file,
    write_lora,
    write_sidecars,
)
from dreambooth.export.lora_metadata import NUM_PHOTOS, lora_metadata
from dreambooth.export.recipe import public_settings
from dreambooth.export.single_file import Precision
from dreambooth.formats.layout import cached_folder, layout_of, lora_file
from dreambooth.formats.lora_keys import lora_modules, part_of
from dreambooth.formats.tensor_names import safetensors_header
from dreambooth.models.base import local_base, read_card
from dreambooth.models.lora_file import read_lora
from dreambooth.models.low_rank import Factors
from dreambooth.models.saved_hashes import refuse_changed
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.models.weights import file_metadata

if TYPE_CHECKING:
    import torch

Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]


@dataclass(frozen=True)
class SavedLoraVerdict:
    """The result of writing a step's LoRA and reading it back.

    counted: whether the step has every module that its base has for its targets, unknown if the base is not on this
    machine; left_out: the parts whose strength is 0; error: the distance of its change from the step's, as a share of
    that; sidecars: the files written beside it.
    """

    path: Path
    num_modules: int
    counted: bool
    rank: int
    num_bytes: int
    left_out: tuple[str, ...]
    error: float
    sidecars: tuple[Path, ...]

    def __str__(self) -> str:
        counted = "all that its base has for these targets"
        if not self.counted:
            counted = "all that the step has; its base is not on this machine to count them"
        size = f"rank {self.rank}, {self.num_bytes / 1e6:.1f} MB"
        lines = [
            f"Verified: a LoRA of {self.num_modules} modules, {counted}, {size}.",
            f"Rounding changed it by {self.error:.1g} of what was learned."
            if self.error
            else "It is exactly the run's.",
        ]
        lines += [f"The {part.replace('_', ' ')} is not in it: its strength is 0." for part in self.left_out]
        lines += [f"Also written: {file.name}" for file in self.sidecars]
        return "\n".join(lines)


def convert_lora(
    model_dir: Path,
    out_path: Path,
    *,
    precision: Precision | None = None,
    strength: Strength = WHOLE,
    base: str | None = None,
    models_dir: Path | None = None,
    token: str | None = None,
) -> SavedLoraVerdict:
    """Write a step's LoRA under another name, read it back, and return the result.

    The strengths are folded into the up matrices; `precision` defaults to the step's own. base: the model whose modules
    are counted, by default the step's own if it is on this machine. Raises ExportError for a name that no LoRA can
    have, a damaged step, missing modules, numbers that are not finite or all zero, and a full disk; BaseModelError for
    a named base that does not exist.
    """
    refuse_name(out_path)
    sweep_unfinished_beside(out_path, EXPORT_SUFFIXES)
    refuse_changed(model_dir, error=ExportError)
    file = lora_file(model_dir)
    assert file is not None, "the step is a LoRA"
    factors = read_lora(file).factors
    counted = _refuse_incomplete(model_dir, factors, base, models_dir, token)
    wanted = {name: _scaled(one, strength.of(part_of(name))) for name, one in factors.items()}
    layout = layout_of(model_dir)
    left_out = tuple(part for part in layout.learning_parts if not strength.of(part))
    wanted = {name: one for name, one in wanted.items() if part_of(name) not in left_out}
    if not wanted:
        raise ExportError("The file would be empty.", "Its strength is 0.", "Choose a strength above 0.")
    dtype = _dtype_of(file, precision)
    metadata = file_metadata(file)
    prediction = "v_prediction" if metadata.get("modelspec.prediction_type") == "v" else "epsilon"
    photos = metadata.get(NUM_PHOTOS, "")
    metadata = lora_metadata(
        model_dir, out_path.stem, layout, wanted, prediction, int(photos) if photos.isdecimal() else None
    )
    refuse_full_disk(out_path, lora_bytes(wanted, dtype, layout))
    with new_file(out_path) as temporary:
        write_lora(temporary, wanted, metadata, dtype, layout)
        error = refuse_wrong_file(temporary, wanted, dtype, layout)
        num_bytes = temporary.stat().st_size
    return SavedLoraVerdict(
        path=out_path,
        num_modules=len(wanted),
        counted=counted,
        rank=max(one.down.shape[0] for one in wanted.values()),
        num_bytes=num_bytes,
        left_out=tuple(part for part in left_out if any(part_of(name) == part for name in factors)),
        error=error,
        sidecars=tuple(write_sidecars(out_path, model_dir)),
    )


def _scaled(one: Factors, amount: float) -> Factors:
    return Factors(one.up * amount, one.down)


def _dtype_of(file: Path, precision: Precision | None) -> "torch.dtype":
    from safetensors import safe_open

    if precision is not None:
        return dtype_of(precision)
    with safe_open(file, framework="pt") as weights:
        own: torch.dtype = weights.get_tensor(next(iter(weights.keys()))).dtype
    return own


# The modules that are to be there ------------------------------------------------------------------------------------


def _refuse_incomplete(
    model_dir: Path, factors: Mapping[str, Factors], base: str | None, models_dir: Path | None, token: str | None
) -> bool:
    """Return whether the step is known to have exactly the modules its base has for the training's targets.

    Raises ExportError if a module is missing, additional, or of another shape.
    """
    shapes = _shapes_of_base(model_dir, base, models_dir, token)
    settings = public_settings(model_dir)
    if shapes is None or "lora_targets" not in settings:
        return False
    parts = {part: named for part, named in shapes.items() if part == "unet" or settings.get("train_text_encoder")}
    targets, unseen = settings["lora_targets"], layout_of(model_dir).unseen_layers
    # Earlier versions had factors for layers that affect no image: these never learned.
    allowed = {one.name: shapes[one.part][one.weight] for one in lora_modules(parts, targets)}
    expected = {one.name: shapes[one.part][one.weight] for one in lora_modules(parts, targets, unseen)}
    found = {name: tuple(one.shape) for name, one in factors.items()}
    expected |= {name: allowed[name] for name in found.keys() & allowed.keys()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise ExportError(
            f'The LoRA in "{model_dir}" does not have the modules of its base.',
            f"{len(wrong)} are missing, unknown or of another shape, such as {wrong[0]}.",
            "Use another step, or give the base model with --base.",
        )  # fmt: skip
    return True


def _shapes_of_base(model_dir: Path, base: str | None, models_dir: Path | None, token: str | None) -> Shapes | None:
    """Return the shapes of the weights that can be trained, by part and name; None if the base is not at hand."""
    parts = layout_of(model_dir).learning_parts
    if base is not None:
        loaded = load(ModelSource(str(model_dir), base=base), models_dir=models_dir, token=token)
        return {part: {name: tuple(one.shape) for name, one in getattr(loaded, part).state_dict().items()}
                for part in parts}  # fmt: skip
    about = read_card(str(model_dir)).lora
    folder = local_base(about.base, models_dir) if about is not None and about.base else None
    if about is not None and folder is None:
        folder = _cached(about.base)
    if folder is None or not folder.is_dir():
        return None
    headers = {part: [safetensors_header(file) for file in (folder / part).glob("*.safetensors")] for part in parts}
    if not all(headers.values()):
        return None
    shapes: dict[str, dict[str, tuple[int, ...]]] = {part: {} for part in parts}
    for part, found in headers.items():
        for header in found:
            shapes[part] |= {name: tuple(one["shape"]) for name, one in (header.tensors if header else {}).items()}
    return shapes


def _cached(repository: str) -> Path | None:
    try:
        return cached_folder(repository)
    except (ValueError, OSError):
        return None
