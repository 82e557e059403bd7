"""The learning rates of a run, step by step: the schedule's, lowered if the run finishes early."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dreambooth.training.length import RunLength

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


class LearningRates:
    """Advances an optimizer's rates along their schedule."""

    def __init__(self, optimizer: "Optimizer", schedule: "LRScheduler", length: RunLength) -> None:
        self._optimizer, self._schedule, self._length = optimizer, schedule, length

    def lower(self, step: int) -> None:
        """Lower the rates of the update after `step` in a run that is finishing; the schedule's own are not changed."""
        if not self._length.is_cut_short:
            return
        factor = self._length.rate_factor(step)
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            if isinstance(group["lr"], float):
                group["lr"] = float(rate) * factor
            else:
                group["lr"].fill_(float(rate) * factor)

    def advance(self) -> float:
        """Advance by one update, and return the rate it was made with."""
        rate = float(self._optimizer.param_groups[0]["lr"])
        self.skip(1)
        return rate

    def skip(self, num_updates: int) -> None:
        """Advance by the updates made before, in the first part of a resumed run."""
        with _quiet_schedule():
            for _ in range(num_updates):
                self._schedule.step()


@contextlib.contextmanager
def _quiet_schedule() -> Iterator[None]:
    """Silence torch's warning about order when the scaler has skipped an overflowing update, which is its purpose."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before", UserWarning)
        yield
