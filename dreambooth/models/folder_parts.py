"""The parts of a diffusers folder, read as modules in an explicit number format.

transformers 5 would load a part in the format of its file, and diffusers in fp32.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import BaseModelError
from dreambooth.formats.ldm import modern_vae_key, without_text_model
from dreambooth.formats.sdxl_keys import without_prefix
from dreambooth.formats.tensor_names import safetensors_header
from dreambooth.models.sd_file import text_encoder_with
from dreambooth.models.weights import filled, named, only_variant, pickled_weights

if TYPE_CHECKING:
    import torch


def diffusers_part(class_name: str, folder: Path, variant: str | None, *, as_stored: bool = False) -> Any:
    """Load a UNet or VAE, in fp32 or in the format of its file; the library never gets to open a pickle."""
    import diffusers

    kind = getattr(diffusers, class_name)
    variant = variant or only_variant(folder)
    weights = pickled_weights(folder, variant)
    if weights is not None:
        modern = {modern_vae_key(name): tensor for name, tensor in weights.items()}
        config = kind.load_config(folder)
        return filled(lambda: kind.from_config(config), modern, as_stored=as_stored)
    options: dict[str, Any] = {"variant": variant} if variant else {}
    module, report = kind.from_pretrained(
        folder, torch_dtype=_dtype(folder, variant, as_stored=as_stored), use_safetensors=True, local_files_only=True,
        output_loading_info=True, ignore_mismatched_sizes=True, low_cpu_mem_usage=True, **options,
    )  # fmt: skip
    return _complete(module, report, folder.name)


def text_encoder_of(class_name: str, folder: Path, variant: str | None, *, as_stored: bool = False) -> Any:
    """Load a text encoder, in fp32 or in the format of its file."""
    import transformers

    kind = getattr(transformers, class_name)
    variant = variant or only_variant(folder)
    weights = pickled_weights(folder, variant)
    if weights is not None:
        config = transformers.CLIPTextConfig.from_pretrained(folder)
        has_projection = class_name.endswith("WithProjection")
        own = without_prefix(weights) if has_projection else without_text_model(weights)
        return text_encoder_with(config, own, class_name, as_stored=as_stored)
    options: dict[str, Any] = {"variant": variant} if variant else {}
    module, report = kind.from_pretrained(
        folder, dtype=_dtype(folder, variant, as_stored=as_stored), use_safetensors=True, local_files_only=True,
        output_loading_info=True, ignore_mismatched_sizes=True, **options,
    )  # fmt: skip
    return _complete(module, report, folder.name)


def _dtype(folder: Path, variant: str | None, *, as_stored: bool) -> "torch.dtype":
    """Return fp32, or with `as_stored` the half-precision format if all of the part's files are in one."""
    import torch

    infix = f".{variant}" if variant else ""
    headers = [safetensors_header(file) for file in folder.glob(f"*{infix}.safetensors")] if as_stored else []
    found = {str(one.get("dtype")) for header in headers if header is not None for one in header.tensors.values()}
    floats = {name for name in found if "F" in name}
    return torch.float16 if floats == {"F16"} else torch.bfloat16 if floats == {"BF16"} else torch.float32


def _complete(module: Any, report: Mapping[str, Any], part: str) -> Any:
    """Return a part if its file had all of its tensors; the libraries leave missing ones random, or unallocated."""
    wrong = [f"It lacks {named(missing)}." for missing in [sorted(report["missing_keys"])] if missing]
    shapes = [f"{name} is {list(found)} instead of {list(own)}" for name, found, own in report["mismatched_keys"]]
    if shapes:
        wrong.append(f"It has other shapes: {named(sorted(shapes))}.")
    if wrong:
        raise BaseModelError(f"The {part} is not whole.", " ".join(wrong), "Download or save the model again.")
    return module
