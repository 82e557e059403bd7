"""Warnings about a run's concepts before it starts: they do not stop it, but the result would be worse."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dreambooth.config.concepts import Concept
from dreambooth.data.findings import HARMLESS, Finding, findings, measure
from dreambooth.data.focus import Focus, focus_of_photos, read_focus
from dreambooth.data.masks import mask_notices
from dreambooth.data.photo_records import known_name, read_records
from dreambooth.data.photos import find_photos, read_photo
from dreambooth.errors import PhotoError

MAX_NAMED = 5
# Each photo is compared with all before it.
MAX_MEASURED = 200


def concept_notices(concepts: Sequence[Concept], background_weight: float = 1.0) -> list[str]:
    """Return a sentence for each folder used twice, prompt that names no subject, and duplicate photo.

    With the background's weight, also on masks without effect, and on masks without a photo.
    """
    notices: list[str] = []
    folders: dict[Path, int] = {}
    for number, concept in enumerate(concepts, 1):
        first = folders.setdefault(Path(concept.instance_data_dir).resolve(), number)
        if first != number:
            folder = concept.instance_data_dir
            notices.append(f'Concepts {first} and {number} have the same photos: both read "{folder}".')
        if _words(concept.instance_prompt) == _words(concept.class_prompt or ""):
            notices.append(
                f'"{concept.instance_prompt}" is both the instance prompt and the class prompt: the subject gets no '
                "name of its own. Add an identifier to the instance prompt."
            )
    return notices + _same_photos(list(folders)) + mask_notices(list(folders), background_weight)


def _words(prompt: str) -> list[str]:
    return prompt.casefold().split()


def _same_photos(folders: Sequence[Path]) -> list[str]:
    """Return a sentence for the photos whose files have the same content as an earlier one."""
    first: dict[str, str] = {}
    pairs = []
    for folder in folders:
        records = read_records(folder)
        for photo in _photos(folder):
            name = known_name(photo, records) + (f" in {folder.name}" if len(folders) > 1 else "")
            try:
                with photo.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError:
                continue  # the training names it
            if first.setdefault(digest, name) != name:
                pairs.append(f'"{name}" is the same file as "{first[digest]}"')
    if not pairs:
        return []
    more = f", and {len(pairs) - MAX_NAMED} more" if len(pairs) > MAX_NAMED else ""
    return [f"Some photos are duplicates and count twice: {'; '.join(pairs[:MAX_NAMED])}{more}."]


def photo_findings(concepts: Sequence[Concept], resolution_px: int, *, buckets: bool = False) -> list[str]:
    """Return a sentence for each finding about a photo that affects training, as the page's cards show it.

    A photo without a chosen crop is measured on its centre crop. Unreadable photos are reported by the training itself.
    With `buckets` no aspect ratio is a finding, because nothing is cropped to a square.
    """
    notices = []
    ignored = {*HARMLESS, "aspect"} if buckets else HARMLESS
    for folder in dict.fromkeys(Path(concept.instance_data_dir) for concept in concepts):
        there = _photos(folder)
        photos = {photo.name: photo for photo in there[:MAX_MEASURED]}
        records = read_records(folder)
        for name, found in _found(folder, photos, resolution_px).items():
            sentences = " ".join(_named(one, photos, records) for one in found if one.code not in ignored)
            if sentences:
                notices.append(f"{known_name(photos[name], records)}: {sentences}")
        if len(there) > MAX_MEASURED:
            notices.append(f"Only the first {MAX_MEASURED} of the {len(there)} photos in {folder} were checked.")
    return notices


def _found(folder: Path, photos: dict[str, Path], resolution_px: int) -> dict[str, list[Finding]]:
    try:
        focuses, _ = focus_of_photos(read_focus(folder), photos)
    except PhotoError:
        focuses = {}
    measures = {}
    for name, photo in photos.items():
        try:
            measures[name] = measure(read_photo(photo).image, focuses.get(name, Focus()), resolution_px)
        except PhotoError:
            continue
    return findings(measures, resolution_px)


def _named(one: Finding, photos: dict[str, Path], records: dict[str, dict[str, object]]) -> str:
    """Return the finding with the other photo's name: cards show numbers, a terminal names."""
    if not one.other:
        return one.sentence
    return f'It is nearly the same picture as "{known_name(photos[one.other], records)}": keep the better one.'


def _photos(folder: Path) -> list[Path]:
    try:
        return find_photos(folder).photos
    except (PhotoError, OSError):
        return []  # the training says so
