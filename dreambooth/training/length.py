"""The length of a run: the steps of its settings, or fewer if it finishes early."""

from collections.abc import Sequence
from pathlib import Path

from dreambooth.training.extending import Extension, is_void
from dreambooth.training.finishing import Finish, read_finish, write_finish


class RunLength:
    """Owns a run's number of steps, and the record of its early end."""

    def __init__(self, planned_steps: int, finish_path: Path, extensions: Sequence[Extension] = ()) -> None:
        """Read the recorded early end; one that was cancelled by an extension does not count."""
        self.planned_steps, self._path = planned_steps, finish_path
        self._early_end = read_finish(finish_path)
        if self._early_end is not None and is_void(self._early_end, extensions):
            self._early_end = None

    @property
    def num_steps(self) -> int:
        """Return the step after which the run is done."""
        return self.planned_steps if self._early_end is None else self._early_end.end

    @property
    def is_cut_short(self) -> bool:
        """Return whether an early end was decided."""
        return self._early_end is not None

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate of the update after `step`."""
        return 1.0 if self._early_end is None else self._early_end.rate_factor(step)

    def end_early(self, finish: Finish) -> bool:
        """Decide on an early end and record it, unless one was already decided; return whether it was decided."""
        if self._early_end is not None:
            return False
        write_finish(self._path, finish)
        self._early_end = finish
        return True


def forget_later_finish(finish_path: Path, step: int) -> None:
    """Remove the record of an early end decided after this step, because the run goes back to it."""
    finish = read_finish(finish_path)
    if finish is not None and finish.start > step:
        finish_path.unlink()
