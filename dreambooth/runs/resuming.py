"""What an interrupted run continues with: its settings, where its files are now, and which exact state.

A run's settings name its files by absolute paths, and a resume may name other ones: what matters is that the contents
are the same, which is checked before the first step (`training.run_identity`).
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.concepts import Concept, class_folder_problems, concept_problems
from dreambooth.config.fields import unknown_fields
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import is_locked, remove_folder, write_json
from dreambooth.errors import ConfigError, FieldProblem, RunFolderError, TrainingError
from dreambooth.events import Event, Notice, Resumed
from dreambooth.models.base import STARTER
from dreambooth.records.runlog import read_config, read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.training.extending import refuse_no_more_steps
from dreambooth.training.finishing import read_finish

if TYPE_CHECKING:
    from dreambooth.training.checkpoint import Checkpoint

# Settings that name files on this machine or the Hub.
BASE_PLACES = (
    "pretrained_model_name_or_path", "pretrained_vae_name_or_path", "tokenizer_name", "class_model_name_or_path",
    "initial_lora",
)  # fmt: skip
TRAIN_MORE = (
    'Choose "Train more steps" on the page, or --resume_from_checkpoint latest --max_train_steps with a larger number.'
)


def resumable_config(
    run: RunFolder, changes: Mapping[str, Any] | None = None, *, is_claimed: bool = False
) -> TrainingConfig:
    """Return the settings with which a run continues, with those of `changes` that may change.

    Raises RunFolderError if it is no run, complete, or active in another process (with `is_claimed`, this process holds
    its lock), and ConfigError for changes that would make it another run and for missing files.
    """
    kept = read_config(run)
    if kept is None:
        raise RunFolderError(
            f'"{run.path}" holds no run.', "Its settings cannot be read.",
            "Give the folder of a run, or start a new one.",
        )  # fmt: skip
    is_done, total = read_state(run).status == "done", (changes or {}).get("max_train_steps")
    if is_done and total is None:
        raise _complete(run, kept)
    if is_locked(run.queue_lock_path) or (not is_claimed and is_locked(run.lock_path)):
        raise RunFolderError(
            f'"{run.name}" is running or queued.', "A process is using it.", "Wait until it ends, or stop it there."
        )
    config = dataclasses.replace(with_changes(kept, changes or {}), output_dir=str(run.path))
    if total is not None and (is_done or total != kept.max_train_steps):
        finish = read_finish(run.finish_path)
        end = finish.end if finish else kept.max_train_steps or read_state(run).total_steps
        refuse_no_more_steps(run, end, total)
    config = with_files_found(config, Path(kept.output_dir or run.path), run.path)
    if "concepts" in (changes or {}):
        _require_usable_folders(config)
    return config


def _complete(run: RunFolder, config: TrainingConfig) -> RunFolderError:
    finish = read_finish(run.finish_path)
    if finish is None:
        return RunFolderError(f'"{run.name}" is complete.', "All its steps are done.", TRAIN_MORE)
    of_all = f" of {config.max_train_steps}" if config.max_train_steps else ""
    why = (
        "Its last saves were no better than an earlier one."
        if finish.start == finish.end
        else "It was ended early with Finish now, and is complete."
    )
    return RunFolderError(
        f'"{run.name}" was finished early, at step {finish.end}{of_all}.', why, TRAIN_MORE
    )  # fmt: skip


def with_changes(kept: TrainingConfig, changes: Mapping[str, Any]) -> TrainingConfig:
    """Return the settings with these changes; raises ConfigError for those that would make it another run."""
    if problems := unknown_fields(TrainingConfig, changes):
        raise ConfigError(problems)
    changed = dataclasses.replace(kept, **changes).in_range()
    before, after = kept.identity(), changed.identity()
    problems = [
        FieldProblem(name, f"is {before[name]} in the run, not {after[name]}: a resumed run keeps its settings.")
        for name in changes
        if name in before and before[name] != after[name]
    ]
    if problems:
        raise ConfigError(problems)
    return changed


def _require_usable_folders(config: TrainingConfig) -> None:
    """Raise ConfigError for class folders that are files or hold photos, before class images are generated there."""
    problems = [problem for concept in config.concepts for problem in concept_problems(concept)]
    if config.with_prior_preservation:
        problems += class_folder_problems(config.concepts)
    if problems:
        raise ConfigError(problems)


# Where its files are -------------------------------------------------------------------------------------------------


def with_absolute_paths(config: TrainingConfig) -> TrainingConfig:
    """Return the settings with absolute paths for files and folders of this machine, so that they work anywhere."""

    def absolute(concept: Concept) -> Concept:
        class_dir = concept.class_data_dir
        return dataclasses.replace(
            concept,
            instance_data_dir=os.path.abspath(concept.instance_data_dir),
            class_data_dir=os.path.abspath(class_dir) if class_dir else None,
        )

    bases: dict[str, Any] = {name: getattr(config, name) for name in BASE_PLACES}
    bases = {name: os.path.abspath(place) for name, place in bases.items() if place != STARTER and _is_there(place)}
    return dataclasses.replace(config, concepts=tuple(map(absolute, config.concepts)), **bases)


def with_files_found(config: TrainingConfig, was_in: Path, is_in: Path) -> TrainingConfig:
    """Return the settings with absolute paths of the photos and the base; raises ConfigError for missing ones.

    What moved together with the run's folder, from `was_in` to `is_in`, is found beside it.
    """

    def found(place: str | None) -> str | None:
        if place is None or _is_there(place) or not was_in.is_absolute():
            return place
        moved = os.path.normpath(is_in / os.path.relpath(place, was_in)) if os.path.isabs(place) else place
        return moved if _is_there(moved) else place

    problems = []
    concepts = []
    for concept in config.concepts:
        place = found(concept.instance_data_dir) or ""
        if not _is_there(place):
            message = f'"{place}" is gone: give the folder where the photos are now.'
            problems.append(FieldProblem("instance_data_dir", message))
        concepts.append(
            dataclasses.replace(concept, instance_data_dir=place, class_data_dir=found(concept.class_data_dir))
        )
    bases: dict[str, Any] = {name: found(getattr(config, name)) for name in BASE_PLACES}
    problems += [
        FieldProblem(name, f'"{place}" is gone: give its new path.')
        for name, place in bases.items()
        if name != "initial_lora" and place is not None and os.path.isabs(place) and not _is_there(place)
    ]
    if problems:
        raise ConfigError(problems)
    return with_absolute_paths(dataclasses.replace(config, concepts=tuple(concepts), **bases))


def _is_there(place: str | None) -> bool:
    with contextlib.suppress(OSError, ValueError):  # no name of a file at all: too long, or with a NUL in it
        return place is not None and Path(place).exists()
    return False


def record_changes(run: RunFolder, config: TrainingConfig, report: Callable[[Event], None]) -> None:
    """Write the settings with which a resumed run continues, and report those that changed.

    The original settings are kept beside them: states of version 1 are compared with those.
    """
    kept = read_config(run)
    if kept is None or kept == config:
        return
    for name, before in kept.to_json().items():
        now = config.to_json()[name]
        if now != before and name not in ("output_dir", "concepts"):
            report(Notice(f"{name} is {_shown(now)} from here on; it was {_shown(before)}."))
    if not run.first_config_path.exists():
        shutil.copy(run.config_path, run.first_config_path)
    write_json(run.config_path, config.to_json())


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)


# Which state ---------------------------------------------------------------------------------------------------------


def state_to_resume(run: RunFolder, step: int | None, report: Callable[[Event], None]) -> "Checkpoint | None":
    """Return the state of this step, by default the newest; None for a run that ended before its first.

    Raises RunFolderError if the requested state is missing, and TrainingError if it, or every state, is damaged: a run
    never silently starts again.
    """
    from dreambooth.training.checkpoint import newest_checkpoint, verified

    if step is not None:
        require_state(run, step)
        return verified(run.checkpoints / str(step))
    had_states = run.checkpoints.is_dir() and any(run.checkpoints.iterdir())
    found = newest_checkpoint(run, lambda text: report(Notice(text, "warning")))
    if found is not None:
        return found
    if had_states:
        raise TrainingError(
            "There is no valid state to resume from.",
            f"{run.name} had trained, but {run.checkpoints} holds no whole state.",
            "Start a new run; its saved models, if any, can be its base.",
        )
    report(
        Notice("The run ended before its first exact state was saved: it starts again at its first step.", "warning")
    )
    report(Resumed(0))
    return None


def require_state(run: RunFolder, step: int) -> None:
    """Raise RunFolderError if the run has no exact state of this step."""
    if step not in run.checkpoint_steps():
        there = ", ".join(map(str, run.checkpoint_steps())) or "none"
        raise RunFolderError(
            f'"{run.name}" has no exact state of step {step}.', f"The steps with one: {there}.",
            "Name one of those, or take the newest with --resume_from_checkpoint latest.",
        )  # fmt: skip


def remove_later_states(run: RunFolder, step: int, report: Callable[[Event], None]) -> None:
    """Remove the states after the requested one: the run trains those steps again."""
    later = [other for other in run.checkpoint_steps() if other > step]
    for other in later:
        remove_folder(run.checkpoints / str(other))
    if later:
        steps = ", ".join(map(str, later))
        text = f"The run goes back to step {step}; the exact states after it ({steps}) were removed."
        report(Notice(f"{text} Models saved after it stay and are not saved again.", "warning"))
