"""Deleting a whole run: everything that the program wrote into its folder, and nothing that a person put there."""

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from dreambooth.durable import held_lock, is_locked, remove_folder
from dreambooth.errors import RunFolderError
from dreambooth.records.saved_weights import saved_steps
from dreambooth.records.storage import local_runs, remove_weights, size_of
from dreambooth.records.workspace import RunFolder, Workspace

SAMPLE = re.compile(r"[0-9]+\.png")
BOARD_FILE = re.compile(r"events\.out\.tfevents\..+")


@dataclass(frozen=True)
class Removed:
    """The bytes freed, and other people's files that stay in the folder."""

    num_bytes: int
    left: tuple[Path, ...]


def remove_run(workspace: Workspace, run: RunFolder) -> Removed:
    """Delete a run; raises RunFolderError for one that is running, queued, or elsewhere.

    The settings are deleted last: until then an interrupted deletion can be repeated.
    """
    if run not in local_runs(workspace):
        raise RunFolderError(f"{run.name} is not deleted here.", "It is not in this app's data folder.", "")
    before = size_of(run.path)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(held_lock(run.lock_path))
        except BlockingIOError:
            raise _busy(run) from None
        if is_locked(run.queue_lock_path):
            raise _busy(run)
        for step in saved_steps(run):
            remove_weights(run, step)
        for folder in _step_folders(run):
            _remove_small_files(folder)
    # Its locks are there too; a new owner would recreate the folder.
    remove_folder(run.records)
    with contextlib.suppress(OSError):  # what is left in it is not ours
        run.path.rmdir()
    left = tuple(sorted(path for path in run.path.rglob("*") if path.is_file())) if run.path.exists() else ()
    return Removed(before - sum(size_of(path) for path in left), left)


def _busy(run: RunFolder) -> RunFolderError:
    return RunFolderError(f"{run.name} is running or queued.", "A process is using it.", "Stop it first.")


def _step_folders(run: RunFolder) -> list[Path]:
    found = [entry for entry in run.path.iterdir() if entry.name.isdecimal() and entry.is_dir()]
    return [entry for entry in found if not entry.is_symlink()]


def _remove_small_files(folder: Path) -> None:
    """Remove samples, settings and TensorBoard files of a step's folder, then folders that are empty."""
    samples = folder / "samples"
    own = [folder / "args.json"]
    if samples.is_dir() and not samples.is_symlink():
        own += [file for file in samples.iterdir() if SAMPLE.fullmatch(file.name)]
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    own += [file for one in inner for file in one.iterdir() if BOARD_FILE.fullmatch(file.name)]
    for file in own:
        if file.is_file() and not file.is_symlink():
            file.unlink()
    for empty in (*inner, folder):
        with contextlib.suppress(OSError):  # something of a person's is in it
            empty.rmdir()
