"""How often Pillow decodes each file, and how often what lies in a folder is read."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import ImageFile


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return what counts from now on how often each file is decoded, by its name."""
    counts: Counter[str] = Counter()
    load = ImageFile.ImageFile.load

    def counting(image: Any) -> Any:
        # Decoded once, a picture has no tiles left.
        if image.tile and image.filename:
            counts[Path(image.filename).name] += 1
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    return counts


_reads: dict[Path, Counter[str]] = {}


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if (
        not _reads
        or event not in ("open", "os.listdir", "os.scandir")
        or not isinstance(arguments[0], str | os.PathLike)
    ):
        return
    path = Path(arguments[0])
    for folder, counts in list(_reads.items()):
        if folder in (path, path.parent):
            counts[path.name] += 1


sys.addaudithook(_note)


@contextlib.contextmanager
def counted_reads(folder: Path) -> Iterator[Counter[str]]:
    """Count meanwhile how often the folder is listed, and each file in it opened, by name."""
    _reads[folder] = Counter()
    try:
        yield _reads[folder]
    finally:
        del _reads[folder]
