"""Google Drive as the place where finished work outlives a Colab machine.

Training writes to the machine's own disk, which is fast and renames atomically; completed step folders, exports and
photo sets are copied, each under a hidden name first. Exact states are not copied: up to gigabytes every few minutes
are too much for a Drive.
"""

import importlib
import os
import queue
import shutil
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from dreambooth.durable import free_bytes, new_file, new_folder, remove_folder
from dreambooth.errors import DreamBoothError, quoted
from dreambooth.events import Event, ModelSaved, Notice, SamplesMade
from dreambooth.records.workspace import RunFolder, Workspace

MOUNT_POINT = Path("/content/drive")
ROOMS = ("runs", "exports", "datasets")
SPARE_BYTES = 64 * 2**20
# The device number of each Drive when it was made ready: an unmounted one is a folder of this machine with the same
# name.
_devices: dict[Path, int] = {}


def ready_drive(folder: Path | None) -> Path | None:
    """Return the folder on the Drive, mounted and writable; None if none is configured.

    Only its last folder is created. Raises DreamBoothError if the Drive is missing or cannot be written, before
    anything starts.
    """
    if folder is None:
        return None
    if folder.is_relative_to(MOUNT_POINT) and not os.path.ismount(MOUNT_POINT):
        _mount()
    if not folder.parent.exists():
        raise DreamBoothError(
            f'"{folder.parent}" of DREAMBOOTH_DRIVE is not there.',
            "Only the last folder of its path is created, so that an unmounted drive does not become a local folder.",
            "Mount the drive, create that folder, or unset DREAMBOOTH_DRIVE.",
        )
    try:
        folder.mkdir(exist_ok=True)
        _devices[folder] = folder.stat().st_dev
        for room in ROOMS:
            (folder / room).mkdir(exist_ok=True)
        with new_file(folder / "runs" / "written") as probe:
            probe.write_bytes(b"x")
        (folder / "runs" / "written").unlink()
    except OSError as error:
        raise DreamBoothError(
            f"Nothing can be written to {folder}.", quoted(error),
            "Mount Google Drive again, free some space on it, or unset DREAMBOOTH_DRIVE.",
        ) from None  # fmt: skip
    return folder


def lost_drive(folder: Path) -> str:
    """Return a warning if a Drive that was ready before is gone; empty while it is there."""
    try:
        device = folder.stat().st_dev
    except OSError:
        return f'Google Drive is no longer at "{folder}".'
    changed = device != _devices.setdefault(folder, device)
    return f'A disk other than Google Drive is now at "{folder}" now.' if changed else ""


def _mount() -> None:
    """Have Colab mount the Drive; only the notebook's own process can ask the user for permission."""
    if "google.colab" not in sys.modules:
        raise DreamBoothError(
            "Google Drive is not mounted.", "Only a cell of the notebook can mount it, not a program started by one.",
            "Run this in a cell first: from google.colab import drive; drive.mount('/content/drive')",
        )  # fmt: skip
    importlib.import_module("google.colab.drive").mount(str(MOUNT_POINT))
    if not os.path.ismount(MOUNT_POINT):
        raise DreamBoothError("Google Drive is not mounted.", "Colab did not mount it.", "Run this again.")


def refuse_full_drive(folder: Path, needed_bytes: int, *, is_resumed: bool = False) -> None:
    """Raise DreamBoothError with both numbers if the Drive has less free than will be copied there."""
    if lost_drive(folder):
        return  # the run goes on without it, and says so
    free = free_bytes(folder)
    if free < needed_bytes + SPARE_BYTES:
        raise DreamBoothError(
            f"Google Drive is too full: {needed_bytes / 1e9:.1f} GB will be copied there, {free / 1e9:.1f} GB are "
            "free.",
            "Every saved model and its samples are copied there.",
            f"Free some of it{'' if is_resumed else ', raise --save_interval'}, or unset DREAMBOOTH_DRIVE.",
        )


def keep_file(path: Path, folder: Path) -> Path:
    """Copy a file atomically into a folder of the Drive, and return its path there."""
    with new_file(folder / path.name) as temporary:
        shutil.copyfile(path, temporary)
    return folder / path.name


def keep_folder(path: Path, target: Path) -> None:
    """Copy a folder without hidden names atomically; into an existing one, only what is new."""
    if not target.exists():
        with new_folder(target) as temporary:
            unseen = shutil.ignore_patterns(".*")
            shutil.copytree(path, temporary, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=unseen)
        return
    for file in _files(path):
        if not (target / file).exists():
            keep_file(path / file, (target / file).parent)


def keep_photos(path: Path, target: Path) -> None:
    """Make the copy of a photo set hold exactly the set's photos: a deleted one leaves no copy."""
    keep_folder(path, target)
    for gone in _files(target) - _files(path):
        (target / gone).unlink()


def _files(folder: Path) -> set[Path]:
    found = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
    return {file for file in found if not any(part.startswith(".") for part in file.parts)}


def restore_photos(workspace: Workspace) -> None:
    """Copy the photo sets of the Drive to this machine, unless it already has them."""
    if workspace.drive_dir is None:
        return
    for folder in (workspace.drive_dir / "datasets").iterdir():
        if folder.is_dir() and not folder.name.startswith(".") and not (workspace.datasets_dir / folder.name).exists():
            keep_folder(folder, workspace.datasets_dir / folder.name)


def delete_photos(workspace: Workspace, name: str) -> None:
    """Delete the Drive's copy of a photo set, if there is one."""
    if workspace.drive_dir is not None and (workspace.drive_dir / "datasets" / name).is_dir():
        remove_folder(workspace.drive_dir / "datasets" / name)


class DriveCopier:
    """Copies a run's finished steps to the Drive during the run, in a thread of its own.

    A failed copy is a warning: the run itself is on the machine's disk and continues. What a temporarily lost Drive
    missed is copied at the end.
    """

    def __init__(
        self, run: RunFolder, photo_folders: Sequence[Path], drive_dir: Path, report: Callable[[Event], None]
    ) -> None:
        self._run, self._drive_dir, self._report = run, drive_dir, report
        self._missed: list[int] = []
        self._has_reported_loss = False
        self._photos = {folder: drive_dir / "datasets" / folder.name for folder in photo_folders}
        self._target = RunFolder(drive_dir / "runs" / run.name)
        self._due: queue.Queue[int | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="drive", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Note what an event reports as finished."""
        if isinstance(event, ModelSaved | SamplesMade):
            self._due.put(event.step)

    def close(self) -> None:
        """Copy what is left, including records, and return when it is there."""
        self._due.put(None)
        self._thread.join()

    def _work(self) -> None:
        for folder, target in self._photos.items():
            self._copy(keep_photos, folder, target)
        while (step := self._due.get()) is not None:
            self._copy_step(step)
        # If the Drive is still lost, that is reported again, at the end of the log.
        missed, self._missed, self._has_reported_loss = self._missed, [], False
        for step in missed:
            self._copy_step(step)
        # The exact state is large, and like the locks useful only on the machine of the run.
        stays = {self._run.checkpoints, self._run.lock_path, self._run.queue_lock_path}
        for entry in sorted(set(self._run.records.iterdir()) - stays):
            if entry.is_dir():
                self._copy(keep_folder, entry, self._target.records / entry.name)
            elif not entry.name.startswith("."):
                self._copy(keep_file, entry, self._target.records)

    def _copy_step(self, step: int) -> None:
        if not self._copy(keep_folder, self._run.step_folder(step), self._target.step_folder(step)):
            self._missed.append(step)

    def _copy(self, copy: Callable[[Path, Path], object], source: Path, target: Path) -> bool:
        """Copy, and return whether the Drive was available."""
        if lost := lost_drive(self._drive_dir):
            if not self._has_reported_loss:
                only_here = "Finished work is on this machine only: mount Google Drive again, or download it."
                self._report(Notice(f"{lost} {only_here}", "warning"))
            self._has_reported_loss = True
            return False
        try:
            copy(source, target)
        except OSError as error:
            self._report(Notice(f"{source.name} could not be copied to Google Drive: {quoted(error)}", "warning"))
        return True
