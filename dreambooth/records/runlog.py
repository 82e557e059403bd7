"""A run's own records: events, log and state, written during the run, for anyone to read.

The state file is rewritten at most once a second: a step may take less, and the page does not ask more often.
"""

import contextlib
import dataclasses
import errno
import importlib.util
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.config.training import TrainingConfig
from dreambooth.durable import is_locked, write_json
from dreambooth.errors import ConfigError, DreamBoothError, traceback_text, without_secrets
from dreambooth.events import (
    FINAL_STATUSES,
    Event,
    FixedNoiseLosses,
    ModelSaved,
    Notice,
    PhaseProgress,
    Resumed,
    SamplesMade,
    Status,
    StatusChanged,
    StepLoss,
    checked_record,
    event_to_line,
)
from dreambooth.formats.json_file import read_object
from dreambooth.records.eta import Eta, PhaseTime, TimeLeft
from dreambooth.records.workspace import RunFolder

STATE_INTERVAL_S = 1.0
# Work that reports nothing for minutes: a download, a large save, the first step, which may compile.
BEATING_PHASES = ("loading", "saving", "copying")
BEAT_S, MAX_BEATING_S = 5.0, 3600.0
# Records that wait for disk space or a free file; beyond this the oldest are dropped.
MAX_UNWRITTEN = 10_000


@dataclass(frozen=True)
class RunState:
    """The state of a run: its status, the current phase, and the time left in seconds."""

    status: Status = "queued"
    step: int = 0
    total_steps: int = 0
    phase: str = ""
    phase_done: int = 0
    phase_total: int = 0
    seconds_left: float | None = None
    # Whether the time of future saves is included; before the first save it is not known.
    saves_in_time: bool = True
    # How long the class images or the photos' crops will still take, while they are made.
    phase_seconds_left: float | None = None
    # When this process began to work on it, in seconds since 1970; 0 before that.
    began_s: float = 0.0
    owner_pid: int = 0
    heartbeat_s: float = 0.0
    error: StatusChanged | None = None


class RunLog:
    """Writes a run's reports into its folder; one per run, called from the run's thread."""

    def __init__(self, run: RunFolder, total_steps: int, config: TrainingConfig | None = None) -> None:
        self._run = run
        self._eta, self._phase_time = Eta(config), PhaseTime()
        # A resumed run stays at its previous step until it reports the next one.
        kept = _kept_state(run)
        total_steps = total_steps or kept.total_steps
        self._state = RunState(step=kept.step, total_steps=total_steps, owner_pid=os.getpid())
        self._written_s = 0.0
        self._unwritten: dict[Path, list[bytes]] = {run.events_path: [], run.log_path: []}
        self._first_step = 0
        self._still: threading.Event | None = None
        self._lock = threading.Lock()
        run.records.mkdir(parents=True, exist_ok=True)

    def __call__(self, event: Event) -> None:
        """Record an event; a change of status or phase is written to the state file at once.

        What cannot be written now, with too many open files or a full disk, is written with a later event: a record
        never ends a run.
        """
        with self._lock:
            now_s = time.time()
            turned = isinstance(event, StatusChanged) or (
                isinstance(event, PhaseProgress) and event.phase != self._state.phase
            )
            self._state = self._next_state(event, now_s)
            self._beat_during_silence(event)
            if turned or not isinstance(event, PhaseProgress):
                self._append(event, now_s)
            if turned or now_s - self._written_s >= STATE_INTERVAL_S:
                self._write_state(now_s)

    def _write_state(self, now_s: float) -> None:
        try:
            write_json(self._run.state_path, dataclasses.asdict(self._state))
            self._written_s = now_s
        except OSError as error:
            self._written_s = 0.0
            if self._state.status in FINAL_STATUSES:
                # There is no later event, and nowhere else to say how the run ended.
                text = without_secrets(f"{self._run.name}: {self._state.status}, not written: {error}")
                with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
                    print(text, file=sys.stderr)

    def bug(self, error: BaseException) -> None:
        """Write a traceback to the log, where the page's message would not help to fix the bug."""
        with self._lock:
            self._write(self._run.log_path, traceback_text(error))

    def _next_state(self, event: Event, now_s: float) -> RunState:
        changes: dict[str, Any] = {"heartbeat_s": now_s}
        match event:
            case StatusChanged():
                error = event if event.status in ("failed", "paused") else None
                changes |= {"status": event.status, "error": error}
                if event.status == "running" and not self._state.began_s:
                    changes["began_s"] = now_s
                if event.status in FINAL_STATUSES:
                    changes["seconds_left"] = None
            case PhaseProgress():
                changes |= {"phase": event.phase, "phase_done": event.done, "phase_total": event.total}
        left = self._eta(event, now_s)
        self._phase_time(event, now_s)
        is_over = isinstance(event, StatusChanged) and event.status in FINAL_STATUSES
        changes["phase_seconds_left"] = None if is_over else _rounded(self._phase_time.seconds_left)
        if isinstance(event, PhaseProgress) and event.phase == "training":
            changes |= {"step": event.done, "total_steps": event.total, **_as_state(left)}
        return dataclasses.replace(self._state, **changes)

    def close(self) -> None:
        """End the heartbeat, however the run has ended."""
        if self._still is not None:
            self._still.set()

    def _beat_during_silence(self, event: Event) -> None:
        """Keep the heartbeat going during work that reports nothing, until it is over."""
        if isinstance(event, Resumed):
            self._first_step = event.step
        if not isinstance(event, PhaseProgress | StatusChanged):
            return
        self.close()
        self._still = None
        if not isinstance(event, PhaseProgress):
            return
        if event.phase in BEATING_PHASES or (event.phase == "training" and event.done == self._first_step):
            self._still = threading.Event()
            threading.Thread(target=self._beat, args=(self._still,), name="heartbeat", daemon=True).start()

    def _beat(self, ended: threading.Event) -> None:
        end_s = time.monotonic() + MAX_BEATING_S
        while not ended.wait(BEAT_S) and time.monotonic() < end_s:
            with self._lock, contextlib.suppress(OSError):  # a full disk is reported by the write that it stops
                if not ended.is_set():
                    self._state = dataclasses.replace(self._state, heartbeat_s=time.time())
                    write_json(self._run.state_path, dataclasses.asdict(self._state))

    def _append(self, event: Event, now_s: float) -> None:
        self._write(self._run.events_path, without_secrets(event_to_line(event, now_s)))
        text = as_text(event)
        self._write(self._run.log_path, f"{time.strftime('%H:%M:%S', time.localtime(now_s))} {text}\n" if text else "")

    def _write(self, path: Path, text: str) -> None:
        """Append a text, after what could not be written before."""
        lines = self._unwritten[path]
        if text:
            lines.append(text.encode("utf-8", errors="backslashreplace"))
        if not lines:
            return
        try:
            _append_whole(path, b"".join(lines))
            lines.clear()
        except OSError:
            del lines[:-MAX_UNWRITTEN]


def _append_whole(path: Path, data: bytes) -> None:
    """Append all of it or nothing: half a line would damage the next one."""
    with path.open("ab", buffering=0) as file:
        before_bytes = os.fstat(file.fileno()).st_size
        try:
            written = file.write(data)
        except OSError:
            file.truncate(before_bytes)
            raise
        if written != len(data):
            file.truncate(before_bytes)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _as_state(left: TimeLeft | None) -> dict[str, Any]:
    if left is None:
        return {"seconds_left": None}
    return {"seconds_left": _rounded(left.seconds), "saves_in_time": left.with_saves}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


class TensorBoardLog:
    """Writes losses and rate for TensorBoard into `0/<logging_dir>`, as the seed script does; inactive without it."""

    def __init__(self, run: RunFolder, logging_dir: str) -> None:
        self._writer: Any = None
        self._folder = run.step_folder(0) / logging_dir
        self._missing = importlib.util.find_spec("tensorboard") is None

    def __call__(self, event: Event) -> None:
        """Record a step's numbers; other events are ignored."""
        if self._missing or not isinstance(event, StepLoss | FixedNoiseLosses):
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        numbers = (
            {"loss": event.loss, "lr": event.learning_rate}
            if isinstance(event, StepLoss)
            else {f"fixed noise/{name}": getattr(event, name) for name in ("seen", "unseen", "drift")}
        )
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, event.step)

    def close(self) -> None:
        """Close the file, if one was started."""
        if self._writer is not None:
            self._writer.close()


def as_text(event: Event) -> str:
    """Return the event as a line for people, or an empty string if it is not worth one."""
    return without_secrets(_as_text(event))


def _as_text(event: Event) -> str:
    match event:
        case PhaseProgress():
            if event.phase == "lent":
                return ""
            return f"{event.phase.capitalize()}" + (f" ({event.total})" if event.total else "")
        case StepLoss():
            prior = "" if event.prior_loss is None else f" + class {event.prior_loss:.4f}"
            parts = f"photos {event.instance_loss:.4f}{prior}"
            return f"step {event.step}: loss {event.loss:.4f} ({parts}), rate {event.learning_rate:.2e}"
        case FixedNoiseLosses():
            numbers = f"photos {event.seen:.4f}, unseen views {event.unseen:.4f}, drift on {event.drift_on}"
            return f"step {event.step} at fixed noise: {numbers} {event.drift:.5f}"
        case SamplesMade():
            return f"{len(event.files)} sample pictures of step {event.step}"
        case ModelSaved():
            return f"saved the model of step {event.step}"
        case Resumed():
            return f"goes on after step {event.step}"
        case Notice():
            return event.text if event.level == "info" else f"Note: {event.text}"
        case StatusChanged():
            return " ".join(part for part in (event.status, event.what, event.why, event.todo) if part)


def failure(error: DreamBoothError) -> StatusChanged:
    """Return the final status of a run that a known error ended."""
    return StatusChanged("failed", error.what, error.why, error.todo)


def is_lent(state: RunState) -> bool:
    """Return whether the run is paused only while its device is lent."""
    return state.status == "paused" and state.error is not None and state.error.cause == "lent"


def read_config(run: RunFolder) -> TrainingConfig | None:
    """Return the settings a run was started with, None if they cannot be read."""
    try:
        return TrainingConfig.from_json(read_object(run.config_path))
    except (OSError, ValueError, ConfigError):
        return None


def read_state(run: RunFolder) -> RunState:
    """Return the state of the run; `interrupted` if it has no owner and no final status."""
    state = _kept_state(run)
    # A run that lent its device continues by itself, unless the borrower is gone.
    rests = state.status in FINAL_STATUSES or (state.status == "paused" and not is_lent(state))
    if rests or is_owned(run):
        return state
    # It may have ended between reading its state and checking its owner.
    again = _kept_state(run)
    if again.status != state.status or again.heartbeat_s > state.heartbeat_s:
        return again
    return dataclasses.replace(state, status="interrupted", seconds_left=None, phase_seconds_left=None)


def _kept_state(run: RunFolder) -> RunState:
    try:
        values = read_object(run.state_path)
        if isinstance(values.get("error"), dict):
            values["error"] = checked_record(StatusChanged, values["error"])
        state: RunState = checked_record(RunState, values)
    except (OSError, ValueError, TypeError):
        state = RunState()
    return state


def is_owned(run: RunFolder) -> bool:
    """Return whether a living process is running or has queued the run."""
    # The queue's lock is released after the run's own is taken: asked in this order, there is no gap between them.
    return is_locked(run.queue_lock_path) or is_locked(run.lock_path)
