"""Atomic writes, and locks that end with the process that holds them.

Incomplete files are written beside their place under a name that begins with a dot, synced, then renamed.
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
# Whoever only looks whether a lock is held has it for an instant: a taker waits that out.
LOCK_PATIENCE_S = 0.25
# Windows locks a byte, not a file: one far behind what is written there.
LOCKED_BYTE = 1 << 30
# Clocks of files and of process starts differ by their ticks.
CLOCK_SLACK_S = 2.0


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; it becomes `path` when the block ends well, and vanishes when it does not."""
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
    """Yield a temporary folder to fill; it becomes `path`, which must not exist, when the block ends well."""
    with scratch_folder(path) as temporary:
        yield temporary
        sync_all(temporary)
        os.rename(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield an empty folder beside this path for the time of the block; what a kill leaves of it is swept away."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(beside)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    """Return a name beside `path` for what is not whole yet; it tells which process makes it."""
    return path.with_name(f".{path.name[:80]}.{os.getpid()}-{uuid.uuid4().hex[:8]}")


def sweep_unfinished(folder: Path) -> None:
    """Remove what processes that are no more left half-written anywhere under this folder."""
    # Others may write and finish there meanwhile: what vanishes under the walk is no error.
    for entry in unfinished_in(folder):
        _remove(entry)


def sweep_unfinished_beside(path: Path, suffixes: tuple[str, ...]) -> None:
    """Remove what processes that are no more left half-written of this file, or of others of these kinds beside it.

    The folder may be anybody's: nothing below it is looked at, and no other name.
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
    """Return what processes that are no more left half-written anywhere under this folder."""
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
    """Return whether the process that began this entry still lives; a later one may have got its number."""
    import psutil

    try:
        begun_s = entry.stat().st_mtime
    except FileNotFoundError:
        return True
    try:
        # A restarted container gives its server the same number again.
        return bool(psutil.Process(pid).create_time() <= begun_s + CLOCK_SLACK_S)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another user's
        return True


def remove_folder(folder: Path) -> None:
    """Remove a folder so that nothing ever takes what is left of it for whole."""
    hidden = _unfinished(folder)
    folder.rename(hidden)
    shutil.rmtree(hidden)


def write_text(path: Path, text: str) -> None:
    """Write a text file at once or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file at once or not at all."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def sync(path: Path) -> None:
    """Force a file or folder to the disk; folders cannot be opened on Windows, which syncs renames by itself."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Force a folder and all that is in it to the disk."""
    for place, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(place, name))
        sync(Path(place))


def free_bytes(path: Path) -> int:
    """Return the free space of the disk that holds `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def is_disk_full(error: BaseException) -> bool:
    """Return whether the disk, or one's share of it, had no room for what was being written."""
    # safetensors and torch wrap the system's error in their own and leave its number out.
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or os.strerror(errno.ENOSPC) in str(error)


# Locks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held_lock(path: Path) -> Iterator[None]:
    """Hold a lock that ends with this process, however it ends; raises BlockingIOError when another holds it."""
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
        # Shared, so that two who look at once do not take each other for the holder.
        return not _try_lock(file, shared=True)


def _try_lock(file: IO[bytes], *, shared: bool) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(LOCKED_BYTE)
            # A checker that is not on Windows knows nothing of it.
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True
