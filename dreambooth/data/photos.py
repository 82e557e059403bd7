"""Reads one untrusted file as an upright RGB image, or explains what is wrong with it.

The content decides what a file is, not its name; limits are checked on the header, before anything is decoded.
"""

import contextlib
import hashlib
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.data.colour import in_srgb
from dreambooth.data.decoded import decoded_once
from dreambooth.durable import new_file
from dreambooth.errors import PhotoError
from dreambooth.formats.natural_order import in_natural_order
from dreambooth.formats.photo_files import PHOTO_SUFFIXES, is_mask_name
from dreambooth.formats.text_files import printable

if TYPE_CHECKING:
    from PIL import Image

MAX_PHOTO_BYTES = 30 * 1024**2
MAX_PHOTO_PIXELS = 50 * 10**6
MAX_SIDE_PX = 65_500  # of a JPEG, as which copies are stored
# What a run reads photos by, so that one that was begun by an earlier reader goes on with the same pixels.
# 1: colours as they are in the file, no AVIF, no limit to a side, names that are alike in the directory's order.
# 2: converted to sRGB, and in an order of their names alone.
# 3: masks are no photos.
PHOTO_READER = 3

_ENDINGS = ".jpg, .png, .webp, .avif or .heic"
_HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_SILENT_SUFFIXES = (".txt", ".json")
_SILENT_NAMES = ("thumbs.db", "desktop.ini")
# What Pillow's decoders raise for broken files, found by testing them.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, RuntimeError, IndexError, KeyError, TypeError, OverflowError,
    AttributeError, AssertionError, SystemError, MemoryError, struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """A file as an upright RGB image, with notes on the conversion."""

    path: Path
    image: "Image.Image"
    notes: tuple[str, ...]


@dataclass(frozen=True)
class PhotoFolder:
    """The photos of a folder in natural order, and the files that are not photos, with the reason."""

    photos: list[Path]
    skipped: list[tuple[Path, str]]


def read_photo(path: Path, reader: int = PHOTO_READER) -> Photo:
    """Return the file's image, upright, in sRGB and on white; raises PhotoError naming file, reason and what to do.

    An image that was already read comes from the cache until `forget_decoded`: do not change it in place.
    """
    _check_size(path)
    return decoded_once(path, reader, _decode)


def _decode(path: Path, reader: int) -> Photo:
    try:
        _check_png(path)
        # Closed as soon as it is copied, not merely its file: at 50 megapixels each image takes 200 MB.
        with contextlib.closing(_opened(path)) as image:
            _check_pixels(path, image, reader)
            image.load()  # verify() alone would pass truncated data
            notes = _frame_notes(image)
            orientation = _orientation(image, notes)
            plain = _on_white(image if reader < 2 else in_srgb(_in_8_bit(image), path, notes), notes)
        return Photo(path, _upright(plain, orientation, notes), tuple(notes))
    except _DECODER_ERRORS as error:
        raise _unreadable(path, error) from error


def find_photos(folder: Path, reader: int = PHOTO_READER) -> PhotoFolder:
    """Return the folder's photos in natural order of their names, undecoded; raises PhotoError when there are none."""
    if not folder.is_dir():
        raise PhotoError(f"{folder} is not a folder.", "Photos are read from a folder.", "Check its name.")
    files = in_natural_order(folder.iterdir(), lambda path: path.name) if reader >= 2 else _as_listed(folder)
    photos = [path for path in files if _is_photo(path, reader)]
    others = [path for path in files if path not in photos and not _is_silent(path)]
    skipped = [(path, _reason_to_skip(path)) for path in others]
    if not photos:
        why = f"Photos end in {_ENDINGS}."
        if skipped:
            path, reason = skipped[0]
            all_of_them = f"None of its {len(skipped)} files is a photo: " if len(skipped) > 1 else ""
            why = f'{all_of_them}"{shown(path)}" {reason}.'
        raise PhotoError(f'"{printable(str(folder))}" holds no photos.', why, "Put 3 to 20 photos in it.")
    return PhotoFolder(photos, skipped)


def num_photos_in(folders: Iterable[str | None]) -> int:
    """Return how many photos these folders hold, by file name: damage shows only when they are decoded."""
    found = 0
    for folder in filter(None, folders):
        with contextlib.suppress(PhotoError):
            found += len(find_photos(Path(folder)).photos)
    return found


def _as_listed(folder: Path) -> list[Path]:
    """Return the files by name; names that compare equal (a and A, 1 and 01) in the order of the disk's listing."""
    from natsort import natsorted

    files: list[Path] = natsorted(folder.iterdir(), key=lambda path: path.name.lower())
    return files


def ingest(source: Path, folder: Path) -> Path:
    """Copy a photo into the folder, upright and without metadata (such as its location), and return it.

    PNGs up to 4 MP stay PNGs, everything else becomes a JPEG of quality 95. Raises PhotoError when the file is not a
    photo, or when the same file (by SHA-256) is already in the folder.
    """
    return ingested(source, folder).path


def ingested(source: Path, folder: Path) -> Photo:
    """Do what `ingest` does, and also return the decoded image and the notes on its conversion."""
    _check_size(source)
    photo = _decode(source, PHOTO_READER)
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    present = sorted(folder.glob(f"*-{digest}.*")) if folder.is_dir() else []
    if present:
        raise PhotoError(
            f"{shown(source)} is there already, as {present[0].name}.", "The files are identical.",
            "Nothing was added.",
        )  # fmt: skip
    as_png = _has_png_header(source) and photo.image.width * photo.image.height <= 4 * 10**6
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", source.stem).strip("-")[:60] or "photo"
    target = folder / f"{stem}-{digest}{'.png' if as_png else '.jpg'}"
    try:
        save_photo(photo.image, target)
    except OSError as error:
        why = f"{error.strerror or printable(str(error))}."
        raise PhotoError(
            f"{shown(source)} cannot be stored.", why, "Free some disk space or change the permissions, then try again."
        ) from error
    return Photo(target, photo.image, photo.notes)


def save_photo(image: "Image.Image", target: Path) -> None:
    """Write an upright RGB photo atomically, as PNG or JPEG depending on its name."""
    with new_file(target) as temporary:
        if target.suffix == ".png":
            image.save(temporary, format="PNG")
        else:
            image.save(temporary, format="JPEG", quality=95, subsampling=0)


def shown(path: Path) -> str:
    """Return the file's name safe for a message or a log: no line breaks, terminal codes or undecodable bytes."""
    return printable(path.name)


def training_view(image: "Image.Image", resolution_px: int) -> "Image.Image":
    """Return the centre crop of an upright photo."""
    return square(image, resolution_px, 0.5, 0.5)


def square(image: "Image.Image", resolution_px: int, x: float, y: float) -> "Image.Image":
    """Return the largest square at `resolution_px`; x and y in 0..1 say where it lies along the longer side."""
    return resized(image, (resolution_px, resolution_px), crop_box(image.size, x, y))


def resized(image: "Image.Image", size_px: tuple[int, int], box: tuple[float, float, float, float]) -> "Image.Image":
    """Return this part (left, top, right, bottom) of the image, resized to this (height, width)."""
    from PIL import Image

    # Only this part is resampled: a narrow strip would be enormous at full length. Lanczos widens its support when it
    # shrinks, so fine patterns do not alias.
    return image.resize((size_px[1], size_px[0]), Image.Resampling.LANCZOS, box=box)


def crop_box(size: tuple[int, int], x: float, y: float, shape: float = 1.0) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of the largest square of a photo of this (width, height).

    With a `shape`, of the largest part with that ratio of width to height.
    """
    width, height = largest_part(size, shape)
    left, top = x * (size[0] - width), y * (size[1] - height)
    return left, top, left + width, top + height


def largest_part(size: tuple[int, int], shape: float) -> tuple[float, float]:
    """Return the width and height of the largest part of a photo with this ratio of width to height."""
    return min(size[0], size[1] * shape), min(size[1], size[0] / shape)


# Reading -------------------------------------------------------------------------------------------------------------


def _check_size(path: Path) -> None:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise PhotoError(f"{shown(path)} cannot be read.", f"{error.strerror}.", "Is it still there?") from None
    if num_bytes == 0:
        raise PhotoError(f"{shown(path)} is empty.", "The file has no content.", "Copy or upload it again.")
    if num_bytes > MAX_PHOTO_BYTES:
        megabytes = num_bytes / 1024**2
        raise PhotoError(
            f"{shown(path)} is too large.",
            f"It has {megabytes:.0f} MB; at most {MAX_PHOTO_BYTES // 1024**2} MB are read.",
            "Save it as a JPEG or make it smaller.",
        )


def _opened(path: Path) -> "Image.Image":
    """Open the file lazily: only its header is read."""
    from PIL import Image

    formats = ["JPEG", "PNG", "WEBP", "AVIF"]
    if _heic_is_readable():
        formats.append("HEIF")
    elif path.suffix.lower() in _HEIC_SUFFIXES:
        raise PhotoError(
            f"{shown(path)} is a HEIC photo.", "The package pillow-heif that reads them is missing.",
            "Install it (pip install pillow-heif) or save the photo as a JPEG.",
        )  # fmt: skip
    try:
        return Image.open(path, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(path, "far more") from error


def _heic_is_readable() -> bool:
    try:
        import pillow_heif
    except ImportError:
        return False
    from PIL import Image

    Image.init()  # else Pillow would load its own plugins later, over ours
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()
    return True


def _check_pixels(path: Path, image: "Image.Image", reader: int) -> None:
    num_pixels = image.width * image.height
    if num_pixels > MAX_PHOTO_PIXELS:
        raise _too_many_pixels(path, f"{num_pixels / 10**6:.0f}")
    if max(image.size) > MAX_SIDE_PX and reader >= 2:
        raise PhotoError(
            f"{shown(path)} is too long.",
            f"It has {image.width} x {image.height} pixels; a side has at most {MAX_SIDE_PX}.",
            "Crop it to the subject.",
        )


def _too_many_pixels(path: Path, count: str) -> PhotoError:
    return PhotoError(
        f"{shown(path)} has too many pixels.",
        f"Its header declares {count} megapixels; at most {MAX_PHOTO_PIXELS // 10**6} are decoded.",
        "Make it smaller: training uses 512 pixels a side.",
    )


def _unreadable(path: Path, error: Exception) -> PhotoError:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        why = "Its content is none of JPEG, PNG, WebP, AVIF or HEIC."
    else:
        why = f"It is damaged or incomplete ({printable(' '.join(str(error).split()))[:200]})."
    return PhotoError(f"{shown(path)} is not a readable photo.", why, "Copy or upload it again, or save it as a JPEG.")


def _check_png(path: Path) -> None:
    """Raise what Pillow raises for a PNG with wrong checksums, which `load` ignores in the pixel data."""
    if _has_png_header(path):
        with contextlib.closing(_opened(path)) as image:
            image.verify()


def _has_png_header(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


# Making it upright RGB -----------------------------------------------------------------------------------------------


def _frame_notes(image: "Image.Image") -> list[str]:
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        return ["animated: only its first frame is used"]
    return []


def _orientation(image: "Image.Image", notes: list[str]) -> int:
    try:
        orientation = image.getexif().get(0x0112, 1)
    except (*_DECODER_ERRORS, UserWarning):
        notes.append("its metadata is damaged, so it may be sideways")
        return 1
    return orientation if orientation in range(2, 9) else 1


def _upright(image: "Image.Image", orientation: int, notes: list[str]) -> "Image.Image":
    from PIL import Image

    if orientation == 1:
        return image
    notes.append("was sideways, mirrored or upside down; turned upright by its EXIF orientation")
    turns = (
        Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
        Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90,
    )  # fmt: skip
    return image.transpose(turns[orientation - 2])


def _on_white(image: "Image.Image", notes: list[str]) -> "Image.Image":
    """Return a copy in plain RGB on white, without metadata."""
    from PIL import Image

    image = _in_8_bit(image)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            notes.append("transparent areas became white")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba)
        return white
    plain = image.convert("RGB")
    plain.info.clear()
    plain.getexif().clear()
    return plain


def _in_8_bit(image: "Image.Image") -> "Image.Image":
    """Return 16-bit grey in 8 bits, other modes unchanged: Pillow's own conversion clips at 255 instead of scaling."""
    if image.mode not in ("I;16", "I;16B", "I;16L", "I", "F"):
        return image
    import numpy as np
    from PIL import Image

    values = np.multiply(np.asarray(image), 1 / 257, dtype=np.float32)
    grey = values.round(out=values).clip(0, 255, out=values).astype(np.uint8)
    plain = Image.fromarray(grey)
    plain.info |= {name: image.info[name] for name in ("icc_profile", "gamma", "srgb") if name in image.info}
    plain.format = image.format
    return plain


# Names ---------------------------------------------------------------------------------------------------------------


def _is_photo(path: Path, reader: int) -> bool:
    name, suffix = path.name.lower(), path.suffix.lower()
    if suffix not in PHOTO_SUFFIXES or name.startswith(".") or not path.is_file():
        return False
    return (reader >= 2 or suffix != ".avif") and (reader < 3 or not is_mask_name(name))


def _is_silent(path: Path) -> bool:
    name = path.name.lower()
    return (
        name.startswith(".") or name in _SILENT_NAMES or path.suffix.lower() in _SILENT_SUFFIXES or is_mask_name(name)
    )


def _reason_to_skip(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "is a broken link"
    if path.is_dir():
        return "is a folder; subfolders are not read"
    if not path.is_file():
        return "is not a file but a pipe, a socket or a device"
    return f"does not end in {_ENDINGS}"
