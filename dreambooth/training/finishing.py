"""Finishing a run early: a short cool-down to learning rate zero, the final average, a save.

At a constant rate the weights hover around where they want to be; a last stretch of falling rate takes them there
(Hagele et al. 2024, arXiv 2405.18392). Where it begins is written down at once, so that the rate of a step follows from
the step and the run's folder alone, and a run that is killed during it continues as it would have.
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
        """Return what multiplies the learning rate of the update that follows `step`: 1, then in a line towards 0."""
        if step < self.start:
            return 1.0
        return max(self.end - step, 0) / (self.end - self.start + 1)


def cool_down_from(step: int, num_steps: int) -> Finish:
    """Return the early end of a run that is asked to finish after this step."""
    return Finish(step, min(step + max(round(COOL_DOWN_SHARE * step), MIN_COOL_DOWN_STEPS), num_steps))


def write_finish(path: Path, finish: Finish) -> None:
    """Write down an early end."""
    write_json(path, {"start": finish.start, "end": finish.end})


def read_finish(path: Path) -> Finish | None:
    """Return the early end that was written down, None where there is none."""
    try:
        values = read_object(path)
        return Finish(int(values["start"]), int(values["end"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
