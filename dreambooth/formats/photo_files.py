"""Names of files in a folder of photos: which are photos, and which are masks."""

import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".heic", ".heif", ".hif")
# As OneTrainer names them: `dog-masklabel.png` is the mask of `dog.jpg`.
MASK_ENDING = "-masklabel.png"


def is_mask_name(name: str) -> bool:
    """Return whether a file of this name is a mask rather than a photo."""
    return name.lower().endswith(MASK_ENDING)


def is_photo_name(name: str) -> bool:
    """Return whether a file of this name counts as a photo."""
    return PurePosixPath(name).suffix.lower() in PHOTO_SUFFIXES and not (name.startswith(".") or is_mask_name(name))


def mask_name(photo: str) -> str:
    """Return the name, or the path, of this photo's mask."""
    path = PurePosixPath(photo)
    return str(path.with_name(path.stem + MASK_ENDING))


def matching_masks(photos: Iterable[str], masks: Iterable[str]) -> dict[str, str]:
    """Return the mask of each photo that has one, by their names or paths.

    A name that differs only in case or in its Unicode form also matches.
    """
    by_key = {name_key(mask): mask for mask in sorted(masks, reverse=True)}
    return {photo: by_key[key] for photo in photos if (key := name_key(mask_name(photo))) in by_key}


def counted_masks(folders: Iterable[Path]) -> tuple[int, int]:
    """Return how many photos of these folders have a mask, and how many have none."""
    masked, unmasked = 0, 0
    for folder in folders:
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        photos = [name for name in names if is_photo_name(name)]
        found = matching_masks(photos, filter(is_mask_name, names))
        masked, unmasked = masked + len(found), unmasked + len(photos) - len(found)
    return masked, unmasked


def name_key(name: str) -> str:
    """Return what names have in common that differ only in case or in their Unicode form, as copies from a Mac do."""
    return unicodedata.normalize("NFC", name).casefold()
