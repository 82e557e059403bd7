"""Work in a forked child, which has all libraries loaded and can be killed; and what a run that was killed became."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth.events import losses_of, read_events
from dreambooth.records.workspace import RunFolder

EXIT_WAIT_S = 120


def in_child(work: Callable[[], Any]) -> int:
    """Start the work in a forked child, and return its process id; its exit status is 0 when it ended well."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        work()
        status = 0
    finally:
        os._exit(status)


def exit_status(child: int) -> int | None:
    """Wait for a child to end; its exit status, or None when a signal ended it."""
    end_s = time.monotonic() + EXIT_WAIT_S
    while time.monotonic() < end_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child did not end")


def outcome(folder: Path) -> tuple[dict[str, bytes], list[Any]]:
    """Return a complete run's weights and samples, byte for byte, and its losses."""
    run = RunFolder(folder)
    files = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.suffix in (".safetensors", ".png") and ".run" not in file.parts
    }
    return files, losses_of(read_events(run.events_path))


def assert_same_run(folder: Path, wanted: tuple[dict[str, bytes], list[Any]], what: str) -> None:
    """Fail with the names of the files and the steps that differ from those of the run that never ended."""
    files, losses = outcome(folder)
    odd = {name for name in files.keys() | wanted[0].keys() if files.get(name) != wanted[0].get(name)}
    steps = [loss.step for loss in losses]
    assert (odd, steps) == (set(), [loss.step for loss in wanted[1]]), what
    assert losses == wanted[1], what


def reached(run: RunFolder, step: int) -> None:
    """Wait until the run has done this step."""
    end_s = time.monotonic() + EXIT_WAIT_S
    while time.monotonic() < end_s:
        if run.events_path.exists() and len(losses_of(read_events(run.events_path))) >= step:
            return
        time.sleep(0.01)
    pytest.fail(f"step {step} was not reached")
