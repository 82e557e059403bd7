"""Atomic writes, and locks that end with the process that holds them.

Incomplete files are written next to their destination under a name that begins with a dot, synced, then renamed.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

UNFINISHED = re.compile(r"\..+\.([0-9]+)-[0-9a-f]{8}")
# Checking whether a lock is held takes it for an instant: acquiring waits that out.
LOCK_PATIENCE_S = 0.25
# Windows locks a byte, not a file: one far beyond the content.
LOCKED_BYTE = 1 << 30
# Timestamps of files and process starts differ by their resolution.
CLOCK_SLACK_S = 2.0


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it becomes `path` if the block succeeds, and is removed if it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; it becomes `path`, which must not exist, if the block succeeds."""
    with scratch_folder(path) as temporary:
        yield temporary
        sync_all(temporary)
        os.rename(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty folder beside this path for the duration of the block; after a kill it is swept later."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(beside)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    """Return a temporary name beside `path` that identifies the process that writes it."""
    return path.with_name(f".{path.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep_unfinished(folder: Path) -> None:
    """Remove unfinished files of dead processes anywhere under this folder."""
    # Other processes may write there meanwhile: a file that vanishes during the walk is no error.
    for entry in unfinished_in(folder):
        _remove(entry)


def sweep_unfinished_beside(path: Path, suffixes: tuple[str, ...]) -> None:
    """Remove unfinished versions of this file, or of others with these suffixes beside it, left by dead processes.

    The folder may be anyone's: neither subfolders nor other names are touched.
    """
    names = sorted(path.parent.glob(".*")) if path.parent.is_dir() else []
    for entry in names:
        match = UNFINISHED.fullmatch(entry.name)
        own = entry.name.startswith(f".{path.name[:80]}.") or Path(entry.stem).suffix in suffixes
        if match and own and not _is_being_made(entry, int(match[1])):
            _remove(entry)


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def unfinished_in(folder: Path) -> list[Path]:
    """Return the unfinished files of dead processes anywhere under this folder."""
    found = []
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            match = UNFINISHED.fullmatch(name)
            entry = Path(place, name)
            if match is None or _is_being_made(entry, int(match[1])):
                continue
            found.append(entry)
            if name in folders:
                folders.remove(name)
    return found


def _is_being_made(entry: Path, pid: int) -> bool:
    """Return whether the process that began this entry is still alive; its number may have been reused."""
    import psutil

    try:
        begun_s = entry.stat().st_mtime
    except FileNotFoundError:
        return True
    try:
        # A restarted container gives its server the same process number again.
        return bool(psutil.Process(pid).create_time() <= begun_s + CLOCK_SLACK_S)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True


def remove_folder(folder: Path) -> None:
    """Remove a folder so that its remains can never be mistaken for a complete one."""
    hidden = _unfinished(folder)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with new_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def sync(path: Path) -> None:
    """Flush a file or folder to disk; Windows cannot open folders, and syncs renames by itself."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Flush a folder and everything in it to disk."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds `path`, which need not exist."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_disk_full(error: BaseException) -> bool:
    """Return whether the error means that the disk, or the user's quota, is full."""
    # safetensors and torch wrap the system's error without its number.
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or os.strerror(errno.ENOSPC) in str(error)


# Locks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends; raises BlockingIOError if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        end_s = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(file, shared=False):
            if time.monotonic() > end_s:
                raise BlockingIOError(errno.EWOULDBLOCK, "Another process holds it", str(path))
            time.sleep(0.01)
        yield


def is_locked(path: Path) -> bool:
    """Return whether a living process holds this lock."""
    if not path.exists():
        return False
    with open(path, "a+b") as file:
        # Shared, so that two concurrent checks do not mistake each other for the holder.
        return not _try_lock(file, shared=True)


def _try_lock(file: IO[bytes], *, shared: bool) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(LOCKED_BYTE)
            # A type checker on another system does not know Windows modules.
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
