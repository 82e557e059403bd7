"""A LoRA's file read: its factors by module, each with alpha / rank in its up matrix."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth.errors import BaseModelError
from dreambooth.formats.lora_keys import ALPHA, DOWN, UP
from dreambooth.models.low_rank import Factors
from dreambooth.models.weights import file_metadata, read_weights


@dataclass(frozen=True)
class LoraFile:
    """What a file holds: fp32 factors by module (named as in `formats.lora_keys`), and the texts of its header."""

    path: Path
    factors: Mapping[str, Factors]
    metadata: Mapping[str, str]

    @property
    def rank(self) -> int:
        """Return the largest rank of a module."""
        return max(one.down.shape[0] for one in self.factors.values())


def read_lora(path: Path) -> LoraFile:
    """Return a file's factors; raises BaseModelError for one that is no LoRA as written here."""
    weights = read_weights(path, is_safetensors=True)
    names = {name.removesuffix(DOWN) for name in weights if name.endswith(DOWN)}
    strange = sorted(weights.keys() ^ {name + end for name in names for end in (DOWN, UP, ALPHA)})
    if strange or not names:
        missing = f"Missing or unknown: {strange[0]}." if strange else "It holds no factors."
        raise BaseModelError(f'"{path.name}" is no LoRA as written here.', missing, "Choose another file.")
    found = {}
    for name in sorted(names):
        down, up = weights[name + DOWN].float(), weights[name + UP].float()
        found[name] = Factors(up * (float(weights[name + ALPHA]) / down.shape[0]), down)
    return LoraFile(path, found, file_metadata(path))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
