"""Unpacks a zip of photos into a folder of upright photos without metadata, or explains what is wrong with it.

The whole directory is checked before anything is unpacked, every byte is counted during unpacking, and no name from the
archive becomes a path.
"""

import contextlib
import errno
import hashlib
import io
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from dreambooth.data.captions import CAPTION_SUFFIX, MAX_CAPTION_BYTES, decoded_caption, matching_captions
from dreambooth.data.focus import (
    FOCUS_FILE,
    MAX_FOCUS_BYTES,
    Focus,
    focus_of_photos,
    keep_focus,
    parse_focus,
    unreadable_focus,
)
from dreambooth.data.masks import read_mask
from dreambooth.data.photo_records import add_records, record
from dreambooth.data.photos import MAX_PHOTO_BYTES, PHOTO_READER, PhotoFolder, find_photos, ingest, read_photo, shown
from dreambooth.durable import new_folder
from dreambooth.errors import DreamBoothError, PhotoError, TextFileError
from dreambooth.formats.natural_order import in_natural_order
from dreambooth.formats.photo_files import PHOTO_SUFFIXES, is_mask_name, mask_name, matching_masks
from dreambooth.formats.text_files import decoded, printable

MAX_ARCHIVE_BYTES = 1024**3
MAX_UNPACKED_BYTES = 1024**3
MAX_ENTRIES = 500
MAX_RATIO = 100
MAX_NAME_BYTES = 255

_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar", ".cab", ".iso")
_SILENT_NAMES = ("thumbs.db", "desktop.ini")
# A directory of 500 entries has names of at most 255 bytes, and as much again of extra fields.
_MAX_DIRECTORY_BYTES = 1024**2
_CHUNK_BYTES = 1 << 16
# What zipfile and its decompressors raise for invalid data, depending on where it goes wrong.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError,
    IndexError, KeyError,
)  # fmt: skip


def unpack_photos(archive: Path, folder: Path) -> PhotoFolder:
    """Unpack a zip's photos, captions, crops and masks into a new `folder`; photos go through `ingest`.

    Returns the stored photos and what was skipped, with the reason. Raises PhotoError, and leaves nothing behind, when
    the archive is damaged, breaks a limit, or holds no readable photo.
    """
    if not archive.is_file():
        raise PhotoError(f"{shown(archive)} is not a file.", "Photos can be given as one .zip file.", "Check its name.")
    num_bytes = archive.stat().st_size
    if num_bytes > MAX_ARCHIVE_BYTES:
        raise _refusal(archive, f"it has {num_bytes / 1024**3:.1f} GiB and at most 1 GiB is read")
    try:
        with archive.open("rb") as file, zipfile.ZipFile(_CheckedFile(file, num_bytes)) as opened:
            entries = _checked_entries(archive, opened)
            with new_folder(folder) as temporary:
                kept, skipped = _unpacked(archive, opened, entries, temporary)
    except _ZIP_ERRORS as error:
        raise _error_of(archive, error) from error
    return PhotoFolder([folder / name for name in in_natural_order(kept)], skipped)


def unpacked_folder(archive: Path, datasets_dir: Path) -> PhotoFolder:
    """Return the folder under `datasets_dir` with an archive's photos, named after its content.

    The same archive is unpacked only once. Raises PhotoError as `unpack_photos` does.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except (OSError, ValueError) as error:
        why = f"{getattr(error, 'strerror', error)}."
        raise PhotoError(f"{shown(archive)} cannot be read.", why, "Is it still there?") from None
    # An earlier photo reader used a folder without this number, with which runs may continue.
    folder = datasets_dir / f"zip-{digest}-{PHOTO_READER}"
    if folder.is_dir():
        return find_photos(folder)
    return unpack_photos(archive, folder)


def earlier_folders(folder: str) -> list[str]:
    """Return the folders that earlier photo readers used in place of `unpacked_folder`'s; none for other folders."""
    path = Path(folder)
    if not path.name.startswith("zip-"):
        return []
    stem = path.name.removesuffix(f"-{PHOTO_READER}")
    return [str(path.with_name(name)) for name in (f"{stem}-2", stem)]


class _CheckedFile(io.BufferedIOBase):
    """A file that is never read in one piece: otherwise a directory of a gigabyte would be held in memory whole."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file, self._num_bytes = file, num_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = self._num_bytes - self._file.tell()
        if size > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory is larger than {MAX_ENTRIES} entries can be")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True


# The directory -------------------------------------------------------------------------------------------------------


def _checked_entries(archive: Path, opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of the archive in natural order; raises PhotoError for the first rule that one breaks."""
    entries = opened.infolist()
    if len(entries) > MAX_ENTRIES:
        raise _refusal(archive, f"it has {len(entries)} entries and at most {MAX_ENTRIES} are read")
    seen: set[str] = set()
    for entry in entries:
        if reason := _broken_rule(entry):
            raise _refusal(archive, f"{printable(entry.orig_filename)[:100]!r} {reason}")
        name = unicodedata.normalize("NFKC", entry.filename).casefold().rstrip("/")
        if name in seen:
            raise _refusal(archive, f"{printable(entry.filename)[:100]!r} is in it twice")
        seen.add(name)
    if (total := sum(entry.file_size for entry in entries)) > MAX_UNPACKED_BYTES:
        raise _refusal(archive, f"it unpacks to {total / 1024**3:.1f} GiB and at most 1 GiB is unpacked")
    if reason := _overlap(entries, opened.start_dir):
        raise _refusal(archive, reason)
    files = [entry for entry in entries if not entry.is_dir()]
    return in_natural_order(files, lambda entry: entry.filename)


def _broken_rule(entry: zipfile.ZipInfo) -> str:
    """Return the rule that the entry breaks, or nothing; names are judged as written, not as Python decoded them."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    parts = PurePosixPath(entry.filename).parts
    raw = entry.orig_filename
    rules = [
        (any(unicodedata.category(character) == "Cc" for character in raw), "has control characters in its name"),
        ("\\" in raw, "has a backslash in its name"),
        (raw.startswith("/") or raw[1:2] == ":", "is an absolute path"),
        (".." in parts, "leads out of its folder"),
        (len(raw.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES, f"is longer than {MAX_NAME_BYTES} bytes"),
        (kind not in (0, stat.S_IFREG, stat.S_IFDIR), "is a link or a device"),
        (bool(entry.flag_bits & 0x1), "is encrypted: make the archive without a password"),
        (raw.lower().endswith(_ARCHIVE_SUFFIXES), "is an archive in the archive: unpack it first"),
        (
            entry.file_size > MAX_RATIO * max(entry.compress_size, 1),
            f"unpacks to more than {MAX_RATIO} times its size",
        ),
        (entry.is_dir() and entry.file_size > 0, "is a folder with a content"),
    ]
    return next((reason for broken, reason in rules if broken), "")


def _overlap(entries: list[zipfile.ZipInfo], directory_start: int) -> str:
    """Return a reason when two entries share bytes, as in zip bombs that unpack one piece many times."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            return f"{printable(entry.filename)[:100]!r} overlaps another entry"
        # The local header has 30 bytes besides the name; extra fields may follow, so this is the minimum.
        end = entry.header_offset + 30 + len(entry.filename.encode("utf-8", "surrogateescape")) + entry.compress_size
    return "" if end <= directory_start else "an entry is said to be longer than the file"


def _error_of(archive: Path, error: Exception) -> PhotoError:
    if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
        return PhotoError(
            f"{shown(archive)} is not unpacked.",
            f"{error.strerror}.",
            "Free some disk space or change the permissions, then try again.",
        )
    return _refusal(archive, f"it is damaged or no zip file ({printable(str(error))[:200]})")


def _refusal(archive: Path, reason: str) -> PhotoError:
    return PhotoError(
        f"{shown(archive)} is not unpacked.", f"{reason[0].upper()}{reason[1:]}.",
        "Make a plain .zip of the photos alone.",
    )  # fmt: skip


# The files -----------------------------------------------------------------------------------------------------------


def _unpacked(
    archive: Path, opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], folder: Path
) -> tuple[list[str], list[tuple[Path, str]]]:
    """Fill `folder`; return the stored photos' names, and what was skipped with the reason."""
    photos = [entry for entry in entries if _is_photo(entry)]
    others = [entry for entry in entries if not (_is_photo(entry) or _is_mask(entry) or _silent(entry))]
    skipped = [(Path(entry.filename), "is not a photo") for entry in others]
    stored: dict[str, Path] = {}
    stored_bytes = 0
    for number, entry in enumerate(photos, 1):
        try:
            with _copy_of(opened, entry, folder, number) as copy:
                stored[entry.filename] = path = ingest(copy, folder)
        except (PhotoError, *_ZIP_ERRORS) as error:
            skipped.append((Path(entry.filename), _reason_to_skip(error, f"{number:03d}")))
            continue
        # A small file with many pixels can grow when it is re-encoded.
        stored_bytes += path.stat().st_size
        if stored_bytes > MAX_UNPACKED_BYTES:
            raise _refusal(archive, "its photos take more than 1 GiB")
    if not stored:
        raise _refusal(archive, _nothing_in_it(len(photos), skipped))
    skipped += _unpack_captions(opened, entries, stored)
    skipped += _unpack_masks(opened, entries, stored)
    skipped += _unpack_focuses(opened, entries, stored, folder)
    add_records(folder, {path.name: record(PurePosixPath(name).name) for name, path in stored.items()})
    return [path.name for path in stored.values()], skipped


def _nothing_in_it(num_photos: int, skipped: list[tuple[Path, str]]) -> str:
    if not num_photos:
        return "it holds no photos"
    path, reason = skipped[-1]
    return f'its {num_photos} photo(s) cannot be read; "{shown(path)}" {reason}'


def _unpack_captions(
    opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], stored: dict[str, Path]
) -> list[tuple[Path, str]]:
    """Unpack each photo's caption beside it; return those that cannot be used, with the reason.

    They are stored unchanged, so that a training that reads captions refuses them too.
    """
    texts = {entry.filename: entry for entry in entries if entry.filename.lower().endswith(CAPTION_SUFFIX)}
    skipped = []
    for photo, text in matching_captions(stored, texts).items():
        target = stored[photo].with_suffix(CAPTION_SUFFIX)
        try:
            content = _content(opened, texts[text], MAX_CAPTION_BYTES)
            target.write_bytes(content)
            if words := decoded_caption(content, PurePosixPath(text).name):
                target.write_text(words, "utf-8")
            else:
                target.unlink()
        except (PhotoError, *_ZIP_ERRORS) as error:
            skipped.append((Path(text), _reason_to_skip(error, PurePosixPath(text).name)))
    return skipped


def _unpack_masks(
    opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], stored: dict[str, Path]
) -> list[tuple[Path, str]]:
    """Store each photo's mask beside it unchanged; return those that cannot be used, with the reason."""
    masks = {entry.filename: entry for entry in entries if _is_mask(entry)}
    found = matching_masks(stored, masks)
    skipped = [(Path(mask), "is the mask of no photo in the archive") for mask in masks if mask not in found.values()]
    for photo, mask in found.items():
        target = stored[photo].with_name(mask_name(stored[photo].name))
        try:
            target.write_bytes(_content(opened, masks[mask], MAX_PHOTO_BYTES))
            read_mask(target, read_photo(stored[photo]).image.size)
        except (PhotoError, *_ZIP_ERRORS) as error:
            skipped.append((Path(mask), _reason_to_skip(error, target.name).lstrip('" ')))
    return skipped


def _unpack_focuses(
    opened: zipfile.ZipFile, entries: list[zipfile.ZipInfo], stored: dict[str, Path], folder: Path
) -> list[tuple[Path, str]]:
    """Write the crops that the archive's focus files choose, under the stored names; return what is unreadable.

    An unreadable file is stored unchanged: training refuses it, as it does in a folder.
    """
    focuses: dict[str, Focus] = {}
    for entry in entries:
        path = PurePosixPath(entry.filename)
        if path.name != FOCUS_FILE or _is_hidden(path):
            continue
        content = b""
        try:
            content = _content(opened, entry, MAX_FOCUS_BYTES)
            found = parse_focus(decoded(content, path.name, MAX_FOCUS_BYTES))
        except (PhotoError, TextFileError, *_ZIP_ERRORS) as error:
            (folder / FOCUS_FILE).write_bytes(content)
            return [(Path(path), _reason_to_skip(unreadable_focus(path.name, error), path.name))]
        photos = [PurePosixPath(one.filename) for one in entries if _is_photo(one)]
        beside = {photo.name: str(photo) for photo in photos if photo.parent == path.parent}
        chosen, missing = focus_of_photos(found, beside)
        focuses |= {stored[beside[name]].name: one for name, one in chosen.items() if beside[name] in stored}
        focuses |= {name: found[name] for name in missing}
    if focuses:
        keep_focus(folder, focuses)
    return []


@contextlib.contextmanager
def _copy_of(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, number: int) -> Iterator[Path]:
    """Yield the entry as a file with a generated name; writes at most one photo's limit."""
    copy = folder / f"{number:03d}{PurePosixPath(entry.filename).suffix.lower()}"
    try:
        with copy.open("wb") as file:
            for chunk in _chunks(opened, entry, MAX_PHOTO_BYTES + 1):
                file.write(chunk)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _content(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """Return the entry's content, cut one byte above the limit if it is longer."""
    return b"".join(_chunks(opened, entry, max_bytes + 1))


def _reason_to_skip(error: Exception, name: str) -> str:
    """Return what is wrong with one file of the archive, without its name; re-raises errors of this machine."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    if not isinstance(error, DreamBoothError):
        return f"is damaged in the archive ({printable(str(error))[:100]})"
    # The beginning of the file names, whatever surrounds the name.
    return f"{error.what} {error.why}".partition(name)[2].partition(" ")[2].rstrip(". ")


def _chunks(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, at_most: int) -> Iterator[bytes]:
    """Yield the entry's content piece by piece, at most `at_most` bytes, whatever size its header declares."""
    with opened.open(entry) as content:
        left = at_most
        while left and (chunk := content.read(min(_CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def _is_photo(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    return path.suffix.lower() in PHOTO_SUFFIXES and not (_silent(entry) or is_mask_name(path.name))


def _is_mask(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    return is_mask_name(path.name) and not _is_hidden(path)


def _silent(entry: zipfile.ZipInfo) -> bool:
    """Return whether this is a caption, or a file that file managers leave behind."""
    path = PurePosixPath(entry.filename)
    return _is_hidden(path) or path.name.lower() in _SILENT_NAMES or path.suffix.lower() in (CAPTION_SUFFIX, ".json")


def _is_hidden(path: PurePosixPath) -> bool:
    return path.name.startswith(".") or path.parts[0] == "__MACOSX"
