"""Short runs with somebody beside them, who presses a button after so many steps."""

from pathlib import Path
from typing import Any

from dreambooth.config.training import TrainingConfig
from dreambooth.events import Controls, Event, PhaseProgress, StepLoss
from tests.harness.trained import quick_settings


def short_settings(base: Path, photos: Path, folder: Path, **changes: Any) -> TrainingConfig:
    """Return settings of 60 steps, if nobody ends the run before, with an exact state at every fourth."""
    values = {
        "output_dir": str(folder), "seed": 3, "max_train_steps": 60, "num_crop_variants": 1, "save_precision": "fp32",
        "checkpointing_steps": 4,
    }  # fmt: skip
    return quick_settings(base, photos, **(values | changes))


class Watcher:
    """Presses a button after so many steps, and remembers what was reported."""

    def __init__(self, finish_at: int | None = None, stop_at: int | None = None) -> None:
        self.controls, self.events = Controls(), list[Event]()
        self._wishes = {finish_at: self.controls.finish_now, stop_at: self.controls.stop}

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done in self._wishes:
            self._wishes[event.done].set()

    @property
    def rates(self) -> list[float]:
        return [event.learning_rate for event in self.events if isinstance(event, StepLoss)]
