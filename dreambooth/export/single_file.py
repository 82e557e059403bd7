"""A model in one file in the original layout, as other tools open it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import ExportError
from dreambooth.formats.ldm import to_ldm
from dreambooth.workspace import free_bytes, new_file

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("unet", "vae", "text_encoder")
SPARE_BYTES = 64 * 2**20


def convert(
    model_dir: Path,
    out_path: Path,
    *,
    half: bool = False,
    use_safetensors: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the diffusers folder as one `.safetensors` or `.ckpt`, and return the file's path.

    The suffix decides the format unless `use_safetensors` does; `half` stores floats as fp16 and leaves integers.
    Raises ExportError for a folder that is no SD 1.x model and for a disk without room.
    """
    if use_safetensors is None:
        use_safetensors = out_path.suffix == ".safetensors"
    if not use_safetensors and out_path.suffix != ".ckpt":
        raise ExportError(
            f"{out_path.name} is neither .safetensors nor .ckpt.", "The suffix names the format.", "Change the name."
        )
    if use_safetensors and out_path.suffix == ".ckpt":
        out_path = out_path.with_suffix(".safetensors")
    weights = _original_layout(model_dir)
    _check_room(weights, out_path, half)
    total = len(weights)
    for number, name in enumerate(weights):
        tensor = weights[name]
        weights[name] = (tensor.half() if half and tensor.is_floating_point() else tensor).contiguous()
        if on_progress is not None:
            on_progress(number + 1, total)
    with new_file(out_path) as temporary:
        if use_safetensors:
            from safetensors.torch import save_file

            save_file(weights, temporary, metadata={"format": "pt"})
            temporary.chmod(0o644)  # the library leaves it readable by its owner alone
        else:
            import torch

            torch.save({"state_dict": weights}, temporary)
    return out_path


def _original_layout(model_dir: Path) -> "dict[str, Tensor]":
    missing = [part for part in PARTS if not (model_dir / part / "config.json").exists()]
    if missing:
        raise ExportError(
            f"{model_dir} is no complete model.",
            f"It lacks {', '.join(missing)}.",
            "Name a diffusers folder, a run or one of its step folders.",
        )
    try:
        config = json.loads((model_dir / "unet" / "config.json").read_text("utf-8"))
    except ValueError:
        raise ExportError(
            f"{model_dir} is damaged.", "unet/config.json is not readable.", "Save the model again."
        ) from None
    if config.get("use_linear_projection"):
        raise ExportError(
            f"{model_dir} is an SD 2.x model.", "Its one-file layout is another one.", "Keep it as a diffusers folder."
        )
    unet, vae, text_encoder = (_weights_of(model_dir / part) for part in PARTS)
    try:
        return to_ldm(unet, vae, text_encoder)
    except KeyError as error:
        raise ExportError(
            f"{model_dir} is no SD 1.x model.", f"SD 1.x has no tensor {error}.", "Only SD 1.x can be converted here."
        ) from None


def _weights_of(folder: Path) -> "dict[str, Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if file.name in ("diffusion_pytorch_model.safetensors", "model.safetensors")]
    weights: dict[str, Tensor] = {}
    for file in plain or files:
        try:
            weights |= load_file(file)
        except SafetensorError as error:
            raise ExportError(f"{file} is damaged.", str(error)[:200], "Save the model again.") from None
    if not weights:
        raise ExportError(
            f"{folder} has no .safetensors file.", "Its weights are missing or in an old format.",
            "Load and save the model once with diffusers.",
        )  # fmt: skip
    return weights


def _check_room(weights: "dict[str, Tensor]", out_path: Path, half: bool) -> None:
    sizes = (tensor.numel() * (2 if half else tensor.element_size()) for tensor in weights.values())
    needed, free = sum(sizes) + SPARE_BYTES, free_bytes(out_path.absolute().parent)
    if needed > free:
        raise ExportError(
            f"The disk is too full for {out_path.name}.",
            f"It takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free.",
            "Free some space or choose another place.",
        )
