"""Runs and generation requests as jobs: the background thread of the page.

A job only has a thread, a place in the queue and three buttons; what the page shows of it is read from disk (`view`).
"""

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.limits import as_written
from dreambooth.config.recipes import leaner_method
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import driver_device
from dreambooth.durable import held_lock, is_locked
from dreambooth.environment import Secret, Settings
from dreambooth.errors import DeviceError, RunFolderError, without_secrets
from dreambooth.events import FINAL_STATUSES, Controls, LossReader, OnProgress, StatusChanged, unwatched
from dreambooth.forecast.memory import fastest_plan, memory_need
from dreambooth.forecast.shape import read_shape
from dreambooth.models.availability import bytes_to_download
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import model_name
from dreambooth.pictures.painter import OnNotice, OnStep, Painter, folder_of, prompts_to_compare, steps_to_compare
from dreambooth.pictures.queue import Order, PictureQueue
from dreambooth.records.eta import in_words
from dreambooth.records.removal import Removed, remove_run
from dreambooth.records.runlog import RunLog, read_config, read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.found_subject import found_subject
from dreambooth.runs.model_list import listed_models
from dreambooth.runs.resuming import resumable_config
from dreambooth.runs.run import Training, execute, start_records
from dreambooth.runs.smaller import record_end, smaller_config
from dreambooth.runs.view import RunView, read_view
from dreambooth.scoring.bleed import PromptChange, bleed_report, report_for_card
from dreambooth.scoring.records import RunScores
from dreambooth.scoring.run import score_here
from dreambooth.training.materials import RunContext

if TYPE_CHECKING:
    from PIL import Image

    from dreambooth.data.focus import Focus

# What a request for images does while a run is training.
When = Literal["ask", "after training", "pause training"]


@dataclass(frozen=True)
class _Job:
    run: RunFolder
    config: TrainingConfig
    is_resumed: bool = False
    explicit: Collection[str] | None = None
    controls: Controls = field(default_factory=Controls)
    # The lock on the run's place in the queue: it tells readers of the folder that the run is still queued.
    place: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class Jobs:
    """The runs of one app: one trains at a time in a thread of its own, the others wait in the queue."""

    def __init__(
        self, workspace: Workspace, manager: ModelManager, token: str | None = None, *, train: Training | None = None
    ) -> None:
        """`train` replaces the actual training, `run_training`, for all runs."""
        self._workspace, self._manager, self._token, self._training = workspace, manager, token, train
        self._queue: list[_Job] = []
        self._loss_readers: dict[Path, LossReader] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._painter = Painter(manager, workspace.models_dir, token)
        self.pictures = PictureQueue(self._changed, self._is_queued, self._lent_device)

    def _is_queued(self, name: str) -> bool:
        return any(job.run.name == name for job in self._queue)

    def start(self, config: TrainingConfig, wish: str = "run", explicit: Collection[str] | None = None) -> str:
        """Queue a run and return its name; raises ConfigError with every mistake before anything is written.

        `explicit` names the explicit settings, of which the run's log reports those without effect.
        """
        bytes_to_download(config.checked(), self._token, self._workspace.models_dir)
        with self._changed:
            self._refuse_at_the_end()
            run = self._workspace.run(self._workspace.new_run_name(wish))
            self._submit(_Job(run, start_records(config, run, self._workspace.models_dir), explicit=explicit))
        return run.name

    def resume(self, name: str) -> None:
        """Queue a run that ended before its last step, to continue from its newest state."""
        self._resume(name, {})

    def train_more(self, name: str, max_train_steps: int) -> None:
        """Queue a run that has ended, finished or not, to be trained to this many steps in all."""
        self._resume(name, {"max_train_steps": max_train_steps})

    def _resume(self, name: str, changes: Mapping[str, Any]) -> None:
        run = self._workspace.run(name)
        if (kept := read_config(run)) is not None:
            bytes_to_download(kept, self._token, self._workspace.models_dir)
        with self._changed:
            self._refuse_at_the_end()
            drive = self._workspace.drive_dir
            if drive is not None and run.path.is_relative_to(drive):
                raise RunFolderError(
                    f"{name} is on Google Drive only.", "Its exact state is on the machine that trained it.",
                    "Train further from one of its steps: choose it as the base model.",
                )  # fmt: skip
            if any(job.run.name == name for job in self._queue):
                raise RunFolderError(f"{name} is already running or queued.", "There is no need to start it again.", "")
            job = _Job(run, resumable_config(run, changes), is_resumed=True)
            # With its place locked, no other process starts the run; one that did so just now is seen here.
            with contextlib.ExitStack() as undone:
                undone.enter_context(job.place).enter_context(held_lock(run.queue_lock_path))
                if is_locked(run.lock_path):
                    raise RunFolderError(f"{name} is running.", "Another process is using it.", "Stop it there first.")
                self._append(job)
                undone.pop_all()

    def _submit(self, job: _Job) -> None:
        job.place.enter_context(held_lock(job.run.queue_lock_path))
        try:
            self._append(job)
        except OSError:
            job.place.close()
            raise

    def _append(self, job: _Job) -> None:
        RunLog(job.run, job.config.max_train_steps or 0)(StatusChanged("queued"))
        self._queue.append(job)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="runs", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def stop(self, name: str) -> None:
        """Ask a run to finish its step, save and end; a queued one is removed from the queue."""
        with self._changed:
            job = self._job(name)
            job.controls.stop.set()
            if job is not self._queue[0]:
                self._leave(job, "Removed from the queue.")

    def _leave(self, job: _Job, why: str) -> None:
        self._queue.remove(job)
        with job.place:
            RunLog(job.run, job.config.max_train_steps or 0)(StatusChanged("stopped", why))

    def _refuse_at_the_end(self) -> None:
        if self._closing:
            raise DeviceError("The app is shutting down.", "It no longer accepts runs.", "Start the app again first.")

    def save_now(self, name: str) -> None:
        """Ask a run to save its model after this step."""
        self._job(name).controls.save_now.set()

    def finish_now(self, name: str) -> None:
        """Ask a run to finish early: a short cool-down to a rate of zero, then its last save."""
        self._job(name).controls.finish_now.set()

    def sample_now(self, name: str) -> None:
        """Ask a run for samples after this step."""
        self._job(name).controls.sample_now.set()

    def active(self) -> str | None:
        """Return the name of the run that is training, or of the next one in the queue."""
        with self._changed:
            return self._queue[0].run.name if self._queue else None

    def waiting(self) -> list[str]:
        """Return the names of the queued runs, the next one first."""
        with self._changed:
            return [job.run.name for job in self._queue[1:]]

    def makes_pictures(self) -> bool:
        """Return whether the device is lent to generation."""
        return self._manager.holder == "generation"

    def retry_with_less(self, name: str) -> str:
        """Queue a new run with this one's settings, changed to need less memory; return its name."""
        view = self.view(name)
        smaller = None if view.config is None else self._that_fits(view.config, view.total_steps or None)
        if smaller is None:
            leaner = None if view.config is None else leaner_method(view.config)
            todo = f"Train {leaner[1]} instead, or use a" if leaner else "Use a"
            raise RunFolderError(
                f"There are no settings of {name} that need less memory.", "They are already the smallest.",
                f"{todo} device with more memory.",
            )  # fmt: skip
        return self.start(dataclasses.replace(smaller, output_dir=None), name, explicit=())

    def _that_fits(self, config: TrainingConfig, num_steps: int | None) -> TrainingConfig | None:
        """Return the fastest plan for the device if it needs less, else the least harmful change that reduces it."""
        device = driver_device()
        shape = read_shape(config.pretrained_model_name_or_path, self._workspace.models_dir)
        plan = fastest_plan(config, shape, device, num_steps=num_steps)
        needs = [memory_need(one, shape, device.kind, num_steps).peak_bytes for one in (plan, config)]
        return plan if needs[0] < needs[1] else smaller_config(config, self._workspace.models_dir)

    def remove(self, name: str) -> Removed:
        """Delete a run and everything that the program wrote into its folder; other files stay."""
        run = self._workspace.run(name)
        with self._changed:
            if any(job.run.name == name for job in self._queue):
                raise RunFolderError(f"{name} is running or queued.", "Its files are in use.", "Stop it first.")
            if self.pictures.uses(run.path):
                todo = "Wait for them, or cancel them on the Generate tab."
                raise RunFolderError(f'Pictures are being made with "{name}".', "Its files are in use.", todo)
            self._loss_readers.pop(run.path, None)
            return remove_run(self._workspace, run)

    def _loss_reader(self, run: RunFolder) -> LossReader:
        with self._changed:
            return self._loss_readers.setdefault(run.path, LossReader(run.events_path))

    def view(self, name: str) -> RunView:
        """Return what the page shows of a run."""
        run = self._workspace.run(name)
        if not run.config_path.exists():
            raise RunFolderError(f"There is no run {as_written(name)}.", "Its folder is gone.", "Choose another run.")
        with self._changed:
            names = [job.run.name for job in self._queue]
            stopping = any(job.run.name == name and job.controls.stop.is_set() for job in self._queue)
        ahead = names[: names.index(name)] if name in names else []
        return read_view(run, self._loss_reader(run), queued_after=ahead, is_stopping=stopping)

    def score(
        self, name: str, on_picture: OnProgress = unwatched, *, download: bool = True, base: str | None = None
    ) -> RunScores:
        """Score every saved step of a run that has ended, LoRAs on `base` if it is not the one the run names."""
        run = self._workspace.run(name)
        return score_here(
            run, self._workspace, self._manager, self._token, download=download, on_picture=on_picture, base=base
        )

    def held_bytes(self) -> int:
        """Return the device memory that this app holds, for generation or a run, and that the next run can use."""
        return self._manager.held_bytes

    def bleed(
        self, name: str, on_picture: OnProgress = unwatched, *, download: bool = True, base: str | None = None
    ) -> list[PromptChange]:
        """Return the side effects of a run's recommended step, or else its last."""
        run = self._workspace.run(name)
        step = self.view(name).recommended_step
        return bleed_report(
            run.path, step, settings=self._settings(), manager=self._manager, download=download, on_picture=on_picture,
            base=base,
        )  # fmt: skip

    def _settings(self) -> Settings:
        token = None if self._token is None else Secret(self._token)
        return Settings(self._workspace.data_dir, token=token)

    def report_for_card(self, model: Path, on_picture: OnProgress, base: str | None = None) -> bool:
        """Make the side effects report for a model's card if it is missing and does not take hours."""
        return report_for_card(
            model, settings=self._settings(), manager=self._manager, on_picture=on_picture, base=base
        )

    def found_subject(self, photo: Path, focus: "Focus", class_prompt: str, base: str, side_px: int) -> "Image.Image":
        """Return where a base on this machine finds the subject of a photo; see `found_subject`."""
        return found_subject(photo, focus, class_prompt, base, side_px, self._manager, self._workspace.models_dir)

    def generate(self, model: str, config: GenerationConfig, when: When = "ask") -> Iterator[Path]:
        """Yield image files one by one; `when` applies while a run is training, see `order`."""
        yield from self.pictures.follow(self.order(model, config, when))

    def order(self, model: str, config: GenerationConfig, when: When = "ask", base: str | None = None) -> Order:
        """Queue a generation request; `base` is what a LoRA is added to, if not what the step names.

        While a run trains, the request starts after it, or pauses it; `ask` raises DeviceError that says how long it
        takes.
        """
        config.checked()
        folder = folder_of(model, self._workspace)

        def work(on_step: OnStep, should_stop: Callable[[], bool], notice: OnNotice) -> Iterator[Path]:
            return self._painter.pictures(
                model, config, folder, on_step=on_step, should_stop=should_stop, wait=True, notice=notice, base=base
            )

        after = self._blocking_run(when)
        return self.pictures.add(model_name(model), config.num_images_per_prompt, work, after, Path(model).parent)

    def order_comparison(
        self, name: str, steps: Sequence[int], config: GenerationConfig, when: When = "ask", base: str | None = None
    ) -> Order:
        """Queue the same images of several steps of a run, 0 being its base, and their grid.

        `base` is what the steps of a LoRA are added to, if not what they name.
        """
        run = self._workspace.run(name)
        kept = read_config(run)
        models = steps_to_compare(run, steps, base or (kept.pretrained_model_name_or_path if kept else ""))
        prompts = prompts_to_compare(config, len(models))
        folder = self._workspace.pictures_dir / run.name

        def work(on_step: OnStep, should_stop: Callable[[], bool], notice: OnNotice) -> Iterator[Path]:
            return self._painter.compare(
                models, prompts, config, folder, on_step=on_step, should_stop=should_stop, wait=True, notice=notice,
                base=base,
            )  # fmt: skip

        after = self._blocking_run(when)
        num_pictures = len(models) * len(prompts) * config.num_images_per_prompt
        return self.pictures.add(f"{name}: {len(models)} steps", num_pictures, work, after, run.path)

    def _blocking_run(self, when: When) -> str:
        """Return the run that a request waits for; raises DeviceError if one is training and `when` is `ask`."""
        active = self.active()
        if active is None or when == "pause training":
            return ""
        state = read_state(self._workspace.run(active))
        # A run that is over has reported it, and leaves the queue within a moment.
        if when == "after training" or state.status in FINAL_STATUSES:
            return active
        seconds_left = state.seconds_left
        wait = f"About {in_words(seconds_left)} left." if seconds_left is not None else "Its time left is unknown."
        raise DeviceError(
            f"The device is training {active}.", wait,
            "Make the pictures after the training, let it pause for them, or stop it.",
        )  # fmt: skip

    @contextlib.contextmanager
    def _lent_device(self) -> Iterator[None]:
        """Have the run that is training, if any, lend the device for the duration of the block."""
        with self._changed:
            lenders = [job.controls.lend for job in self._queue[:1]]
        for lend in lenders:
            lend.set()
        try:
            yield
        finally:
            for lend in lenders:
                lend.clear()

    def models(self) -> list[tuple[str, str]]:
        """Return (label, value) of every model that can generate, newest steps first."""
        return listed_models(self._workspace)

    def close(self) -> None:
        """Stop the current run, wait until it has saved, and accept nothing new; queued runs can be resumed."""
        with self._changed:
            self._closing = True
            for job in self._queue[:1]:
                job.controls.stop.set()
            for job in self._queue[1:]:
                self._leave(job, "The app ended before the run started.")
            self._changed.notify_all()
        self.pictures.close()
        if self._thread is not None:
            self._thread.join()

    def _job(self, name: str) -> _Job:
        for job in self._queue:
            if job.run.name == name:
                return job
        raise RunFolderError(f"{name} is not running.", "It has ended, or was not started here.", "")

    def _work(self) -> None:
        while True:
            with self._changed:
                # Requests that waited for the previous run come first.
                self._changed.wait_for(lambda: self._closing or (self._queue and not self.pictures.is_due()))
                if not self._queue:
                    return
                job = self._queue[0]
            # A separate thread: torch's threads in it end with the run, and do not slow down what comes after.
            training = threading.Thread(target=self._train, args=(job,), name="training", daemon=True)
            try:
                training.start()
                training.join()
            finally:
                with self._changed:
                    self._queue.remove(job)
                    job.place.close()
                    self._changed.notify_all()

    def _train(self, job: _Job) -> None:
        try:
            context = RunContext(
                job.run, self._workspace, self._manager, self._token, job.controls, is_resumed=job.is_resumed,
                explicit=job.explicit,
            )  # fmt: skip
            execute(job.config, context, train=self._training)
        # Another process has started the run: its records belong to that one.
        except BlockingIOError as error:
            print(without_secrets(f"{job.run.name}: {error}"), file=sys.stderr)
        # Top level of the thread: a library that calls exit ends its run, not those queued behind it.
        except BaseException as error:
            record_end(job.run, job.config, error)
