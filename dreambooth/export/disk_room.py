"""Checks that the disk has room for a file before it is written."""

from pathlib import Path

from dreambooth.durable import free_bytes
from dreambooth.errors import ExportError

SPARE_BYTES = 64 * 2**20


def refuse_full_disk(path: Path, num_bytes: int) -> None:
    """Raise ExportError if the disk of `path` has no room for this many bytes plus a margin."""
    needed, free = num_bytes + SPARE_BYTES, free_bytes(path.absolute().parent)
    if needed > free:
        raise ExportError(
            f"The disk is too full for {path.name}.",
            f"It takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free.",
            "Free some space or choose another place.",
        )
