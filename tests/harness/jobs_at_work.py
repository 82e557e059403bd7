"""Runs of an app, waited for; and a stand-in for the training, where a test is about the thread around it."""

import threading
import time
from collections.abc import Callable
from typing import Any

from dreambooth.config.training import TrainingConfig
from dreambooth.events import PhaseProgress, StatusChanged
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.view import RunView
from dreambooth.training.materials import RunContext


def until(read: Callable[[], Any], done: Callable[[Any], bool], seconds: float = 120) -> Any:
    """Ask until the answer is as wanted, and return it."""
    end_s = time.monotonic() + seconds
    while not done(value := read()):
        assert time.monotonic() < end_s, f"still {value}"
        time.sleep(0.02)
    return value


def finished(jobs: Jobs, name: str) -> RunView:
    """Wait until a run is over, and return how it stands."""
    view: RunView = until(lambda: jobs.view(name), lambda view: view.status in ("done", "stopped", "failed"))
    return view


class Stub:
    """Stands in for the training: says that it has begun, waits for `go_on` or a stop, and ends, or fails."""

    def __init__(self) -> None:
        self.go_on, self.running, self.order = threading.Event(), 0, list[str]()
        self.error: BaseException | None = None

    def __call__(self, config: TrainingConfig, context: RunContext) -> StatusChanged:
        self.running += 1
        assert self.running == 1, "one run at a time"
        self.order.append(context.run.name)
        context.report(PhaseProgress("training", 1, 100))
        while not (self.go_on.is_set() or context.controls.stop.is_set()):
            time.sleep(0.01)
        self.running -= 1
        if self.error:
            raise self.error
        return StatusChanged("stopped" if context.controls.stop.is_set() else "done")
