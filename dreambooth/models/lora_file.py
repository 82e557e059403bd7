"""Reads LoRA files in all namings of `formats.lora_keys`: factors by module, with alpha / rank in the up matrix.

alpha is the file's own tensor; for diffusers and peft the number in the header, or in adapter_config.json beside the
file; and the rank if nothing says it, as in every loader.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.errors import BaseModelError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.lora_keys import Dialect, Leaf, LoraKey, lora_key
from dreambooth.formats.lora_kinds import EMBEDDING, READ_FAMILIES, has_lora_keys, lora_family, other_adapter
from dreambooth.formats.other_kinds import is_whole_model, kind_of_file
from dreambooth.models.low_rank import Factors
from dreambooth.models.saved_hashes import file_hash
from dreambooth.models.weights import file_metadata, not_finite, read_weights

if TYPE_CHECKING:
    from torch import Tensor

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
TO_MERGE = "Choose a LoRA or LoCon, or merge it into its base with the tool it is for and choose the result."
# Where diffusers stores the settings of its adapters.
ADAPTER_METADATA = "lora_adapter_metadata"
HASH_DIGITS = 12


@dataclass(frozen=True)
class LoraFile:
    """The content of a file: fp32 factors by module (named as in `formats.lora_keys`), and its header's metadata.

    alphas: by module, None if the file has none and the rank is meant; not_used: keys of everything else in the file.
    """

    path: Path
    factors: Mapping[str, Factors]
    metadata: Mapping[str, str]
    dialects: tuple[Dialect, ...] = ("kohya",)
    alphas: Mapping[str, float | None] | None = None
    not_used: tuple[str, ...] = ()
    family: str = ""
    text_width: int | None = None

    @property
    def rank(self) -> int:
        """Return the largest rank of a module."""
        return max(one.down.shape[0] for one in self.factors.values())


def read_lora(path: Path) -> LoraFile:
    """Return a file's factors; raises BaseModelError for anything but a supported LoRA, saying what it is."""
    weights = read_weights(path, is_safetensors=path.suffix.lower() not in PICKLES)
    metadata = file_metadata(path)
    keys = {name: found for name in sorted(weights) if (found := lora_key(name)) is not None}
    _refuse_other_kinds(path, weights, keys)
    modules: dict[str, dict[Leaf, Tensor]] = {}
    for name, key in keys.items():
        modules.setdefault(key.name, {})[key.leaf] = weights[name]
    first = {key.name: key for key in keys.values()}
    settings = _adapter_settings(path, metadata, keys)
    factors, alphas = {}, dict[str, float | None]()
    for name, tensors in sorted(modules.items()):
        up, down = _up_and_down(path, name, tensors)
        try:
            alpha = float(tensors["alpha"]) if "alpha" in tensors else settings.alpha(first[name], len(down))
        except (ValueError, TypeError, AttributeError, RuntimeError, re.error):
            raise _damaged(path, f"The alpha of {name} is not a number.") from None
        factors[name] = Factors(up * ((len(down) if alpha is None else alpha) / len(down)), down)
        alphas[name] = alpha
    _refuse_not_finite(path, factors)
    family, width = lora_family(weights, {name: one.shape for name, one in factors.items()}, metadata)
    dialects = tuple(dict.fromkeys(key.dialect for key in keys.values()))
    not_used = tuple(sorted(weights.keys() - keys.keys()))
    return LoraFile(path, factors, metadata, dialects, alphas, not_used, family, width)


def _refuse_other_kinds(path: Path, weights: "Mapping[str, Tensor]", keys: Mapping[str, LoraKey]) -> None:
    """Raise BaseModelError for a file that is not a LoRA, or one of an unsupported kind or family."""
    if kind := other_adapter(weights):
        raise BaseModelError(f'"{path.name}" is {kind}.', "Only LoRAs of two factors are read here.", TO_MERGE)
    family, _ = lora_family(weights, {}, {})
    if family and family not in READ_FAMILIES and has_lora_keys(weights):
        raise BaseModelError(
            f'"{path.name}" is a LoRA for {family}.', "Only LoRAs for Stable Diffusion 1.x, 2.x and XL are read here.",
            "Choose one that was trained on a model like yours.",
        )  # fmt: skip
    if not keys and not has_lora_keys(weights):
        found = kind_of_file({name: tensor.shape for name, tensor in weights.items()})
        why = "It is a whole model." if is_whole_model(weights) else f"It is {found[0].rstrip(',')}." if found else ""
        raise BaseModelError(f'"{path.name}" is not a LoRA.', why, "Choose a LoRA file.")
    if unknown := [name for name in weights if name not in keys and not EMBEDDING.match(name)]:
        raise BaseModelError(
            f'"{path.name}" is a kind of LoRA that cannot be read here.', f'Not known: "{unknown[0][:100]}".', TO_MERGE
        )  # fmt: skip


def _up_and_down(path: Path, name: str, tensors: "Mapping[Leaf, Tensor]") -> "tuple[Tensor, Tensor]":
    """Return a module's factors, fp32, with the same number of dimensions; a middle one is merged into down."""
    import torch

    if "up" not in tensors or "down" not in tensors:
        raise _damaged(path, f"{name} has one of two factors.")
    up, down = tensors["up"].float(), tensors["down"].float()
    if "mid" in tensors:
        # The change of LyCORIS's Tucker convolution: up (out, r), mid (r, r, height, width), down (r, in).
        mid = tensors["mid"].float()
        if mid.dim() != 4 or mid.shape[:2] != (up.shape[1], len(down)):
            raise _damaged(path, f"The factors of {name} do not fit each other.")
        down = torch.einsum("abhw,bi->aihw", mid, down.flatten(1))
    if up.dim() < 2 or down.dim() < 2 or up.shape[1] != len(down) or math.prod(up.shape[2:]) != 1 or not up.numel():
        raise _damaged(path, f"The factors of {name} do not fit each other.")
    return (up.flatten(1) if down.dim() == 2 else up.flatten(1)[..., None, None]), down


def _refuse_not_finite(path: Path, factors: Mapping[str, Factors]) -> None:
    for side in ("up", "down"):
        if name := not_finite({name: getattr(one, side) for name, one in factors.items()}):
            raise _damaged(path, f"{name} holds numbers that are not finite (NaN or infinity).")


def _damaged(path: Path, why: str) -> BaseModelError:
    return BaseModelError(f'The LoRA "{path.name}" is damaged.', why, "Download it again, or choose another file.")


# What diffusers and peft say of alpha --------------------------------------------------------------------------------


class _AdapterSettings:
    """The settings of peft's adapters, by part."""

    def __init__(self, by_part: Mapping[str, Mapping[str, Any]]) -> None:
        self._by_part = by_part

    def alpha(self, key: LoraKey, rank: int) -> float | None:
        """Return a module's alpha in these settings, None if they do not say; raises ValueError and similar."""
        settings = self._by_part.get(key.part, {})
        if not settings:
            return None
        patterns: Mapping[str, Any] = settings.get("alpha_pattern") or {}
        # As peft looks them up.
        found = next((value for one, value in patterns.items() if re.match(rf"(.*\.)?({one})$", key.path)), None)
        alpha = settings.get("lora_alpha") if found is None else found
        if alpha is None:
            return None
        return float(alpha) * (math.sqrt(rank) if settings.get("use_rslora") else 1.0)


def _adapter_settings(path: Path, metadata: Mapping[str, str], keys: Mapping[str, LoraKey]) -> _AdapterSettings:
    """Return the settings of the adapters in the header or, for peft's own files, in the file beside it."""
    parts = sorted({key.part for key in keys.values()})
    if any(key.dialect == "peft" for key in keys.values()):
        try:
            return _AdapterSettings(dict.fromkeys(parts, read_object(path.with_name("adapter_config.json"))))
        except (OSError, ValueError):
            raise BaseModelError(
                f'The scale of the LoRA "{path.name}" is not known.',
                "peft writes it into adapter_config.json, which is not beside the file.", "Put it there.",
            ) from None  # fmt: skip
    try:
        values = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        return _AdapterSettings({
            part: {key.removeprefix(f"{part}."): value for key, value in values.items() if key.startswith(f"{part}.")}
            for part in parts
        })  # fmt: skip
    except (ValueError, AttributeError, RecursionError):
        raise _damaged(path, f"Its header's {ADAPTER_METADATA} cannot be read.") from None


# Identity ------------------------------------------------------------------------------------------------------------


def tensors_hash(path: Path) -> str:
    """Return the SHA-256 of what follows the header, by which other tools identify a LoRA; of other files, all of it.

    sd-scripts calls it `sshs_model_hash`, and Civitai AutoV3. Cached until the file changes.
    """
    stat = path.stat()
    return _tensors_hash(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(256)
def _tensors_hash(path: Path, mtime_ns: int, num_bytes: int) -> str:
    if path.suffix.lower() in PICKLES:
        return file_hash(path)
    with path.open("rb") as file:
        length = file.read(8)
        if len(length) < 8 or (header_bytes := struct.unpack("<Q", length)[0]) > num_bytes - 8:
            raise _damaged(path, "It has no header.")
        file.seek(8 + header_bytes)
        return hashlib.file_digest(file, "sha256").hexdigest()
