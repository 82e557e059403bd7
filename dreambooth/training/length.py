"""The length of a run: the steps of its settings, or fewer when it finishes early."""

from collections.abc import Sequence
from pathlib import Path

from dreambooth.training.extending import Extension, is_void
from dreambooth.training.finishing import Finish, read_finish, write_finish


class RunLength:
    """The one owner of a run's number of steps, and of the record of its early end."""

    def __init__(self, planned_steps: int, finish_path: Path, extensions: Sequence[Extension] = ()) -> None:
        """Read the early end that was written down; one that an extension has made void does not count."""
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
        """Return what multiplies the learning rate of the update that follows `step`."""
        return 1.0 if self._early_end is None else self._early_end.rate_factor(step)

    def end_early(self, finish: Finish) -> bool:
        """Decide on an early end and write it down, unless one was decided before; returns whether it was decided."""
        if self._early_end is not None:
            return False
        write_finish(self._path, finish)
        self._early_end = finish
        return True


def forget_later_finish(finish_path: Path, step: int) -> None:
    """Remove the record of an early end that was decided after this step: the run goes back to it."""
    finish = read_finish(finish_path)
    if finish is not None and finish.start > step:
        finish_path.unlink()
