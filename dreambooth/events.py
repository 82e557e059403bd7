"""What a run reports, as typed records, and the JSON-lines file that keeps them.

The file is the truth that the page, the command line and the tests read; a record is one line, appended whole.
"""

import dataclasses
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

Status = Literal["queued", "running", "stopping", "stopped", "done", "failed", "paused", "interrupted"]
FINAL_STATUSES: frozenset[Status] = frozenset({"stopped", "done", "failed"})
PhaseName = Literal["loading", "class images", "latents", "training", "saving", "samples"]


@dataclass(frozen=True)
class PhaseProgress:
    """A phase began or moved on: `done` of `total` pieces."""

    phase: PhaseName
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class StepLoss:
    """One update: its loss, the two parts of it, and the learning rate."""

    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float


@dataclass(frozen=True)
class SamplesMade:
    """Sample pictures of a step lie in `<step>/samples`."""

    step: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class ModelSaved:
    """The model of a step lies in its step folder."""

    step: int


@dataclass(frozen=True)
class Notice:
    """A sentence for the person who watches the run."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class StatusChanged:
    """The run's status changed; a failed one says what, why and what to do."""

    status: Status
    what: str = ""
    why: str = ""
    todo: str = ""


@dataclass(frozen=True)
class Resumed:
    """The run goes on after this step; what was reported beyond it is done again."""

    step: int


Event = PhaseProgress | StepLoss | SamplesMade | ModelSaved | Notice | StatusChanged | Resumed
_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}


def event_to_line(event: Event, time_s: float) -> str:
    """Return the event as one line of JSON, newline included; `time_s` is seconds since the epoch."""
    values: dict[str, Any] = {"event": type(event).__name__, "time_s": round(time_s, 3)}
    return json.dumps(values | dataclasses.asdict(event)) + "\n"


def read_events(path: Path) -> list[tuple[float, Event]]:
    """Return (seconds since the epoch, event) for every whole line; what a kill left half-written is passed over."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        event = _event_from_line(line)
        if event is not None:
            events.append(event)
    return events


def losses_of(events: list[tuple[float, Event]]) -> list[StepLoss]:
    """Return the loss of every update, once each: what a resumed run did again counts as it was done last."""
    losses: list[StepLoss] = []
    for _, event in events:
        if isinstance(event, Resumed):
            losses = [loss for loss in losses if loss.step <= event.step]
        elif isinstance(event, StepLoss):
            losses.append(event)
    return losses


def _event_from_line(line: str) -> tuple[float, Event] | None:
    try:
        values = json.loads(line)
        kind = _KINDS[values.pop("event")]
        time_s = float(values.pop("time_s"))
        if kind is SamplesMade:
            values["files"] = tuple(values["files"])
        return time_s, kind(**values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


@dataclass(frozen=True)
class Controls:
    """What the person who watches a run asks of it; looked at between two steps."""

    stop: threading.Event = field(default_factory=threading.Event)
    save_now: threading.Event = field(default_factory=threading.Event)
    sample_now: threading.Event = field(default_factory=threading.Event)
