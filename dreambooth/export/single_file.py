"""A model as one file in the original layout, as other tools open it.

The same model gives the same bytes, whatever the file is called and wherever its folder is.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.device.precision import dtype_of
from dreambooth.durable import new_file, sweep_unfinished_beside
from dreambooth.errors import BaseModelError, ExportError
from dreambooth.events import OnProgress
from dreambooth.export.archive import EXPORT_SUFFIXES
from dreambooth.export.disk_room import refuse_full_disk
from dreambooth.export.recipe import file_metadata_of
from dreambooth.formats.layout import SCHEDULER_CONFIG, Layout, layout_of
from dreambooth.formats.safetensors_file import in_pieces, stored_bytes, stored_dtype, write_safetensors
from dreambooth.models.config_limits import refuse_wrong_configs
from dreambooth.models.family import Family, family_for
from dreambooth.models.weights import part_weights

if TYPE_CHECKING:
    import torch
    from _typeshed import ReadableBuffer
    from torch import Tensor

Precision = Literal["fp16", "fp32"]


@dataclass(frozen=True)
class OriginalModel:
    """A diffusers folder viewed in the original layout; tensors are read from the folder's files on use.

    `parts` are the same tensors under the folder's own names.
    """

    folder: Path
    family: Family
    parts: "dict[str, dict[str, Tensor]]"
    weights: "dict[str, Tensor]"
    expected_names: set[str]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Written:
    """A written file before it gets its name: its source and format."""

    model: OriginalModel
    path: Path
    is_safetensors: bool
    float_dtype: "torch.dtype | None"


def convert(
    model_dir: Path,
    out_path: Path,
    *,
    precision: Precision | None = None,
    use_safetensors: bool | None = None,
    on_progress: OnProgress | None = None,
    check: Callable[[Written], None] | None = None,
) -> Path:
    """Write the diffusers folder as one `.safetensors` or `.ckpt`, and return the file's path.

    The suffix decides the format unless `use_safetensors` does. `precision` is that of the floats, by default the
    folder's; integers stay integers. `check` is called with the written file before it gets its name; if it raises, no
    file is left. Raises ExportError for a folder that is not a Stable Diffusion model and for a full disk.
    """
    out_path, use_safetensors = _checked_target(out_path, use_safetensors)
    sweep_unfinished_beside(out_path, EXPORT_SUFFIXES)
    model = read_model(model_dir)
    float_dtype = float_dtype_of(precision)
    refuse_full_disk(out_path, stored_bytes(model.weights, float_dtype))
    total, done = len(model.weights), 0

    def on_tensor() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    with new_file(out_path) as temporary:
        write = write_safetensors if use_safetensors else _write_ckpt
        write(temporary, model.weights, model.metadata, float_dtype=float_dtype, on_tensor=on_tensor)
        if check is not None:
            check(Written(model, temporary, use_safetensors, float_dtype))
    return out_path


def read_model(model_dir: Path) -> OriginalModel:
    """Return the folder in the original layout; raises ExportError unless its names are exactly its family's.

    Takes almost no memory: tensors are mapped, only the joined matrices of SD 2.x are copies.
    """
    layout = layout_of(model_dir)
    missing = [part.name for part in layout.parts if not (model_dir / part.config_file).exists()]
    if missing:
        raise ExportError(
            f"{model_dir} is not a complete model.",
            f"It lacks {', '.join(missing)}.",
            "Name a diffusers folder, a run or one of its step folders.",
        )
    family, configs = family_for(layout, {}), {part: _config(model_dir, part) for part in layout.part_names}
    try:
        refuse_wrong_configs(model_dir)
        weights = {part: part_weights(model_dir / part) for part in layout.part_names}
    except BaseModelError as error:
        raise ExportError(error.what, error.why, error.todo) from None
    has_scheduler = (model_dir / SCHEDULER_CONFIG).exists()
    scheduler = _config(model_dir, *SCHEDULER_CONFIG.split("/")) if has_scheduler else {}
    try:
        original = family.to_single_file(weights, scheduler)
        expected = family.single_file_names(configs, scheduler)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _no_such_model(model_dir, layout, f"{layout.short_title} has no tensor {error}.") from None
    strange = sorted(original.keys() ^ expected)
    if strange:
        why = f"Missing or not of {layout.short_title}: {', '.join(strange[:3])}."
        raise _no_such_model(model_dir, layout, why)
    return OriginalModel(model_dir, family, weights, original, expected, file_metadata_of(model_dir, layout))


def _config(model_dir: Path, part: str, name: str = "config.json") -> dict[str, Any]:
    try:
        return dict(json.loads((model_dir / part / name).read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        raise ExportError(
            f"{model_dir} is damaged.", f"{part}/{name} is not readable.", "Save the model again."
        ) from None


def _no_such_model(model_dir: Path, layout: Layout, why: str) -> ExportError:
    return ExportError(
        f"{model_dir} is not a complete {layout.short_title} model.", why,
        "Only text-to-image models of Stable Diffusion can be converted here.",
    )  # fmt: skip


def _checked_target(out_path: Path, use_safetensors: bool | None) -> tuple[Path, bool]:
    if use_safetensors is None:
        use_safetensors = out_path.suffix == ".safetensors"
    if not use_safetensors and out_path.suffix != ".ckpt":
        raise ExportError(
            f"{out_path.name} is neither .safetensors nor .ckpt.", "The suffix selects the format.", "Change the name."
        )
    if use_safetensors and out_path.suffix == ".ckpt":
        out_path = out_path.with_suffix(".safetensors")
    return out_path, use_safetensors


def float_dtype_of(precision: Precision | None) -> "torch.dtype | None":
    """Return the number format of stored floats, None for the folder's own."""

    return None if precision is None else dtype_of(precision)


def _write_ckpt(
    path: Path,
    weights: "Mapping[str, Tensor]",
    metadata: Mapping[str, str],
    *,
    float_dtype: "torch.dtype | None" = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write what torch.load reads as {"state_dict": ..., "metadata": ...}.

    All cast tensors are held at once: torch writes them after it has seen them all.
    """
    import torch

    stored: dict[str, Tensor] = {}
    for name in sorted(weights):
        # A view would include its whole storage.
        tensor = weights[name].to(stored_dtype(weights[name], float_dtype)).contiguous()
        stored[name] = tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor
        on_tensor()
    with _InPieces(path, "wb") as file:
        # Given a path, torch would write the file's name into the archive.
        torch.save({"state_dict": stored, "metadata": dict(sorted(metadata.items()))}, file)


class _InPieces(FileIO):
    """A file that writes in pieces what torch passes as whole tensors."""

    def write(self, data: "ReadableBuffer") -> int:
        return sum(super(_InPieces, self).write(piece) for piece in in_pieces(memoryview(data)))
