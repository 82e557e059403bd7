"""Photos that were removed from a set: stored for an hour with everything that belongs to them, to be restored."""

import contextlib
import time
from dataclasses import asdict
from pathlib import Path

from dreambooth.data.captions import CAPTION_SUFFIX
from dreambooth.data.focus import Focus, keep_focus, read_focus
from dreambooth.data.photo_records import RECORDS_FILE, read_records
from dreambooth.durable import remove_folder, write_json
from dreambooth.errors import PhotoError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.photo_files import mask_name

SUFFIX = ".removed"
KEPT_S = 3600.0


def removed_folder(folder: Path) -> Path:
    """Return the folder of the photos removed from a set."""
    return folder.with_name(f".{folder.name}{SUFFIX}")


def set_aside(photo: Path) -> None:
    """Move a photo out of its set, with its caption, its crop, its mask and its position."""
    folder, aside, name = photo.parent, removed_folder(photo.parent), photo.name
    forget_removed(folder)
    focuses, records = _focuses(folder), read_records(folder)
    focus, place = focuses.pop(name, None), list(records).index(name) if name in records else len(records)
    known = {"focus": asdict(focus) if focus else None, "record": records.pop(name, None), "place": place}
    aside.mkdir(exist_ok=True)
    write_json(aside / f"{name}.json", known)
    for file in (*_beside(photo), photo):
        if file.exists():
            file.replace(aside / file.name)
    if focus:
        keep_focus(folder, focuses)
    if known["record"]:
        write_json(folder / RECORDS_FILE, records)


def bring_back(folder: Path, name: str) -> Path:
    """Restore a removed photo to its set, and return it; raises PhotoError if it was permanently deleted."""
    aside, note = removed_folder(folder), removed_folder(folder) / f"{name}.json"
    if name not in _names(aside) or note.name not in _names(aside):
        raise PhotoError("That photo cannot be brought back.", "It was deleted for good.", "Drop it again.")
    known = read_object(note)
    folder.mkdir(exist_ok=True)
    for file in (*_beside(Path(name)), Path(name)):
        if file.name in _names(aside):
            (aside / file.name).replace(folder / file.name)
    if known["focus"]:
        keep_focus(folder, _focuses(folder) | {name: Focus(**known["focus"])})
    if known["record"]:
        records = list(read_records(folder).items())
        records.insert(int(known["place"]), (name, known["record"]))
        write_json(folder / RECORDS_FILE, dict(records))
    note.unlink()
    return folder / name


def forget_removed(folder: Path, kept_s: float = KEPT_S) -> None:
    """Delete what was removed from a set longer ago than that."""
    aside = removed_folder(folder)
    for note in sorted(aside.glob("*.json")) if aside.is_dir() else []:
        if time.time() - note.stat().st_mtime > kept_s:
            for file in (aside / note.stem, *_beside(aside / note.stem), note):
                file.unlink(missing_ok=True)
    if aside.is_dir() and not any(aside.iterdir()):
        remove_folder(aside)


def forget_all_removed(datasets_dir: Path, kept_s: float = KEPT_S) -> None:
    """Delete what was removed from any set longer ago than that."""
    for aside in datasets_dir.glob(f".*{SUFFIX}"):
        forget_removed(aside.with_name(aside.name[1 : -len(SUFFIX)]), kept_s)


def _beside(photo: Path) -> tuple[Path, Path]:
    """Return the caption and mask files of a photo."""
    return photo.with_suffix(CAPTION_SUFFIX), photo.with_name(mask_name(photo.name))


def _names(aside: Path) -> set[str]:
    return {path.name for path in aside.iterdir()} if aside.is_dir() else set()


def _focuses(folder: Path) -> dict[str, Focus]:
    with contextlib.suppress(PhotoError):  # a file that cannot be read counts as none
        return read_focus(folder)
    return {}
