"""One run, from its records to its final status, and the same work called directly from Python.

The run folder is the source of truth: the state of a run is read from there.
"""

import contextlib
import dataclasses
import functools
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.counts import num_steps_of
from dreambooth.config.effects import without_effect_in
from dreambooth.config.training import TrainingConfig
from dreambooth.data.concept_notices import concept_notices
from dreambooth.device.hardware import freed_memory_kept
from dreambooth.durable import held_lock, is_disk_full, sweep_unfinished, write_json
from dreambooth.environment import Settings, load_settings
from dreambooth.errors import DreamBoothError, RunFolderError, StoppedError, TrainingError, quoted
from dreambooth.events import Controls, Event, Notice, StatusChanged
from dreambooth.forecast.pace import remember_pace
from dreambooth.models.availability import bytes_to_download
from dreambooth.models.base import local_base, read_card
from dreambooth.models.manager import ModelManager
from dreambooth.models.origin import class_images_sentence, origin_of, step_sentence
from dreambooth.records.drive import DriveCopier, ready_drive
from dreambooth.records.runlog import RunLog, TensorBoardLog, failure, read_config
from dreambooth.records.workspace import RunFolder, Workspace, newest_step_folder
from dreambooth.runs.resuming import (
    record_changes,
    remove_later_states,
    require_state,
    resumable_config,
    state_to_resume,
    with_absolute_paths,
)
from dreambooth.runs.smaller import unexpected_end
from dreambooth.runs.start_notices import base_notices, memory_notices, setting_notices
from dreambooth.training.extending import Extension, extended, read_extensions, record_extensions
from dreambooth.training.finishing import read_finish
from dreambooth.training.materials import RunContext

if TYPE_CHECKING:
    from accelerate import PartialState

    from dreambooth.training.checkpoint import Checkpoint
    from dreambooth.training.materials import Materials

# A function that trains a run; the default is `run_training`. It gets the run's settings and context, reports to the
# latter and obeys its controls, and returns how the run ended; an exception ends the run as failed.
Training = Callable[[TrainingConfig, RunContext], StatusChanged]

# Freed when the disk is full, so that the run's end can still be recorded.
RESERVE_BYTES = 1 << 18


# One run, from start to final status ---------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(run: RunFolder) -> Iterator[None]:
    """Hold a run's lock; raises RunFolderError if another process has it."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(held_lock(run.lock_path))
        except BlockingIOError:
            raise RunFolderError(
                f'"{run.path}" is in use by another process.', "",
                "Wait until that has ended, or choose another --output_dir.",
            ) from None  # fmt: skip
        yield


def start_records(
    config: TrainingConfig, run: RunFolder, models_dir: Path | None = None, *, is_claimed: bool = False
) -> TrainingConfig:
    """Create a new run's folder with its checked settings and a seed; return the settings as recorded.

    Raises RunFolderError if the folder is in use.
    """
    config = with_trained_base(config, models_dir)
    run.refuse_if_used(is_claimed=is_claimed)
    run.forget_failed_start()
    seed = secrets.randbelow(2**32) if config.seed is None else config.seed
    config = dataclasses.replace(with_absolute_paths(config), seed=seed, output_dir=str(run.path))
    write_json(run.config_path, config.to_json())
    return config


def with_trained_base(config: TrainingConfig, models_dir: Path | None) -> TrainingConfig:
    """Return the settings with the step that a run's folder stands for, and the model for its class images.

    Both are recorded: if that run scores other steps later, or moves, this training does not change.
    """
    name = config.pretrained_model_name_or_path
    folder = local_base(name, models_dir)
    if folder is not None and RunFolder(folder.parent).base_step() is not None and folder.name.isdecimal():
        config = dataclasses.replace(config, pretrained_model_name_or_path=str(folder.absolute()))
    origin = origin_of(name, models_dir) if config.with_prior_preservation else None
    if origin is not None and origin.is_here and config.class_model_name_or_path is None:
        config = dataclasses.replace(config, class_model_name_or_path=origin.name)
    return config


def execute(
    config: TrainingConfig, context: RunContext, *, train: Training | None = None, is_claimed: bool = False
) -> StatusChanged:
    """Train a run whose records exist, and return its final status; never raises for what happens in the run.

    A new run first reports which of its `explicit` settings have no effect. The context's `report` receives everything
    that the run's log does. Takes the run's lock, unless this process holds it (`is_claimed`). `train` replaces
    `run_training`.
    """
    run, workspace = context.run, context.workspace
    log = RunLog(run, config.max_train_steps or 0, config)
    board = TensorBoardLog(run, config.logging_dir)
    drive_copier: DriveCopier | None = None
    report = _Reporter(log, {"TensorBoard's log": board, "The display": context.report})
    context = dataclasses.replace(context, report=report)

    lock = contextlib.nullcontext() if is_claimed else held_lock(run.lock_path)
    with lock, contextlib.closing(log):
        reserve = run.records / "reserve"
        try:
            sweep_unfinished(run.path)
            sweep_unfinished(workspace.data_dir)
            reserve.write_bytes(bytes(RESERVE_BYTES))
            report(StatusChanged("running"))
            if not context.is_resumed:
                _report_at_start(config, context)
            if workspace.drive_dir is not None:
                drive_copier = DriveCopier(run, _own_photos(config, workspace), workspace.drive_dir, report)
                report.observers["The copy to Google Drive"] = drive_copier
            with context.manager.lease("training", wait=True):
                final = (train or run_training)(config, context)
        except DreamBoothError as error:
            final = failure(error)
        # Top level of a job: whatever ended the run is shown in its status, and a bug keeps its traceback in the log.
        except Exception as error:
            reserve.unlink(missing_ok=True)
            if not is_disk_full(error):
                log.bug(error)
            final = unexpected_end(error, config, workspace.models_dir)
        reserve.unlink(missing_ok=True)
        report(final)
        report.attempt("TensorBoard's log", board.close)
        if drive_copier is not None:
            drive_copier.close()
        with contextlib.suppress(OSError):  # a full disk has no room for it, and has been told
            remember_pace(workspace, run, config)
    return final


class _Reporter:
    """Passes events to the run's log and its observers, which show or copy the run; one that fails is dropped."""

    def __init__(self, log: RunLog, observers: dict[str, Callable[[Event], None]]) -> None:
        self._log, self.observers = log, observers

    def __call__(self, event: Event) -> None:
        self._log(event)
        for name, observer in list(self.observers.items()):
            self.attempt(name, functools.partial(observer, event))

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        """Have an observer do something; a failure is logged."""
        try:
            act()
        # Whatever fails in an observer, the run continues without it.
        except Exception as error:
            self.observers.pop(name, None)
            self._log(Notice(f"{name} failed; the run continues without it: {quoted(error)}", "warning"))
            if not isinstance(error, OSError | UnicodeError):
                self._log.bug(error)


def _report_at_start(config: TrainingConfig, context: RunContext) -> None:
    """Report problems with the settings, their memory and the concepts, and what the base model is."""
    models_dir, held_bytes = context.workspace.models_dir, context.manager.held_bytes
    for sentence in [
        *setting_notices(config, context.explicit, models_dir), *memory_notices(config, models_dir, held_bytes),
        *base_notices(config, context.token, context.workspace),
        *concept_notices(config.concepts, config.background_weight),
    ]:  # fmt: skip
        context.warn(sentence)
    for sentence in _about_base(config, context.workspace.models_dir):
        context.report(Notice(sentence))


def _about_base(config: TrainingConfig, models_dir: Path) -> list[str]:
    """Return which step of a run the base is, and whose class images a trained base gets."""
    name, class_model = config.pretrained_model_name_or_path, config.class_model_name_or_path
    sentences = [step_sentence(name, models_dir)]
    if config.with_prior_preservation:
        sentences.append(class_images_sentence(name, class_model, models_dir))
    return [sentence for sentence in sentences if sentence]


def _own_photos(config: TrainingConfig, workspace: Workspace) -> list[Path]:
    """Return the photo folders that belong to the page; others are the user's own, wherever they are."""
    folders = {Path(concept.instance_data_dir) for concept in config.concepts}
    return sorted(folder for folder in folders if folder.is_relative_to(workspace.datasets_dir))


def run_training(config: TrainingConfig, context: RunContext) -> StatusChanged:
    """Prepare and train, and return how it ended; raises what went wrong. The caller holds the device's lease."""
    from dreambooth.training.preparation import prepare
    from dreambooth.training.trainer import Trainer

    run, report = context.run, context.report
    checkpoint = _same_state_to_resume(context) if context.is_resumed else None
    if read_card(config.pretrained_model_name_or_path).is_toy:
        report(Notice(read_card(config.pretrained_model_name_or_path).notice))
    materials = prepare(config, context)
    if materials is None:
        return StatusChanged("stopped", "Stopped before the first step.")
    if not context.is_resumed:
        for sentence in without_effect_in(materials.planned_steps, config, context.explicit):
            context.warn(sentence)
    extensions = _extensions(config, run, materials, checkpoint)
    trainer = Trainer(config, materials, context, checkpoint, extensions)
    if context.is_resumed and _this_process(context.manager).is_main_process:
        record_extensions(run, extensions, report)
        record_changes(run, config, report)
        if context.state_step is not None:
            remove_later_states(run, context.state_step, report)
    with freed_memory_kept(context.manager.device.type):
        num_steps = trainer.run()
    planned = materials.planned_steps
    if num_steps < trainer.num_steps:
        return StatusChanged("stopped", f"Stopped and saved after {num_steps} of {planned} steps.")
    if num_steps < planned:
        return StatusChanged("done", f"{num_steps} steps, finished before all {planned}.")
    return StatusChanged("done", f"{num_steps} steps.")


def _extensions(
    config: TrainingConfig, run: RunFolder, materials: "Materials", checkpoint: "Checkpoint | None"
) -> tuple[Extension, ...]:
    """Return the extensions of a run that continues from this state."""
    kept = read_config(run)
    if checkpoint is None or kept is None:
        return ()
    batches = materials.batches
    total = kept.max_train_steps
    if total is None and config.max_train_steps is not None:
        total = num_steps_of(kept, sum(len(one.instance) for one in batches.concepts), batches.num_processes)
    before, finish = read_extensions(run.extensions_path), read_finish(run.finish_path)
    return extended(before, checkpoint.step, total, config.max_train_steps, finish)


def _same_state_to_resume(context: RunContext) -> "Checkpoint | None":
    """Return the state to continue from; of several processes the first selects it, and sets aside damaged ones."""
    from accelerate.utils import broadcast_object_list

    from dreambooth.training.checkpoint import verified

    process, found, refused = _this_process(context.manager), None, None
    answer: list[int | str | None] = [None]  # the step, None to start again, or why there is no state
    if process.is_main_process:
        try:
            found = state_to_resume(context.run, context.state_step, context.report)
            answer = [None if found is None else found.step]
        except TrainingError as error:
            refused, answer = error, [str(error)]
    if process.num_processes > 1:
        broadcast_object_list(answer)
    if isinstance(answer[0], str):
        raise refused or TrainingError(answer[0])
    return found if found is not None or answer[0] is None else verified(context.run.checkpoints / str(answer[0]))


# From Python ---------------------------------------------------------------------------------------------------------


def train(
    config: TrainingConfig,
    *,
    settings: Settings | None = None,
    controls: Controls | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    explicit: Collection[str] | None = None,
    manager: ModelManager | None = None,
) -> Path:
    """Train, and return the folder of the last saved step.

    Raises DreamBoothError if the run fails, and StoppedError if it was stopped before its first step.

    `explicit` names the settings that were given: those without effect are reported. By default all that differ from
    their defaults. `manager` belongs to a process that also generates: its models make room.
    """
    settings = settings or load_settings()
    workspace, manager = Workspace(settings.data_dir, ready_drive(settings.drive_dir)), manager or ModelManager()

    def run_folder() -> RunFolder:
        folder = config.checked().output_dir
        run = RunFolder(Path(folder).absolute()) if folder else workspace.run(workspace.new_run_name("run"))
        run.refuse_if_used()
        bytes_to_download(config, settings.hub_token, workspace.models_dir)
        return run

    def records(run: RunFolder) -> TrainingConfig:
        return start_records(config, run, workspace.models_dir, is_claimed=True)

    context = functools.partial(
        RunContext, workspace=workspace, manager=manager, token=settings.hub_token, controls=controls or Controls(),
        report=on_event, explicit=explicit,
    )  # fmt: skip
    return _run_here(run_folder, records, context)


def resume(
    run_path: Path,
    *,
    settings: Settings | None = None,
    controls: Controls | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    state_step: int | None = None,
    changes: Mapping[str, Any] | None = None,
    manager: ModelManager | None = None,
) -> Path:
    """Continue a run that ended before its last step, and return the folder of the last saved step.

    It continues from its newest exact state, or from that of `state_step`: later ones are removed. `changes` are
    settings that may change from here on: where its files are now, and what changes no trained weight.

    On the CPU, with the same versions and number of threads, the result is bit for bit that of an uninterrupted run.
    Raises DreamBoothError if there is nothing to continue from, and if the run fails. `manager` is as in `train`.
    """
    settings = settings or load_settings()
    workspace = Workspace(settings.data_dir, ready_drive(settings.drive_dir))
    run = RunFolder(run_path.absolute())

    def run_folder() -> RunFolder:
        bytes_to_download(resumable_config(run, changes), settings.hub_token, workspace.models_dir)
        if state_step is not None:
            require_state(run, state_step)
        return run

    def records(run: RunFolder) -> TrainingConfig:
        return resumable_config(run, changes, is_claimed=True)

    context = functools.partial(
        RunContext, workspace=workspace, manager=manager or ModelManager(), token=settings.hub_token,
        controls=controls or Controls(), report=on_event, is_resumed=True, state_step=state_step,
    )  # fmt: skip
    return _run_here(run_folder, records, context)


def _run_here(
    run_folder: Callable[[], RunFolder],
    records: Callable[[RunFolder], TrainingConfig],
    context_of: "functools.partial[RunContext]",
) -> Path:
    """Train in this process, and in those that `accelerate launch` started with it.

    The folder is checked before its lock is taken, so that a refusal leaves no trace in it, and by `records` again
    under the lock: of two processes that start at once, one gets it and the other changes nothing. `context_of` makes
    the context of a run folder.
    """
    process = _this_process(context_of.keywords["manager"])
    with contextlib.ExitStack() as held:
        shared: list[TrainingConfig | None] = [None]
        if process.is_main_process:
            run = run_folder()
            held.enter_context(claimed(run))
            shared = [records(run)]
        if process.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(shared)
        recorded = shared[0]
        assert recorded is not None
        assert recorded.output_dir is not None
        run = RunFolder(Path(recorded.output_dir))
        if not process.is_main_process:
            # Only the first process writes and reports; the others only compute its steps.
            run_training(recorded, context_of(run, report=lambda event: None))
            return run.path
        final = execute(recorded, context_of(run), is_claimed=True)
    if final.status in ("failed", "paused"):
        raise DreamBoothError(final.what, final.why, final.todo)
    if final.status == "stopped" and not run.steps():
        raise StoppedError(final.what, "No model was saved.", "Start it again with the same settings.")
    return newest_step_folder(run.path)


def _this_process(manager: ModelManager) -> "PartialState":
    """Return the index of this process among those of `accelerate launch`; 0 if started otherwise."""
    from accelerate import PartialState

    return PartialState(cpu=manager.device.type == "cpu")
