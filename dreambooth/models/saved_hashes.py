"""SHA-256 hashes of a saved step's weights when they were written, by file, in the run's records.

They are compared whenever the files are read completely anyway, so that a bit flipped by a disk or a copy is reported.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dreambooth.durable import write_json
from dreambooth.errors import BaseModelError, DreamBoothError
from dreambooth.formats.json_file import read_object
from dreambooth.records.workspace import STEP_NAME, RunFolder


def write_hashes(run: RunFolder, step: int, folder: Path) -> None:
    """Store the hashes of the weights in this folder, which will become the step's."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")])
    write_json(run.hashes_path(step), {file.relative_to(folder).as_posix(): file_hash(file) for file in files})


def known_hashes(folder: Path) -> dict[str, str]:
    """Return the hashes by name in the folder; empty for a folder that is not a saved step, or an old one."""
    place = folder.absolute()
    if not STEP_NAME.fullmatch(place.name):
        return {}
    try:
        known = read_object(RunFolder(place.parent).hashes_path(int(place.name)))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in known.items() if isinstance(value, str)}


def refuse_changed(folder: Path, *, error: type[DreamBoothError] = BaseModelError) -> None:
    """Raise this error naming a weights file that differs from what was saved.

    Reads the files once, which leaves them in the system's cache, at a second for each gigabyte or two.
    """
    known = {name: value for name, value in known_hashes(folder).items() if (folder / name).is_file()}
    # The UNet alone is four fifths of a model, so more threads would not help.
    with ThreadPoolExecutor(2) as beside:
        found = dict(zip(known, beside.map(lambda name: file_hash(folder / name), known), strict=True))
    for name, value in found.items():
        refuse_other_hash(folder, name, value, error=error)


def refuse_other_hash(folder: Path, name: str, found: str, *, error: type[DreamBoothError] = BaseModelError) -> None:
    """Raise this error if the hash differs from the one with which the file was saved."""
    known = known_hashes(folder)
    if name in known and known[name] != found:
        raise error(
            f'"{folder / name}" is damaged.',
            "Its contents differ from what was saved: a bit flipped, or the file was changed.",
            f"Use another step, or delete .run/hashes/{folder.absolute().name}.json if you changed the file yourself.",
        )


def file_hash(file: Path) -> str:
    """Return the SHA-256 of a file's contents."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
