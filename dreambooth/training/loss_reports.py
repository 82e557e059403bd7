"""Reports losses once per interval: reading a number waits for the GPU, so they stay on it until then."""

from typing import TYPE_CHECKING

from dreambooth.events import StepLoss
from dreambooth.training.materials import Report
from dreambooth.training.objective import Losses

if TYPE_CHECKING:
    from torch import Tensor


class LossReports:
    """Keeps the losses of steps on the device until they are reported; each process keeps its own."""

    def __init__(self, num_processes: int, report: Report) -> None:
        self._num_processes, self._report = num_processes, report
        self._unreported: list[tuple[int, Tensor, Tensor, Tensor | None, float]] = []

    def remember(self, step: int, losses: list[Losses], rate: float) -> None:
        """Store the losses of a step's micro-batches, and the rate of its update."""
        import torch

        total = torch.stack([loss.total for loss in losses]).mean()
        instance = torch.stack([loss.instance for loss in losses]).mean()
        priors = [loss.prior for loss in losses if loss.prior is not None]
        self._unreported.append((step, total, instance, torch.stack(priors).mean() if priors else None, rate))

    def flush(self) -> None:
        """Report what was stored since the last report, as means over the processes."""
        for step, *parts, rate in self._unreported:
            means = (None if part is None else _averaged(part, self._num_processes) for part in parts)
            total, instance, prior = (None if mean is None else float(mean) for mean in means)
            assert total is not None
            assert instance is not None
            self._report(StepLoss(step, total, instance, prior, rate))
        self._unreported.clear()


def mean_total(losses: list[Losses], num_processes: int) -> "Tensor":
    """Return a step's loss, the mean over micro-batches and processes, on the device."""
    import torch

    return _averaged(torch.stack([loss.total for loss in losses]).mean(), num_processes)


def _averaged(part: "Tensor", num_processes: int) -> "Tensor":
    if num_processes == 1:
        return part
    from accelerate.utils import reduce

    mean: Tensor = reduce(part, reduction="mean")
    return mean
