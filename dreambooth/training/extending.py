"""Extensions of a run beyond the steps it was started with: where each begins and ends.

What is recorded suffices to compute the learning rate of every step, so that a run killed in an extension continues
exactly. Steps before an extension keep the schedule they had.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dreambooth.durable import write_json
from dreambooth.errors import ConfigError, FieldProblem, RunFolderError
from dreambooth.events import Event, Notice
from dreambooth.formats.json_file import read_object
from dreambooth.records.workspace import RunFolder
from dreambooth.training.finishing import Finish

WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class Extension:
    """Steps that were added: those after `start` up to `end`, to a run of `total_before` steps."""

    start: int
    total_before: int
    end: int

    @property
    def num_steps(self) -> int:
        """Return the number of steps with the extension's own schedule."""
        return self.end - self.start

    @property
    def num_warmup_steps(self) -> int:
        """Return the number of its warm-up steps."""
        return round(WARM_UP_SHARE * self.num_steps)

    def __str__(self) -> str:
        if self.end <= self.total_before:
            return f"continued to step {self.end} after its early end at step {self.start} of {self.total_before}"
        return f"extended after step {self.start} from {self.total_before} to {self.end} steps"


def read_extensions(path: Path) -> tuple[Extension, ...]:
    """Return a run's extensions in order, empty if there are none or they cannot be read."""
    try:
        return tuple(
            Extension(int(one["start"]), int(one["total_before"]), int(one["end"]))
            for one in read_object(path)["extensions"]
        )
    except (OSError, ValueError, TypeError, KeyError):
        return ()


def write_extensions(path: Path, extensions: Sequence[Extension]) -> None:
    """Record a run's extensions."""
    write_json(path, {"extensions": [asdict(one) for one in extensions]})


def extended(
    before: Sequence[Extension], step: int, total: int | None, new_total: int | None, finish: Finish | None
) -> tuple[Extension, ...]:
    """Return the extensions of a run that continues after `step`: one more if its total is new, or it had ended early.

    `total` is its number of steps so far. A run that goes back to a step before an extension, to a new total, drops
    that extension.
    """
    ended_early = finish is not None and finish.end <= step
    if new_total is None or (new_total == total and not ended_early):
        return tuple(before)
    kept = [one for one in before if one.start < step]
    given_up = before[len(kept) :]
    total_before = given_up[0].total_before if given_up else total or step
    return (*kept, Extension(step, total_before, new_total))


def is_void(finish: Finish, extensions: Sequence[Extension]) -> bool:
    """Return whether an early end was decided before the run was extended, which cancels it."""
    return bool(extensions) and finish.start <= extensions[-1].start


def refuse_no_more_steps(run: RunFolder, end: int, asked: int) -> None:
    """Raise ConfigError unless `asked` is more than the run's steps, and RunFolderError if its state is gone."""
    if asked <= end:
        message = f"is {asked}, and the run has {end} steps: name a larger number to train more steps."
        raise ConfigError([FieldProblem("max_train_steps", message)])
    if not run.checkpoint_steps():
        steps = run.steps()
        base = (
            f' with its last step as base: --pretrained_model_name_or_path "{run.step_folder(steps[-1])}"'
            if steps
            else ""
        )
        raise RunFolderError(
            f'"{run.name}" cannot be trained further.', "Its exact state was removed, or there was no room to keep it.",
            f"Start a new run{base}.",
        )  # fmt: skip


def record_extensions(run: RunFolder, extensions: Sequence[Extension], report: Callable[[Event], None]) -> None:
    """Record the extensions with which a run continues, and report a new one; it cancels an early end."""
    if tuple(extensions) == read_extensions(run.extensions_path):
        return
    # In this order: a run killed in between has an early end that its extension cancels.
    write_extensions(run.extensions_path, extensions)
    run.finish_path.unlink(missing_ok=True)
    report(Notice(f"The run is {extensions[-1]}; these have a learning-rate schedule of their own."))
