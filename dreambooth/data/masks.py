"""Masks painted over photos: a grey image beside each, white for the subject and black for the background.

A mask has the shape of its upright photo, and is cropped, mirrored and resized exactly as the photo is.
"""

import contextlib
import dataclasses
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config.training import TrainingConfig
from dreambooth.data.focus import saliency
from dreambooth.data.photos import read_photo, shown
from dreambooth.durable import new_file
from dreambooth.errors import PhotoError
from dreambooth.formats.photo_files import counted_masks, is_mask_name, is_photo_name, mask_name, matching_masks
from dreambooth.formats.text_files import printable

if TYPE_CHECKING:
    from PIL import Image

# Of the background, once a mask is painted: what OneTrainer begins with.
MASKED_WEIGHT = 0.1
MAX_NAMED = 5
GUESS_PX = 96
GUESSED_SHARE = 0.5  # of the most that a place seems to matter
NAMING = 'The mask of "dog.jpg" is named "dog-masklabel.png".'


def mask_files(photos: Sequence[Path]) -> dict[Path, Path]:
    """Return the mask beside each of these photos that has one."""
    folders = {photo.parent for photo in photos}
    masks = {str(file): file for folder in folders for file in folder.iterdir() if is_mask_name(file.name)}
    found = matching_masks(map(str, photos), masks)
    return {photo: masks[found[str(photo)]] for photo in photos if str(photo) in found}


def checked_masks(photos: Mapping[Path, tuple[int, int]]) -> dict[Path, Path]:
    """Return the mask of each photo that has one; raises PhotoError for one that cannot be used.

    photos: with their upright (width, height).
    """
    found = mask_files(list(photos))
    for photo, mask in found.items():
        read_mask(mask, photos[photo])
    return found


def read_mask(file: Path, size: tuple[int, int]) -> "Image.Image":
    """Return the mask for a photo of this (width, height), grey; raises PhotoError for an unusable one."""
    photo = read_photo(file)
    name = f'The mask "{shown(file)}"'
    if any("transparent" in note for note in photo.notes):
        raise PhotoError(f"{name} is transparent in places.", "It must be black and white.", "Fill it with black.")
    width, height = photo.image.size
    # One that was made smaller has its sides rounded.
    if abs(width - size[0] * height / size[1]) > 1 and abs(height - size[1] * width / size[0]) > 1:
        raise PhotoError(
            f"{name} has another shape than its photo.",
            f"It has {width} x {height} pixels, and the upright photo {size[0]} x {size[1]}.", "Paint it again.",
        )  # fmt: skip
    grey = photo.image.convert("L")
    if grey.getextrema() == (0, 0):
        raise PhotoError(f"{name} is all black.", "Nothing is painted as the subject.", "Paint the subject white.")
    return grey


def mask_beside(photo: Path) -> Path | None:
    """Return the mask of a photo of a set, if it has one."""
    file = _file_of(photo)
    return file if file.is_file() else None


def write_mask(photo: Path, mask: "Image.Image") -> None:
    """Write the mask of a photo of a set atomically; it has the photo's shape."""
    with new_file(_file_of(photo)) as temporary:
        mask.convert("L").save(temporary, format="PNG")


def remove_mask(photo: Path) -> None:
    """Remove the mask of a photo of a set: the base finds its subject again."""
    _file_of(photo).unlink(missing_ok=True)


def take_mask(file: Path, photo: Path) -> None:
    """Copy the mask in a file to a photo of a set; raises PhotoError as `read_mask` does."""
    write_mask(photo, read_mask(file, read_photo(photo).image.size))


def take_named_mask(file: Path, photos: Mapping[str, Path]) -> str:
    """Copy the mask in a file to the photo of a set named like it, and return that photo's name.

    photos: by the names that the user knows them by. Raises PhotoError as `read_mask` does, or if no photo has the
    name.
    """
    name = next(iter(matching_masks(photos, [file.name])), None)
    if name is None:
        raise PhotoError(f'No photo here belongs to the mask "{shown(file)}".', "", NAMING)
    take_mask(file, photos[name])
    return name


def turn_mask(photo: Path) -> None:
    """Rotate the mask of a photo of a set, if it has one, by 90 degrees clockwise."""
    from PIL import Image

    if mask := mask_beside(photo):
        write_mask(photo, read_photo(mask).image.transpose(Image.Transpose.ROTATE_270))


def usable_masks(photos: Sequence[Path]) -> list[Path]:
    """Return the usable masks beside these photos."""
    usable = []
    for photo, mask in mask_files(photos).items():
        with contextlib.suppress(PhotoError):  # who took them in has said what is wrong with it
            read_mask(mask, read_photo(photo).image.size)
            usable.append(mask)
    return usable


def _file_of(photo: Path) -> Path:
    return photo.with_name(mask_name(photo.name))


def guessed_subject(image: "Image.Image") -> "Image.Image":
    """Return a small mask of what seems to matter in an upright photo: a starting point for painting."""
    from PIL import Image

    small = image.copy()
    small.thumbnail((GUESS_PX, GUESS_PX))
    return Image.fromarray(saliency(small) > GUESSED_SHARE).convert("L")


def with_background_weight(config: TrainingConfig, folders: Sequence[Path], explicit: Container[str]) -> TrainingConfig:
    """Return proposed settings with a lower background weight if photos of these folders have masks.

    An explicit weight stays, and so does 1 if the base could not find the subject of the other photos.
    """
    masked, unmasked = counted_masks(folders)
    cannot_find = unmasked > 0 and (config.buckets or config.not_cache_latents)
    if not masked or cannot_find or "background_weight" in explicit:
        return config
    return dataclasses.replace(config, background_weight=MASKED_WEIGHT)


def mask_notices(folders: Sequence[Path], background_weight: float) -> list[str]:
    """Return a sentence on the effect of these folders' masks, and one on masks without a photo."""
    masked, unmasked = counted_masks(folders)
    notices, without_photo = [], [f'"{printable(name)}"' for folder in folders for name in _without_photo(folder)]
    who = f"{masked} photo{' has a mask' if masked == 1 else 's have masks'}"
    if masked and background_weight == 1:
        notices.append(
            f"{who} without effect: set background_weight to {MASKED_WEIGHT:g}, and the background counts less than "
            "the subject."
        )
    elif masked:
        others = f"; the base model finds the subject of the other {unmasked}" if unmasked else ""
        notices.append(f"{who} of the subject{others} (background_weight is {background_weight:g}).")
    if without_photo:
        more = f" and {len(without_photo) - MAX_NAMED} more" if len(without_photo) > MAX_NAMED else ""
        notices.append(
            f"No photo belongs to the mask{'s' if len(without_photo) > 1 else ''} "
            f"{', '.join(without_photo[:MAX_NAMED])}{more}. {NAMING}"
        )
    return notices


def _without_photo(folder: Path) -> list[str]:
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    masks = {name for name in names if is_mask_name(name)}
    return sorted(masks - {*matching_masks(filter(is_photo_name, names), masks).values()})
