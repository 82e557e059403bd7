"""The data folder: datasets, class images, runs, exports."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth.config.limits import as_written
from dreambooth.durable import held_lock, is_locked
from dreambooth.errors import DreamBoothError, RunFolderError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.layout import saved_step_kind
from dreambooth.formats.natural_order import in_natural_order

STEP_NAME = re.compile(r"[1-9][0-9]*")
LORA_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}")


@dataclass(frozen=True)
class Workspace:
    """The data folder and its subfolders, created on first use.

    `drive_dir` is where finished work is copied on a temporary machine, and read from if it exists only there.
    """

    data_dir: Path
    drive_dir: Path | None = None

    def room(self, name: str) -> Path:
        """Return the named folder under the data folder, created if necessary."""
        folder = self.data_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @property
    def runs_dir(self) -> Path:
        """Return the folder of runs without an `output_dir` of their own."""
        return self.room("runs")

    @property
    def datasets_dir(self) -> Path:
        """Return the folder in which the page stores uploaded photos, re-encoded."""
        return self.room("datasets")

    @property
    def class_images_dir(self) -> Path:
        """Return the cache of generated class images."""
        return self.room("class_images")

    @property
    def exports_dir(self) -> Path:
        """Return the folder for exported files; the only folder the page serves."""
        return self.room("exports")

    @property
    def models_dir(self) -> Path:
        """Return the folder of the user's own base models."""
        return self.room("models")

    @property
    def loras_dir(self) -> Path:
        """Return the folder of the LoRA files that the Generate tab can add to a model."""
        return self.room("loras")

    def loras(self) -> list[str]:
        """Return the LoRA files by their paths in that folder, in natural order."""
        root = self.loras_dir
        files = [path for path in root.rglob("*") if path.suffix.lower() in LORA_SUFFIXES and path.is_file()]
        names = [path.relative_to(root).as_posix() for path in files]
        return in_natural_order([name for name in names if not name.startswith(".")], str)

    @property
    def pictures_dir(self) -> Path:
        """Return the folder of the Generate tab's images."""
        return self.room("pictures")

    def run(self, name: str) -> "RunFolder":
        """Return the run of this name; refuses names that could leave the runs folder."""
        if not RUN_NAME.fullmatch(name) or ".." in name:
            raise RunFolderError(
                f"{as_written(name)} is not a valid run name.",
                "The name becomes a folder.",
                "Use letters, digits, - and _.",
            )
        run = RunFolder(self.runs_dir / name)
        if self.drive_dir is not None and not run.path.exists() and (self.drive_dir / "runs" / name).is_dir():
            return RunFolder(self.drive_dir / "runs" / name)
        return run

    def runs(self) -> list["RunFolder"]:
        """Return every run of the data folder, newest first."""
        folders = {folder.name: folder for folder in self.runs_dir.iterdir()}
        # A Drive may be lost while the app runs.
        if self.drive_dir is not None and (self.drive_dir / "runs").is_dir():
            folders = {folder.name: folder for folder in (self.drive_dir / "runs").iterdir()} | folders
        begun_s = {folder: _begun_s(folder) for folder in folders.values()}
        found = [(when_s, folder) for folder, when_s in begun_s.items() if when_s is not None]
        return [RunFolder(folder) for _, folder in sorted(found, key=lambda one: one[0], reverse=True)]

    def new_run_name(self, wish: str) -> str:
        """Return an unused run name that begins with the given one, and create its empty folder."""
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", wish).strip("-")[:60] or "run"
        name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
        return next(free for free in (name, *(f"{name}-{n}" for n in range(2, 1000))) if self._claims(free))

    def _claims(self, name: str) -> bool:
        """Create a run's folder, and return whether it was free: two processes may ask in the same second."""
        with contextlib.suppress(FileExistsError):
            (self.runs_dir / name).mkdir()
            return True
        return False


def _begun_s(folder: Path) -> float | None:
    """Return when a run's settings were written, None if the folder has none, or cannot be read."""
    try:
        return (folder / ".run" / "config.json").stat().st_mtime
    except OSError:
        return None


@dataclass(frozen=True)
class RunFolder:
    """One run on disk: step folders, samples, and our own records under `.run`."""

    path: Path

    @property
    def name(self) -> str:
        """Return the folder's name, which is the run's."""
        return self.path.name

    @property
    def records(self) -> Path:
        """Return the folder with config, state, events and log."""
        return self.path / ".run"

    @property
    def events_path(self) -> Path:
        """Return the file of events, one JSON object per line."""
        return self.records / "events.jsonl"

    @property
    def photo_reader_path(self) -> Path:
        """Return the file that says with which photo reader the run began."""
        return self.records / "photo_reader.json"

    @property
    def notes_path(self) -> Path:
        """Return the file of the user's notes on the run."""
        return self.records / "notes.txt"

    @property
    def log_path(self) -> Path:
        """Return the log file."""
        return self.records / "log.txt"

    @property
    def state_path(self) -> Path:
        """Return the file with the status, step and phase."""
        return self.records / "state.json"

    @property
    def lock_path(self) -> Path:
        """Return the file that the process running this run holds locked."""
        return self.records / "lock"

    @property
    def queue_lock_path(self) -> Path:
        """Return the file that a server holds locked while the run is in its queue."""
        return self.records / "in-line"

    @property
    def checkpoints(self) -> Path:
        """Return the folder of exact states, one folder per step."""
        return self.records / "state"

    @property
    def config_path(self) -> Path:
        """Return the file of the run's settings."""
        return self.records / "config.json"

    @property
    def first_config_path(self) -> Path:
        """Return the file of the settings a run began with; exists once a resume has changed some of them."""
        return self.records / "first-config.json"

    @property
    def finish_path(self) -> Path:
        """Return the file that says where a run that is finishing early ends."""
        return self.records / "finish.json"

    @property
    def extensions_path(self) -> Path:
        """Return the file that says by which steps the run was extended."""
        return self.records / "extensions.json"

    @property
    def scores_path(self) -> Path:
        """Return the file of the run's scores."""
        return self.records / "scores.json"

    @property
    def scores_chart_path(self) -> Path:
        """Return the chart of the run's fidelity and drift."""
        return self.records / "scores.png"

    @property
    def probes(self) -> Path:
        """Return the folder of the probe images that are scored, one folder per step."""
        return self.records / "probes"

    @property
    def bleed(self) -> Path:
        """Return the folder of the reports on side effects, one folder per step."""
        return self.records / "bleed"

    def hashes_path(self, step: int) -> Path:
        """Return the file with the hashes of a saved step's weights."""
        return self.records / "hashes" / f"{step}.json"

    def step_folder(self, step: int) -> Path:
        """Return the folder of this step's model, which may not exist yet."""
        return self.path / str(step)

    def steps(self) -> list[int]:
        """Return the steps with a complete model, in order."""
        if not self.path.is_dir():
            return []
        names = [entry.name for entry in self.path.iterdir() if STEP_NAME.fullmatch(entry.name)]
        return [int(name) for name in sorted(names, key=int) if saved_step_kind(self.path / name) is not None]

    def base_step(self) -> tuple[int, bool] | None:
        """Return the step that another training starts from, and whether the run's scores recommend it.

        Without a recommendation it is the newest; None for a folder that is no run, or has no saved step.
        """
        steps = self.steps() if self.config_path.exists() else []
        if not steps:
            return None
        try:
            recommended = read_object(self.scores_path).get("recommended_step")
        except (OSError, ValueError):
            recommended = None
        return next(((step, True) for step in steps if step == recommended), (steps[-1], False))

    def checkpoint_steps(self) -> list[int]:
        """Return the steps with an exact state, in order; states are verified when a run resumes from them."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.checkpoints.iterdir() if STEP_NAME.fullmatch(entry.name))

    def samples(self) -> dict[int, list[Path]]:
        """Return the sample images of every step, the base model's under 0."""
        if not self.path.is_dir():
            return {}
        steps = sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdecimal())
        found = {
            step: in_natural_order((self.step_folder(step) / "samples").glob("[0-9]*.png"), lambda file: file.name)
            for step in steps
        }
        return {step: files for step, files in found.items() if files}

    def refuse_if_used(self, *, is_claimed: bool = False) -> None:
        """Raise RunFolderError if the folder holds saved steps, or a run that is active or can be resumed.

        With `is_claimed`, this process holds the run's lock.
        """
        held = is_locked(self.queue_lock_path) or (not is_claimed and is_locked(self.lock_path))
        if held or self.steps() or self.checkpoint_steps() or any(step for step in self.samples()):
            raise RunFolderError(
                f"{self.path} already holds a run.",
                "A new run would mix its steps with the existing ones.",
                "Choose another --output_dir, or continue it with --resume_from_checkpoint latest.",
            )

    def forget_failed_start(self) -> None:
        """Remove the records of a run that ended before its first step, and the images of its base; the log stays."""
        records = (
            self.events_path, self.state_path, self.config_path, self.first_config_path, self.finish_path,
            self.extensions_path,
        )  # fmt: skip
        for path in (*records, self.scores_path, self.scores_chart_path):
            path.unlink(missing_ok=True)
        for folder in (self.step_folder(0) / "samples", self.probes, self.bleed):
            shutil.rmtree(folder, ignore_errors=True)


def newest_step_folder(path: Path) -> Path:
    """Return the newest step folder in natural order, or the folder itself if it is a model."""
    if saved_step_kind(path) is not None:
        return path
    steps = RunFolder(path).steps()
    if not steps:
        raise RunFolderError(
            f"{path} holds no model.",
            "Neither model_index.json nor a step folder is in it.",
            "Name a run's folder, one of its step folders, or a diffusers folder.",
        )
    return path / str(steps[-1])


@contextlib.contextmanager
def held_data_folder(workspace: Workspace) -> Iterator[None]:
    """Hold the data folder for this process's server; raises DreamBoothError if another server uses it."""
    path = workspace.data_dir / "server.lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held_lock(path))
        except BlockingIOError as error:
            raise DreamBoothError(
                f"Another server is already using {workspace.data_dir}.",
                f"It is process {_holder(path)}.",
                "Open its page, or stop it first; set DREAMBOOTH_HOME to give a second server its own folder.",
            ) from error
        # Written in place: a renamed file would not be the locked one.
        path.write_text(f"{os.getpid()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}", "utf-8")
        yield


def _holder(path: Path) -> str:
    text = path.read_text("utf-8", errors="replace")[:100]
    return text if text.isprintable() and text else "of an unknown number"
