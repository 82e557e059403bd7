"""A zip of photos becomes a folder of upright photos without metadata, or an error that says what is wrong with it.

The whole directory is checked before anything is unpacked, every byte is counted while it is, and no name of the
archive's ever becomes a path here.
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

from natsort import natsorted

from dreambooth.data.photos import MAX_PHOTO_BYTES, SUFFIXES, PhotoFolder, find_photos, ingest, shown
from dreambooth.durable import new_folder
from dreambooth.errors import PhotoError
from dreambooth.limits import MAX_PROMPT_CHARS
from dreambooth.text_files import printable

MAX_ARCHIVE_BYTES = 1024**3
MAX_UNPACKED_BYTES = 1024**3
MAX_ENTRIES = 500
MAX_RATIO = 100
MAX_NAME_BYTES = 255
MAX_CAPTION_BYTES = 16 * MAX_PROMPT_CHARS

_ARCHIVE_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar", ".cab", ".iso")
_SILENT_NAMES = ("thumbs.db", "desktop.ini")
# A directory of 500 entries has names of 255 bytes at most, and as much again of extras.
_MAX_DIRECTORY_BYTES = 1024**2
_CHUNK_BYTES = 1 << 16
# What zipfile and its decompressors raise for bytes that are no zip, depending on where these go wrong.
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, OverflowError,
    IndexError, KeyError,
)  # fmt: skip


def unpack_photos(archive: Path, folder: Path) -> PhotoFolder:
    """Unpack a zip's photos into `folder`, which must not exist, re-encoded by `ingest`, with their captions if any.

    Returns the stored photos and what was skipped with the reason. Raises PhotoError, and leaves nothing behind, when
    the archive is damaged, breaks a limit, or holds no readable photo.
    """
    if not archive.is_file():
        raise PhotoError(f"{shown(archive)} is no file.", "An archive of photos is one .zip file.", "Check its name.")
    num_bytes = archive.stat().st_size
    if num_bytes > MAX_ARCHIVE_BYTES:
        raise _refusal(archive, f"it has {num_bytes / 1024**3:.1f} GiB and at most 1 GiB is read")
    try:
        with archive.open("rb") as file, zipfile.ZipFile(_CheckedFile(file, num_bytes)) as opened:
            entries = _checked_entries(archive, opened)
            with new_folder(folder) as temporary:
                kept, skipped = _unpacked(archive, opened, entries, temporary)
    except _ZIP_ERRORS as error:
        raise _told(archive, error) from error
    return PhotoFolder([folder / name for name in natsorted(kept)], skipped)


def unpacked_folder(archive: Path, datasets_dir: Path) -> PhotoFolder:
    """Return the photos of an archive unpacked under `datasets_dir`, in a folder named after its content.

    The same archive is unpacked once. Raises PhotoError as `unpack_photos` does.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except (OSError, ValueError) as error:
        why = f"{getattr(error, 'strerror', error)}."
        raise PhotoError(f"{shown(archive)} cannot be read.", why, "Is it still there?") from None
    folder = datasets_dir / f"zip-{digest}"
    if folder.is_dir():
        return find_photos(folder)
    return unpack_photos(archive, folder)


class _CheckedFile(io.BufferedIOBase):
    """A file that is never read in one piece: a directory of a gigabyte would otherwise lie in memory whole."""

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
    in_order: list[zipfile.ZipInfo] = natsorted(files, key=lambda entry: entry.filename.casefold())
    return in_order


def _broken_rule(entry: zipfile.ZipInfo) -> str:
    """Return which rule the entry breaks, or nothing; its names as written decide, not what Python made of them."""
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
    """Return a reason when two entries share bytes, as they do in bombs that unpack one piece many times."""
    end = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            return f"{printable(entry.filename)[:100]!r} overlaps another entry"
        # The header beside the name has 30 bytes; extras may follow, so this is the least it can take.
        end = entry.header_offset + 30 + len(entry.filename.encode("utf-8", "surrogateescape")) + entry.compress_size
    return "" if end <= directory_start else "an entry is said to be longer than the file"


def _told(archive: Path, error: Exception) -> PhotoError:
    if isinstance(error, OSError) and error.errno and error.errno != errno.EINVAL:
        return PhotoError(
            f"{shown(archive)} is not unpacked.", f"{error.strerror}.", "Make room or give access, then try again."
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
    """Fill `folder` and return the stored photos' names and what was skipped with the reason."""
    kept: list[str] = []
    stored_bytes = 0
    skipped: list[tuple[Path, str]] = []
    captions = {entry.filename: entry for entry in entries if entry.filename.lower().endswith(".txt")}
    photos = [entry for entry in entries if _is_photo(entry)]
    skipped += [(Path(entry.filename), "is no photo") for entry in entries if not (_is_photo(entry) or _silent(entry))]
    for number, entry in enumerate(photos, 1):
        with _copy_of(opened, entry, folder, number) as copy:
            try:
                stored = ingest(copy, folder)
            except PhotoError as error:
                skipped.append((Path(entry.filename), f"{error.what} {error.why}"))
                continue
        kept.append(stored.name)
        # A small file of many pixels may grow when it is written again.
        stored_bytes += stored.stat().st_size
        if stored_bytes > MAX_UNPACKED_BYTES:
            raise _refusal(archive, "its photos take more than 1 GiB")
        if words := _caption_of(opened, entry, captions):
            stored.with_suffix(".txt").write_text(words, "utf-8")
    if not kept:
        why = f"its {len(photos)} photo(s) cannot be read" if photos else "it holds no photos"
        raise _refusal(archive, why)
    return kept, skipped


@contextlib.contextmanager
def _copy_of(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, number: int) -> Iterator[Path]:
    """Yield the entry as a file of a name of ours; never more than one photo's limit is written."""
    copy = folder / f"{number:03d}{PurePosixPath(entry.filename).suffix.lower()}"
    try:
        with copy.open("wb") as file:
            for chunk in _chunks(opened, entry, MAX_PHOTO_BYTES + 1):
                file.write(chunk)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _caption_of(opened: zipfile.ZipFile, photo: zipfile.ZipInfo, captions: dict[str, zipfile.ZipInfo]) -> str:
    """Return the words of `dog.png.txt` or `dog.txt` beside `dog.png` in the archive, else nothing."""
    path = PurePosixPath(photo.filename)
    entry = captions.get(f"{path}.txt") or captions.get(str(path.with_suffix(".txt")))
    if entry is None:
        return ""
    content = b"".join(_chunks(opened, entry, MAX_CAPTION_BYTES + 1))
    if len(content) > MAX_CAPTION_BYTES:
        raise PhotoError(
            f"The caption {printable(entry.filename)} is too long.", f"At most {MAX_PROMPT_CHARS} characters are read.",
            "Shorten it.",
        )  # fmt: skip
    return content.decode("utf-8-sig", errors="replace")


def _chunks(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, at_most: int) -> Iterator[bytes]:
    """Yield the entry's content piece by piece, `at_most` bytes of it: what its header declares binds nobody."""
    with opened.open(entry) as content:
        left = at_most
        while left and (chunk := content.read(min(_CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def _is_photo(entry: zipfile.ZipInfo) -> bool:
    return PurePosixPath(entry.filename).suffix.lower() in SUFFIXES and not _silent(entry)


def _silent(entry: zipfile.ZipInfo) -> bool:
    """Return whether this is a caption, or what file managers leave everywhere."""
    path = PurePosixPath(entry.filename)
    is_hidden = path.name.startswith(".") or path.parts[0] == "__MACOSX"
    return is_hidden or path.name.lower() in _SILENT_NAMES or path.suffix.lower() in (".txt", ".json")
