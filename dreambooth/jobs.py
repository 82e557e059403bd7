"""Runs and pictures as jobs: the background thread of the page, and the same work called straight from Python.

The run folder is the truth. A job only has a thread, a place in the queue and three buttons; what the page shows of it
is read from disk.
"""

import dataclasses
import errno
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config import SD15, GenerationConfig, TrainingConfig
from dreambooth.errors import ConfigError, DeviceError, DreamBoothError, RunFolderError, TrainingError
from dreambooth.events import (
    FINAL_STATUSES,
    Controls,
    Event,
    Notice,
    Resumed,
    Status,
    StatusChanged,
    StepLoss,
    losses_of,
    read_events,
)
from dreambooth.models.base import STARTER, read_card
from dreambooth.models.manager import ModelManager
from dreambooth.runlog import RunLog, TensorBoardLog, failure, read_state
from dreambooth.settings import Settings, load_settings
from dreambooth.workspace import (
    RunFolder,
    Workspace,
    held_lock,
    is_locked,
    newest_step_folder,
    sweep_unfinished,
    write_json,
)

if TYPE_CHECKING:
    from accelerate import PartialState

    from dreambooth.models.base import Base
    from dreambooth.training.checkpoint import Checkpoint

# Given back when the disk is full, so that the run's end can still be written down.
RESERVE_BYTES = 1 << 18
LOG_TAIL_BYTES = 16_000


@dataclass(frozen=True)
class RunView:
    """All the page shows of a run, read from its folder."""

    name: str
    path: Path
    status: Status
    step: int
    total_steps: int
    phase: str
    phase_done: int
    phase_total: int
    seconds_left: float | None
    error: StatusChanged | None
    queue_place: int | None
    losses: list[StepLoss]
    log_tail: str
    samples: dict[int, list[Path]]
    steps: list[int]
    resume_step: int | None
    silent_s: float
    config: TrainingConfig | None


# One run, from start to final status ---------------------------------------------------------------------------------


def start_records(config: TrainingConfig, run: RunFolder) -> TrainingConfig:
    """Make a new run's folder with its settings, seed included; raises RunFolderError when the folder is in use."""
    config.checked()
    run.refuse_if_used()
    seed = secrets.randbelow(2**32) if config.seed is None else config.seed
    config = dataclasses.replace(config, seed=seed, output_dir=str(run.path))
    write_json(run.config_path, config.to_json())
    return config


def execute(
    config: TrainingConfig,
    run: RunFolder,
    *,
    workspace: Workspace,
    manager: ModelManager,
    token: str | None,
    controls: Controls,
    on_event: Callable[[Event], None] = lambda event: None,
    resume: bool = False,
) -> StatusChanged:
    """Train a run whose records exist, and return its final status; never raises for what happens inside the run.

    With `resume` it goes on from its newest valid state.
    """
    log = RunLog(run, config.max_train_steps or 0)
    board = TensorBoardLog(run, config.logging_dir)

    def report(event: Event) -> None:
        log(event)
        board(event)
        on_event(event)

    with held_lock(run.lock_path):
        sweep_unfinished(run.path)
        sweep_unfinished(workspace.data_dir)
        reserve = run.records / "reserve"
        reserve.write_bytes(bytes(RESERVE_BYTES))
        try:
            report(StatusChanged("running"))
            with manager.lease("training", wait=True):
                final = _train(
                    config,
                    run,
                    workspace=workspace,
                    manager=manager,
                    token=token,
                    report=report,
                    controls=controls,
                    resume=resume,
                )
        except DreamBoothError as error:
            final = failure(error)
        # The top of a job: whatever ended the run is told by its status, and a bug keeps its traceback in the log.
        except Exception as error:
            reserve.unlink(missing_ok=True)
            if not _is_disk_full(error):
                log.bug(error)
            final = _unexpected(error, config)
        reserve.unlink(missing_ok=True)
        report(final)
        board.close()
    return final


def _train(
    config: TrainingConfig,
    run: RunFolder,
    *,
    workspace: Workspace,
    manager: ModelManager,
    token: str | None,
    report: Callable[[Event], None],
    controls: Controls,
    resume: bool = False,
) -> StatusChanged:
    from dreambooth.training.preparation import prepare
    from dreambooth.training.trainer import Trainer

    checkpoint = _state_to_resume(run, report) if resume else None
    if read_card(config.pretrained_model_name_or_path).is_toy:
        report(Notice(read_card(config.pretrained_model_name_or_path).notice))
    materials = prepare(config, workspace=workspace, manager=manager, token=token, report=report, controls=controls)
    if materials is None:
        return StatusChanged("stopped", "Stopped before the first step.")
    num_steps = Trainer(config, materials, run, manager, report, controls, checkpoint).run()
    if num_steps < materials.num_steps:
        return StatusChanged("stopped", f"Stopped and saved after {num_steps} of {materials.num_steps} steps.")
    return StatusChanged("done", f"{num_steps} steps.")


def _state_to_resume(run: RunFolder, report: Callable[[Event], None]) -> "Checkpoint | None":
    """Return the state to go on from, None for a run that ended before its first; never starts again in silence."""
    from dreambooth.training.checkpoint import newest_checkpoint

    had_states = run.checkpoints.is_dir() and any(run.checkpoints.iterdir())
    found = newest_checkpoint(run, lambda text: report(Notice(text, "warning")))
    if found is not None:
        return found
    if had_states:
        raise TrainingError(
            "There is no valid state to go on from.",
            f"{run.name} had trained, but {run.checkpoints} holds no whole state.",
            "Start a new run; its saved models, if any, can be its base.",
        )
    report(Notice("The run ended before its first state was kept: it starts again at its first step.", "warning"))
    report(Resumed(0))
    return None


def _is_disk_full(error: BaseException) -> bool:
    # safetensors and torch wrap the system's error in their own and leave its number out.
    full = (errno.ENOSPC, errno.EDQUOT)
    return (isinstance(error, OSError) and error.errno in full) or os.strerror(errno.ENOSPC) in str(error)


def _unexpected(error: Exception, config: TrainingConfig) -> StatusChanged:
    if _is_disk_full(error):
        return StatusChanged(
            "paused",
            "The disk is full.",
            "What was saved before is whole; what was being written was taken back.",
            "Make room, then resume the run.",
        )
    if type(error).__name__ == "OutOfMemoryError":
        return StatusChanged(
            "failed",
            "The device ran out of memory.",
            str(error).split(". ", 1)[0] + ".",
            f"What needs less: {'; '.join(smaller_settings(config))}.",
        )
    return StatusChanged(
        "failed",
        f"The run ended with an unexpected {type(error).__name__}.",
        str(error)[:300],
        "The log has the details.",
    )


def smaller_settings(config: TrainingConfig) -> list[str]:
    """Return what would lower the memory of these settings, the least harmful first; never empty."""
    ways = [
        (not config.gradient_checkpointing, "--gradient_checkpointing"),
        (not config.use_8bit_adam, "--use_8bit_adam (on an NVIDIA GPU)"),
        (config.mixed_precision == "no", "--mixed_precision fp16 or bf16"),
        (config.train_batch_size > 1, "--train_batch_size 1, with --gradient_accumulation_steps instead"),
        (config.use_ema, "no --use_ema"),
        (config.not_cache_latents, "no --not_cache_latents"),
        (config.train_text_encoder, "no --train_text_encoder"),
        (True, f"a --resolution below {config.resolution}"),
    ]
    return [way for applies, way in ways if applies]


# From Python ---------------------------------------------------------------------------------------------------------


def train(
    config: TrainingConfig,
    *,
    settings: Settings | None = None,
    controls: Controls | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Path:
    """Train, and return the folder of the last saved step; raises DreamBoothError when the run fails."""
    settings = settings or load_settings()
    workspace, manager = Workspace(settings.data_dir), ModelManager()

    def records() -> TrainingConfig:
        own_folder = Path(config.output_dir).absolute() if config.output_dir else None
        run = RunFolder(own_folder) if own_folder else workspace.run(workspace.new_run_name("run"))
        return start_records(config, run)

    return _run_here(records, workspace, manager, settings, controls, on_event, resume=False)


def resume(
    run_path: Path,
    *,
    settings: Settings | None = None,
    controls: Controls | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Path:
    """Go on with a run that was ended before its last step, and return the folder of the last saved step.

    On the CPU, with the same versions and number of threads, it becomes bit for bit the run that never ended. Raises
    DreamBoothError when there is nothing to go on with, and when the run fails.
    """
    settings = settings or load_settings()
    run = RunFolder(run_path.absolute())

    def records() -> TrainingConfig:
        return resumable_config(run)

    return _run_here(records, Workspace(settings.data_dir), ModelManager(), settings, controls, on_event, resume=True)


def resumable_config(run: RunFolder) -> TrainingConfig:
    """Return the settings a run goes on with; raises RunFolderError when it is none, complete, or still at work."""
    config = _read_config(run)
    if config is None:
        raise RunFolderError(
            f"{run.path} holds no run.", "Its settings cannot be read.", "Name the folder of a run, or start a new one."
        )
    status = read_state(run).status
    if status == "done":
        raise RunFolderError(f"{run.name} is complete.", "All its steps are done.", "Start a new run.")
    if is_locked(run.lock_path):
        raise RunFolderError(f"{run.name} is still at work.", "Another process has it.", "Wait, or stop it there.")
    return dataclasses.replace(config, output_dir=str(run.path))


def _run_here(
    records: Callable[[], TrainingConfig],
    workspace: Workspace,
    manager: ModelManager,
    settings: Settings,
    controls: Controls | None,
    on_event: Callable[[Event], None],
    *,
    resume: bool,
) -> Path:
    process = _this_process(manager)
    shared: list[TrainingConfig | None] = [None]
    if process.is_main_process:
        shared = [records()]
    if process.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(shared)
    recorded = shared[0]
    assert recorded is not None
    assert recorded.output_dir is not None
    run = RunFolder(Path(recorded.output_dir))
    work: dict[str, Any] = {
        "workspace": workspace,
        "manager": manager,
        "token": _revealed(settings),
        "controls": controls or Controls(),
        "resume": resume,
    }
    if not process.is_main_process:
        # Only the first process writes and reports; the others lend their device to its steps.
        _train(recorded, run, report=lambda event: None, **work)
        return run.path
    final = execute(recorded, run, on_event=on_event, **work)
    if final.status in ("failed", "paused"):
        raise DreamBoothError(final.what, final.why, final.todo)
    return newest_step_folder(run.path)


def _this_process(manager: ModelManager) -> "PartialState":
    """Return which of the processes of `accelerate launch` this is; the only one when started otherwise."""
    from accelerate import PartialState

    return PartialState(cpu=manager.device.type == "cpu")


def generate(
    model: str | Path,
    config: GenerationConfig,
    output_dir: str | Path,
    *,
    settings: Settings | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Make pictures with a model (a run, a step folder, a base), and return the PNG files written to `output_dir`."""
    settings = settings or load_settings()
    pictures = make_pictures(
        str(model),
        config.checked(),
        Path(output_dir),
        manager=ModelManager(),
        models_dir=Workspace(settings.data_dir).models_dir,
        token=_revealed(settings),
        on_step=on_step,
    )
    return list(pictures)


def make_pictures(
    model: str,
    config: GenerationConfig,
    output_dir: Path,
    *,
    manager: ModelManager,
    models_dir: Path,
    token: str | None,
    on_step: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Path]:
    """Yield each picture's file when it is written; raises DeviceError while something else has the device."""
    from dreambooth.generation import Pipe, generate_images, save_picture
    from dreambooth.models.base import load_base

    key = str(newest_step_folder(Path(model)).absolute()) if Path(model).is_dir() else model

    def load() -> "Base":
        return load_base(key, token=token, models_dir=models_dir)

    with manager.lease("generation", wait=False):
        base = manager.resident(key, load)
        side_px = base.card.native_px
        config = dataclasses.replace(
            config,
            height=config.height or side_px,
            width=config.width or side_px,
            seed=secrets.randbelow(2**32) if config.seed is None else config.seed,
        )
        name = Path(key).name if not Path(key).name.isdecimal() else f"{Path(key).parent.name}/{Path(key).name}"
        pipe = Pipe(base.unet, base.text_encoder, base.vae, base.tokenizer, base.noise_scheduler_config, name)
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for number, picture in enumerate(generate_images(pipe, config, on_step=on_step, should_stop=should_stop)):
            path = output_dir / f"{stamp}-{config.seed}-{number}.png"
            output_dir.mkdir(parents=True, exist_ok=True)
            save_picture(picture, path)
            yield path


def _revealed(settings: Settings) -> str | None:
    return settings.token.reveal() if settings.token else None


# For the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    run: RunFolder
    config: TrainingConfig
    controls: Controls
    resume: bool = False


class Jobs:
    """The runs of one app: one trains at a time in a thread of its own, further ones wait in line."""

    def __init__(self, workspace: Workspace, manager: ModelManager, token: str | None = None) -> None:
        self._workspace, self._manager, self._token = workspace, manager, token
        self._line: list[_Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self, config: TrainingConfig, wish: str = "run") -> str:
        """Queue a run and return its name; raises ConfigError with every mistake before anything is written."""
        config.checked()
        with self._changed:
            run = self._workspace.run(self._workspace.new_run_name(wish))
            self._queue(_Job(run, start_records(config, run), Controls()))
        return run.name

    def resume(self, name: str) -> None:
        """Queue a run that was ended before its last step, to go on from its newest state."""
        with self._changed:
            run = self._workspace.run(name)
            if any(job.run.name == name for job in self._line):
                raise RunFolderError(f"{name} is at work or in line already.", "It needs no second start.", "")
            self._queue(_Job(run, resumable_config(run), Controls(), resume=True))

    def _queue(self, job: _Job) -> None:
        RunLog(job.run, job.config.max_train_steps or 0)(StatusChanged("queued"))
        self._line.append(job)
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="training", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def stop(self, name: str) -> None:
        """Ask a run to finish its step, save and end; a queued one is taken out of the line."""
        with self._changed:
            job = self._job(name)
            job.controls.stop.set()
            if job is not self._line[0]:
                self._line.remove(job)
                RunLog(job.run, job.config.max_train_steps or 0)(StatusChanged("stopped", "Taken out of the queue."))

    def save_now(self, name: str) -> None:
        """Ask a run to save its model after this step."""
        self._job(name).controls.save_now.set()

    def sample_now(self, name: str) -> None:
        """Ask a run for sample pictures after this step."""
        self._job(name).controls.sample_now.set()

    def active(self) -> str | None:
        """Return the name of the run that trains, or of the next in line."""
        with self._changed:
            return self._line[0].run.name if self._line else None

    def view(self, name: str) -> RunView:
        """Return what the page shows of a run."""
        run = self._workspace.run(name)
        if not run.config_path.exists():
            raise RunFolderError(f"There is no run {name!r}.", "Its folder is gone.", "Choose another run.")
        with self._changed:
            places = {job.run.name: place for place, job in enumerate(self._line)}
            stopping = any(job.run.name == name and job.controls.stop.is_set() for job in self._line)
        state = read_state(run)
        status: Status = "stopping" if stopping and state.status not in FINAL_STATUSES else state.status
        return RunView(
            name=name,
            path=run.path,
            status=status,
            step=state.step,
            total_steps=state.total_steps,
            phase=state.phase,
            phase_done=state.phase_done,
            phase_total=state.phase_total,
            seconds_left=state.seconds_left,
            error=state.error,
            queue_place=places.get(name) or None,
            losses=losses_of(read_events(run.events_path)),
            log_tail=_tail(run.log_path),
            samples=run.samples(),
            steps=run.steps(),
            resume_step=_resume_step(run, status),
            silent_s=max(time.time() - state.heartbeat_s, 0.0) if status in ("running", "stopping") else 0.0,
            config=_read_config(run),
        )

    def generate(
        self,
        model: str,
        config: GenerationConfig,
        *,
        on_step: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Iterator[Path]:
        """Yield picture files one by one; while a run trains, raises DeviceError that says how long it will take."""
        active = self.active()
        if active is not None:
            seconds_left = read_state(self._workspace.run(active)).seconds_left
            wait = (
                "It is too early to say how long." if seconds_left is None else f"About {in_words(seconds_left)} left."
            )
            raise DeviceError(f"The device is training {active}.", wait, "Try again then, or stop the training.")
        yield from make_pictures(
            model,
            config.checked(),
            self._workspace.pictures_dir,
            manager=self._manager,
            models_dir=self._workspace.models_dir,
            token=self._token,
            on_step=on_step,
            should_stop=should_stop,
        )

    def models(self) -> list[tuple[str, str]]:
        """Return (label, value) of every model pictures can be made with, newest steps first."""
        steps = [
            (f"{run.name} · step {step}", str(run.step_folder(step)))
            for run in self._workspace.runs()
            for step in reversed(run.steps())
        ]
        own = sorted(entry for entry in self._workspace.models_dir.iterdir() if not entry.name.startswith("."))
        bases = [(entry.name, str(entry)) for entry in own]
        return [*steps, ("starter (toy)", STARTER), *bases, ("Stable Diffusion 1.5", SD15)]

    def close(self) -> None:
        """Stop the run that trains, wait until it has saved, and take nothing new."""
        with self._changed:
            self._closing = True
            for job in self._line:
                job.controls.stop.set()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _job(self, name: str) -> _Job:
        for job in self._line:
            if job.run.name == name:
                return job
        raise RunFolderError(f"{name} is not running.", "It has ended or was never started here.", "")

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closing)
                if not self._line:
                    return
                job = self._line[0]
            try:
                execute(
                    job.config,
                    job.run,
                    workspace=self._workspace,
                    manager=self._manager,
                    token=self._token,
                    controls=job.controls,
                    resume=job.resume,
                )
            # The run's own records could not be written, or another process has them: there is nowhere else to tell it.
            except OSError as error:
                print(f"{job.run.name}: {error}", file=sys.stderr)
            finally:
                with self._changed:
                    self._line.pop(0)


def _resume_step(run: RunFolder, status: Status) -> int | None:
    """Return the step that a resumed run would go on after, 0 for its start; None when it needs no resuming."""
    if status not in ("interrupted", "paused", "stopped", "failed"):
        return None
    return max(run.checkpoint_steps(), default=0)


def in_words(seconds: float) -> str:
    """Return a duration as a person would say it: `40 s`, `6 min`, `1 h 20 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - LOG_TAIL_BYTES, 0))
        return file.read().decode("utf-8", errors="replace")


def _read_config(run: RunFolder) -> TrainingConfig | None:
    try:
        return TrainingConfig.from_json(json.loads(run.config_path.read_text("utf-8")))
    except (OSError, ValueError, ConfigError):
        return None
