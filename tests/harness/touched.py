"""What this process writes and whom it connects to, as Python's audit hooks tell it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
MAKING = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1}


@dataclass
class Touched:
    """Files opened for writing and folders made, and the addresses and names of hosts asked for."""

    paths: set[str] = field(default_factory=set)
    hosts: set[tuple[str, int]] = field(default_factory=set)

    def outside(self, *folders: object) -> set[str]:
        """Return what was written elsewhere; Python's own compiled modules and devices do not count."""
        inside = tuple(f"{os.path.realpath(str(folder))}{os.sep}" for folder in folders)
        real = {os.path.realpath(path) for path in self.paths}
        return {path for path in real if "__pycache__" not in path and not path.startswith(("/dev/", *inside))}


_watching: list[Touched] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    path: Any = None
    if event == "open":
        path = arguments[0] if isinstance(arguments[2], int) and arguments[2] & WRITES else None
    elif event in MAKING:
        path = arguments[MAKING[event]]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        _watching[-1].hosts.add((str(arguments[1][0]), int(arguments[1][1])))
    elif event == "socket.getaddrinfo":
        _watching[-1].hosts.add((str(arguments[0]), int(arguments[1] or 0)))
    if isinstance(path, (str, bytes, os.PathLike)):
        _watching[-1].paths.add(os.fsdecode(path))


sys.addaudithook(_hook)


@contextlib.contextmanager
def touched() -> Iterator[Touched]:
    """Watch this whole process, its threads included, for as long as the block runs."""
    seen = Touched()
    _watching.append(seen)
    try:
        yield seen
    finally:
        _watching.remove(seen)
