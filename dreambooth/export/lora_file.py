"""A LoRA in one file, in the dialect that A1111, Forge, ComfyUI, InvokeAI, SD.Next and diffusers open.

Names are those of `formats.lora_keys`. There is one alpha in a file, its largest rank, and each module's own scale is
folded into its up matrix: loaders multiply by alpha / rank, and some of them take the first alpha for all modules.
"""

import hashlib
import json
import math
import re
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.durable import new_file
from dreambooth.errors import ExportError
from dreambooth.export.recipe import file_metadata_of, public_settings
from dreambooth.formats.layout import Layout, layout_of
from dreambooth.formats.lora_keys import ALPHA, DOWN, UP
from dreambooth.formats.safetensors_file import write_safetensors
from dreambooth.models.low_rank import Factors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The name is the word in `<lora:NAME:1>`, where a colon or a comma would end it.
FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.safetensors")
# Where sd-scripts' older hash looks: 64 KiB at 1 MiB.
LEGACY_START, LEGACY_BYTES = 1 << 20, 1 << 16


def refuse_name(path: Path) -> None:
    """Raise ExportError for a file that cannot be a LoRA by its name."""
    if path.suffix == ".ckpt":
        raise ExportError(
            f'"{path.name}" cannot be a LoRA.', "LoRA files are .safetensors.",
            "Name it so, or write a whole model with --as checkpoint.",
        )  # fmt: skip
    if not FILE_NAME.fullmatch(path.name):
        raise ExportError(
            f'"{path.name}" is no name for a LoRA.',
            "It is the word in prompts, <lora:NAME:1>: letters, digits, - and _, then .safetensors.",
            "Choose another name.",
        )


def write_lora(
    path: Path, factors: Mapping[str, Factors], metadata: Mapping[str, str], float_dtype: "torch.dtype"
) -> None:
    """Write the factors, named as in the dialect, with these texts and the hashes of the contents in the header."""
    tensors = _tensors(factors)
    # The older hash is that of a file whose header has only these.
    write_safetensors(path, tensors, {name: text for name, text in metadata.items() if name.startswith("ss_")},
                      float_dtype=float_dtype)  # fmt: skip
    legacy, model = _hashes(path)
    hashes = {"sshs_legacy_hash": legacy, "sshs_model_hash": model, "modelspec.hash_sha256": f"0x{model}"}
    write_safetensors(path, tensors, {**metadata, **hashes}, float_dtype=float_dtype)


def lora_metadata(
    model_dir: Path, name: str, layout: Layout, factors: Mapping[str, Factors], prediction_type: str | None = None
) -> dict[str, str]:
    """Return the texts of the header of a LoRA of this step: no path, no file name but its own, no caption.

    prediction_type: the base's, where no scheduler lies in the step's folder.
    """
    settings = public_settings(model_dir)
    told = file_metadata_of(model_dir, open_clip=layout.open_clip, prediction_type=prediction_type)
    rank = max(one.down.shape[0] for one in factors.values())
    # SD 1.x has projections that are convolutions of one pixel; the dialect counts them as linear.
    has_convolutions = any(math.prod(one.down.shape[2:]) > 1 for one in factors.values())
    convolutions = {"conv_dim": str(rank), "conv_alpha": str(float(rank))} if has_convolutions else {}
    metadata = told | {
        "modelspec.architecture": f"{told['modelspec.architecture']}/lora",
        "modelspec.implementation": "diffusers",
        "ss_v2": str(layout.open_clip),
        "ss_base_model_version": "sd_v2" if layout.open_clip else "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "ss_network_args": json.dumps(convolutions),
        "ss_output_name": name,
        "ss_resolution": told["modelspec.resolution"].replace("x", ","),
    }
    if prompts := trigger_words(model_dir):
        metadata["modelspec.trigger_phrase"] = prompts
    for theirs, ours in (("ss_seed", "seed"), ("ss_learning_rate", "learning_rate")):
        if ours in settings:
            metadata[theirs] = str(settings[ours])
    base = settings.get("pretrained_model_name_or_path", "")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        metadata["ss_sd_model_name"] = str(base)
    return metadata


def trigger_words(model_dir: Path) -> str:
    """Return the instance prompts of a step's run, with commas between them."""
    concepts = public_settings(model_dir).get("concepts", [])
    return ", ".join(str(concept["instance_prompt"]) for concept in concepts if concept.get("instance_prompt"))


def write_sidecars(path: Path, model_dir: Path) -> list[Path]:
    """Write what A1111, Forge and InvokeAI show of a LoRA: NAME.json and, where there is a sample, NAME.png.

    Returns those written; files that are there already are left as they are.
    """
    written = []
    about, picture = path.with_suffix(".json"), path.with_suffix(".png")
    if not about.exists():
        version = "SD2" if layout_of(model_dir).open_clip else "SD1"
        values = {"activation text": trigger_words(model_dir), "preferred weight": 1.0, "sd version": version}
        with new_file(about) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        written.append(about)
    samples = sorted((model_dir / "samples").glob("*.png"))
    if samples and not picture.exists():
        with new_file(picture) as temporary:
            shutil.copyfile(samples[0], temporary)
        written.append(picture)
    return written


def _tensors(factors: Mapping[str, Factors]) -> "dict[str, Tensor]":
    import torch

    alpha = max(one.down.shape[0] for one in factors.values())
    tensors = {}
    for name, one in factors.items():
        tensors[name + DOWN] = one.down.contiguous()
        tensors[name + UP] = (one.up * (one.down.shape[0] / alpha)).contiguous()
        tensors[name + ALPHA] = torch.tensor(float(alpha))
    return tensors


def _hashes(path: Path) -> tuple[str, str]:
    """Return the first 8 digits of the older hash of a file, and the hash of its tensors."""
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        file.seek(8 + header_bytes)
        model = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(LEGACY_START)
        legacy = hashlib.sha256(file.read(LEGACY_BYTES)).hexdigest()[:8]
    return legacy, model
