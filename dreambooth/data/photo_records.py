"""Records about photos: names, notes on their files, and the photo reader a run began with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth.data.photos import PHOTO_READER, shown
from dreambooth.durable import write_json
from dreambooth.formats.json_file import read_object

RECORDS_FILE = "photos.json"
MAX_RECORDS_BYTES = 4 * 1024**2
MAX_NAME_CHARS = 100


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the name and notes of each stored photo, by file; empty if the records cannot be read."""
    try:
        records = read_object(folder / RECORDS_FILE, MAX_RECORDS_BYTES)
    except (OSError, ValueError):
        return {}
    return {name: {"name": one["name"], "notes": one["notes"]} for name, one in records.items() if _is_record(one)}


def add_records(folder: Path, new: Mapping[str, Mapping[str, Any]]) -> None:
    """Add these records to the existing ones."""
    write_json(folder / RECORDS_FILE, {**read_records(folder), **new})


def record(name: str, notes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the record of a photo uploaded under this name."""
    return {"name": name[:MAX_NAME_CHARS], "notes": list(notes)}


def known_name(photo: Path, records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the name by which the user knows the photo, safe for a message."""
    return shown(Path(str(records.get(photo.name, {}).get("name") or photo.name)))


def write_reader(file: Path) -> None:
    """Record that a run began with the current photo reader."""
    write_json(file, {"version": PHOTO_READER})


def recorded_reader(file: Path) -> int:
    """Return the photo reader a run began with: the first one if its records do not say."""
    try:
        version = read_object(file).get("version")
    except (OSError, ValueError):
        return 1
    return version if isinstance(version, int) and version in range(1, PHOTO_READER + 1) else 1


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("notes"), list)
        and all(isinstance(note, str) for note in value["notes"])
    )
