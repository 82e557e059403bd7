"""What a run reports, as typed records, and the JSON-lines file that stores them.

The page, the command line and the tests all read this file; a record is one line, appended whole.
"""

import dataclasses
import functools
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, get_args, get_type_hints

from dreambooth.hints import fits

Status = Literal["queued", "running", "stopping", "stopped", "done", "failed", "paused", "interrupted"]
FINAL_STATUSES: frozenset[Status] = frozenset({"stopped", "done", "failed"})
Cause = Literal["", "out of memory", "disk full", "lent"]
# How much of some work is done, and how much there is.
OnProgress = Callable[[int, int], None]
PhaseName = Literal["loading", "class images", "latents", "training", "saving", "copying", "samples", "scores", "lent"]


def unwatched(done: int, total: int) -> None:
    """Ignore the progress of work that nobody watches."""


@dataclass(frozen=True)
class PhaseProgress:
    """A phase began or advanced: `done` of `total`."""

    phase: PhaseName
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class StepLoss:
    """One update: its loss, the loss's two parts, and the learning rate."""

    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float


@dataclass(frozen=True)
class FixedNoiseLosses:
    """Losses at noise and timesteps that are the same at every step, so that steps can be compared.

    `seen` is the loss on the photos as they are trained, `unseen` on other crops and mirrored views of them; `drift` is
    how far (squared, per number) the model's predictions have moved from the base's on what `drift_on` says.
    """

    step: int
    seen: float
    unseen: float
    drift: float
    drift_on: Literal["class pictures", "photos by the class prompt", "photos without a prompt"]


@dataclass(frozen=True)
class SamplesMade:
    """Sample images of a step were saved in `<step>/samples`."""

    step: int
    files: tuple[str, ...]


@dataclass(frozen=True)
class ModelSaved:
    """The model of a step was saved in its step folder."""

    step: int


@dataclass(frozen=True)
class Notice:
    """A sentence for the person who watches the run."""

    text: str
    level: Literal["info", "warning"] = "info"


@dataclass(frozen=True)
class StatusChanged:
    """The run's status changed; a failed one says what, why and what to do, and names a cause the page can fix."""

    status: Status
    what: str = ""
    why: str = ""
    todo: str = ""
    cause: Cause = ""


@dataclass(frozen=True)
class Resumed:
    """The run continues after this step; what was reported beyond it is repeated."""

    step: int


Event = PhaseProgress | StepLoss | FixedNoiseLosses | SamplesMade | ModelSaved | Notice | StatusChanged | Resumed
_KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}


def event_to_line(event: Event, time_s: float) -> str:
    """Return the event as one line of JSON, newline included; `time_s` is seconds since the epoch."""
    values: dict[str, Any] = {"event": type(event).__name__, "time_s": round(time_s, 3)}
    return json.dumps(values | dataclasses.asdict(event)) + "\n"


def read_events(path: Path) -> list[tuple[float, Event]]:
    """Return (seconds since the epoch, event) for every complete line; a line cut off by a kill is skipped."""
    if not path.exists():
        return []
    events = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        event = _event_from_line(line)
        if event is not None:
            events.append(event)
    return events


def losses_of(events: list[tuple[float, Event]]) -> list[StepLoss]:
    """Return the loss of every update once; for steps repeated by a resume, the last one."""
    losses: list[StepLoss] = []
    for _, event in events:
        losses = _with_loss(losses, event)
    return losses


def _with_loss(losses: list[StepLoss], event: Event) -> list[StepLoss]:
    if isinstance(event, Resumed):
        return [loss for loss in losses if loss.step <= event.step]
    if isinstance(event, StepLoss):
        losses.append(event)
    return losses


class LossReader:
    """Reads both kinds of losses of a running run incrementally."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id: tuple[int, int] | None = None
        self._read_bytes = 0
        self._losses: list[StepLoss] = []
        self._at_fixed_noise: dict[int, FixedNoiseLosses] = {}
        self._lock = threading.Lock()

    def losses(self) -> list[StepLoss]:
        """Return the loss of every update so far, as `losses_of` does."""
        with self._lock:
            self._read_on()
            return list(self._losses)

    def at_fixed_noise(self) -> list[FixedNoiseLosses]:
        """Return the losses at fixed noise so far, as `fixed_noise_losses_of` does."""
        with self._lock:
            self._read_on()
            return _in_order(self._at_fixed_noise)

    def _read_on(self) -> None:
        try:
            with self._path.open("rb") as file:
                self._read_rest(file)
        except OSError:  # it is gone, cannot be read, or is no file: one run's losses, and no reason to hide the others
            self._losses, self._at_fixed_noise = [], {}

    def _read_rest(self, file: IO[bytes]) -> None:
        about = os.fstat(file.fileno())
        if (about.st_dev, about.st_ino) != self._file_id or about.st_size < self._read_bytes:
            self._file_id, self._read_bytes = (about.st_dev, about.st_ino), 0
            self._losses, self._at_fixed_noise = [], {}
        file.seek(self._read_bytes)
        new = file.read()
        # An incomplete line is read next time.
        new = new[: new.rfind(b"\n") + 1]
        self._read_bytes += len(new)
        for line in new.decode("utf-8", errors="replace").splitlines():
            event = _event_from_line(line)
            if event is not None:
                self._losses = _with_loss(self._losses, event[1])
                self._at_fixed_noise = _with_evaluation(self._at_fixed_noise, event[1])


def fixed_noise_losses_of(events: list[tuple[float, Event]]) -> list[FixedNoiseLosses]:
    """Return the losses at fixed noise in the order of steps; for steps repeated by a resume, the last ones."""
    found: dict[int, FixedNoiseLosses] = {}
    for _, event in events:
        found = _with_evaluation(found, event)
    return _in_order(found)


def _with_evaluation(found: dict[int, FixedNoiseLosses], event: Event) -> dict[int, FixedNoiseLosses]:
    if isinstance(event, Resumed):
        return {step: one for step, one in found.items() if step <= event.step}
    if isinstance(event, FixedNoiseLosses):
        found[event.step] = event
    return found


def _in_order(found: dict[int, FixedNoiseLosses]) -> list[FixedNoiseLosses]:
    return [found[step] for step in sorted(found)]


def memorisation_of(found: list[FixedNoiseLosses]) -> list[float]:
    """Return for each entry how much the gap between unseen and seen views has grown since the first.

    It rises when a model memorizes the photos' pixels rather than what they show. The first gap comes from the views: a
    crop that shows less is easier or harder to denoise for any model.
    """
    return [(one.unseen - one.seen) - (found[0].unseen - found[0].seen) for one in found]


def _event_from_line(line: str) -> tuple[float, Event] | None:
    try:
        values = dict(json.loads(line))
        kind = _KINDS[values.pop("event")]
        time_s = values.pop("time_s")
        return (float(time_s), checked_record(kind, values)) if fits(time_s, float) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def checked_record(kind: type, values: dict[str, Any]) -> Any:
    """Return the record of this type from JSON values; raises ValueError or TypeError if they do not describe one."""
    hints = _hints_of(kind)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    wrong = [name for name, value in values.items() if name in hints and not fits(value, hints[name])]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} of a {kind.__name__} cannot be that")
    return kind(**values)


@functools.cache
def _hints_of(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@dataclass(frozen=True)
class Controls:
    """What the user asks of a run while it trains; checked between steps."""

    stop: threading.Event = field(default_factory=threading.Event)
    save_now: threading.Event = field(default_factory=threading.Event)
    sample_now: threading.Event = field(default_factory=threading.Event)
    finish_now: threading.Event = field(default_factory=threading.Event)
    # Set while something else needs the device; the training then pauses, and continues by itself.
    lend: threading.Event = field(default_factory=threading.Event)
