"""Tensor names and shapes of a weights file, from its header or pickle, without loading or running anything."""

import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MAX_HEADER_BYTES = 100 * 2**20
# A checkpoint from before torch 1.6 is several consecutive pickles: the tensors' names are in the fourth.
NUM_OLD_PICKLES = 4
# What pickle and archive readers raise for invalid data, depending on where it goes wrong.
_BROKEN = (
    OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, OverflowError, RecursionError,
    NotImplementedError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class SafetensorsHeader:
    """The header of a .safetensors file: its size in bytes, length field included, and its tensors by name."""

    num_bytes: int
    tensors: Mapping[str, Any]


def safetensors_header(path: Path) -> SafetensorsHeader | None:
    """Return the header of a .safetensors file; None for a file that has none."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                return None
            text = file.read(length)
        if len(text) < length or not text.startswith(b"{"):
            return None
        tensors = dict(json.loads(text))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    tensors.pop("__metadata__", None)
    return SafetensorsHeader(8 + length, tensors)


def pickled_names(path: Path) -> set[str] | None:
    """Return every string in a checkpoint's pickle, including the names of its tensors; None if it cannot be read."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return set[str]().union(*(_texts(file) for _ in range(NUM_OLD_PICKLES)))
        with zipfile.ZipFile(path) as archive:
            entry = next((info for info in archive.infolist() if info.filename.endswith("data.pkl")), None)
            # torch stores it uncompressed: a compressed entry is no checkpoint.
            if entry is None or entry.file_size > max(entry.compress_size, 1):
                return None
            with archive.open(entry) as pickled:
                return _texts(pickled)
    except _BROKEN:
        return None


def _texts(file: IO[bytes]) -> set[str]:
    return {argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str)}
