"""Finishing a run early: a short cool-down to learning rate zero, the final average, a save.

At a constant rate the weights fluctuate around the optimum; a final stretch of falling rate converges (Hagele et al.
2024, arXiv 2405.18392). Its start is recorded at once, so that the rate of a step follows from the step and the run's
folder alone, and a run killed during it continues exactly.
"""

from dataclasses import dataclass
from pathlib import Path

from dreambooth.durable import write_json
from dreambooth.formats.json_file import read_object

COOL_DOWN_SHARE = 0.08
MIN_COOL_DOWN_STEPS = 5


@dataclass(frozen=True)
class Finish:
    """An early end: the rate falls from the update after `start` on, and `end` is the last."""

    start: int
    end: int

    def rate_factor(self, step: int) -> float:
        """Return the factor of the learning rate of the update after `step`: 1, then falling linearly to 0."""
        if step < self.start:
            return 1.0
        return max(self.end - step, 0) / (self.end - self.start + 1)


def cool_down_from(step: int, num_steps: int) -> Finish:
    """Return the early end of a run that is asked to finish after this step."""
    return Finish(step, min(step + max(round(COOL_DOWN_SHARE * step), MIN_COOL_DOWN_STEPS), num_steps))


def write_finish(path: Path, finish: Finish) -> None:
    """Record an early end."""
    write_json(path, {"start": finish.start, "end": finish.end})


def read_finish(path: Path) -> Finish | None:
    """Return the recorded early end, None if there is none."""
    try:
        values = read_object(path)
        return Finish(int(values["start"]), int(values["end"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
