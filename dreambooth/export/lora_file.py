"""A LoRA as one file, in the format that A1111, Forge, ComfyUI, InvokeAI, SD.Next and diffusers open.

Names are those of `formats.lora_keys`. A file has one alpha, its largest rank, and each module's own scale is folded
into its up matrix: loaders multiply by alpha / rank, and some use the first alpha for all modules.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.durable import new_file
from dreambooth.errors import ExportError
from dreambooth.export.lora_metadata import trigger_words
from dreambooth.formats.layout import Layout, layout_of
from dreambooth.formats.lora_keys import ALPHA, DOWN, UP
from dreambooth.formats.natural_order import in_natural_order
from dreambooth.formats.safetensors_file import same_bits, stored_bytes, write_safetensors
from dreambooth.models.lora_file import read_lora, tensors_hash
from dreambooth.models.low_rank import Factors
from dreambooth.models.weights import not_finite, read_weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The name is the word in `<lora:NAME:1>`, which a colon or a comma would end.
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
# The header's size per module: three tensors with names, shapes and offsets.
HEADER_BYTES_PER_MODULE = 480
# What sd-scripts' older hash covers: 64 KiB at 1 MiB.
LEGACY_START, LEGACY_BYTES = 1 << 20, 1 << 16


def refuse_name(path: Path) -> None:
    """Raise ExportError for a file name that a LoRA cannot have."""
    if path.suffix == ".ckpt":
        raise ExportError(
            f'"{path.name}" cannot be a LoRA.', "LoRA files are .safetensors.",
            "Use that suffix, or write a whole model with --as checkpoint.",
        )  # fmt: skip
    if not FILE_NAME.fullmatch(path.name):
        raise ExportError(
            f'"{path.name}" is not a name for a LoRA.',
            "The name is used in prompts, as in <lora:NAME:1>: use letters, digits, - and _, then .safetensors.",
            "Choose another name.",
        )


def write_lora(
    path: Path, factors: Mapping[str, Factors], metadata: Mapping[str, str], float_dtype: "torch.dtype", layout: Layout
) -> None:
    """Write the factors, by module, with these metadata and the hashes of the contents in the header."""
    tensors = _tensors(factors, layout)
    # The older hash is that of a file with only these in the header.
    write_safetensors(path, tensors, {name: text for name, text in metadata.items() if name.startswith("ss_")},
                      float_dtype=float_dtype)  # fmt: skip
    model = tensors_hash(path)
    hashes = {"sshs_legacy_hash": _legacy_hash(path), "sshs_model_hash": model, "modelspec.hash_sha256": f"0x{model}"}
    write_safetensors(path, tensors, {**metadata, **hashes}, float_dtype=float_dtype)


def lora_bytes(factors: Mapping[str, Factors], float_dtype: "torch.dtype", layout: Layout) -> int:
    """Return the approximate size of a file with these factors."""
    return stored_bytes(_tensors(factors, layout), float_dtype) + HEADER_BYTES_PER_MODULE * len(factors)


def refuse_wrong_file(path: Path, factors: Mapping[str, Factors], float_dtype: "torch.dtype", layout: Layout) -> float:
    """Return how far the changes in a file are from those of the factors, as a share of the total norm.

    Raises ExportError unless the file has every module with the factors' numbers as rounded to this format, all finite,
    and changes every weight they change.
    """
    stored, expected = read_weights(path, is_safetensors=True), _tensors(factors, layout)
    wrong = sorted(stored.keys() ^ expected.keys()) or [
        name for name, tensor in expected.items() if not same_bits(tensor.to(float_dtype), stored[name])
    ]
    if wrong:
        raise ExportError(
            "The written file is not the run's LoRA.", f"{wrong[0]} is missing, unknown or different.",
            "A failing disk, or a bug here: try another folder, or report it.",
        )  # fmt: skip
    if name := not_finite(stored):
        raise ExportError(
            "This LoRA cannot be written.", f"Numbers of {name} are not finite, or too large for this number format.",
            "Write it with --precision fp32, or choose an earlier step.",
        )  # fmt: skip
    written, total, lacking = read_lora(path).factors, 0.0, 0.0
    for name, one in factors.items():
        change, again = one.product().double(), written[name].product().double()
        total += float(change.square().sum())
        lacking += float((again - change).square().sum())
        if change.any() and not again.any():
            raise ExportError(
                "This LoRA cannot be written.", f"The change of {name} is zero in this number format.",
                "Write it with --precision fp32.",
            )  # fmt: skip
    if not total:
        raise ExportError("This LoRA changes nothing.", "All its factors are zero.", "Choose a later step.")
    return math.sqrt(lacking / total)


def write_sidecars(path: Path, model_dir: Path) -> list[Path]:
    """Write the files beside a LoRA (see `sidecars`).

    Returns those written; existing files are not replaced.
    """
    written = []
    for name, content in sidecars(path.stem, model_dir).items():
        file = path.with_name(name)
        if not file.exists():
            with new_file(file) as temporary:
                temporary.write_bytes(content)
            written.append(file)
    return written


def sidecars(name: str, model_dir: Path) -> dict[str, bytes]:
    """Return what A1111, Forge and InvokeAI show of a LoRA: NAME.json and, if there is a sample, NAME.png."""
    version = layout_of(model_dir).short_title.replace(" ", "").removesuffix(".x")
    about = {"activation text": trigger_words(model_dir), "preferred weight": 1.0, "sd version": version}
    found = {f"{name}.json": (json.dumps(about, indent=2) + "\n").encode()}
    samples = in_natural_order((model_dir / "samples").glob("*.png"), lambda file: file.name)
    return found | ({f"{name}.png": samples[0].read_bytes()} if samples else {})


def _tensors(factors: Mapping[str, Factors], layout: Layout) -> "dict[str, Tensor]":
    """Return the tensors by their names in the file."""
    import torch

    alpha = max(one.down.shape[0] for one in factors.values())
    tensors = {}
    for module, one in factors.items():
        name = layout.lora_name(module)
        tensors[name + DOWN] = one.down.contiguous()
        tensors[name + UP] = (one.up * (one.down.shape[0] / alpha)).contiguous()
        tensors[name + ALPHA] = torch.tensor(float(alpha))
    return tensors


def _legacy_hash(path: Path) -> str:
    """Return the first 8 digits of sd-scripts' older file hash."""
    with path.open("rb") as file:
        file.seek(LEGACY_START)
        return hashlib.sha256(file.read(LEGACY_BYTES)).hexdigest()[:8]
