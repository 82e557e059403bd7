"""The state of a run for the page, read from its folder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dreambooth.config.training import TrainingConfig
from dreambooth.events import FINAL_STATUSES, FixedNoiseLosses, LossReader, Status, StatusChanged, StepLoss
from dreambooth.records.runlog import is_lent, is_owned, read_config, read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.scoring.records import RunScores, read_scores

LOG_TAIL_BYTES = 16_000


@dataclass(frozen=True)
class RunView:
    """Everything the page shows of a run, read from its folder."""

    name: str
    path: Path
    status: Status
    step: int
    total_steps: int
    phase: str
    phase_done: int
    phase_total: int
    seconds_left: float | None
    saves_in_time: bool
    phase_seconds_left: float | None
    error: StatusChanged | None
    queue_place: int | None
    losses: list[StepLoss]
    log_tail: str
    samples: dict[int, list[Path]]
    steps: list[int]
    resume_step: int | None
    silent_s: float
    config: TrainingConfig | None
    scores: RunScores | None = None
    recommended_step: int | None = None
    why_recommended: str = ""
    at_fixed_noise: list[FixedNoiseLosses] = field(default_factory=list)
    # The step from which more steps can be trained than originally; None if that state is gone.
    more_from: int | None = None
    # The runs before this one in the queue, in order.
    queued_after: list[str] = field(default_factory=list)
    # How long it has been at work, without what it did before it was resumed; 0 while it waits.
    elapsed_s: float = 0.0


def read_view(
    run: RunFolder, losses: LossReader, *, queued_after: Sequence[str] = (), is_stopping: bool = False
) -> RunView:
    """Return what the page shows of a run that has records; `losses` is read incrementally."""
    state = read_state(run)
    status: Status = "stopping" if is_stopping and state.status not in FINAL_STATUSES else state.status
    steps, scores = run.steps(), read_scores(run)
    pick = scores.recommended(steps) if scores else None
    return RunView(
        name=run.name,
        path=run.path,
        status=status,
        step=state.step,
        total_steps=state.total_steps,
        phase=state.phase,
        phase_done=state.phase_done,
        phase_total=state.phase_total,
        seconds_left=state.seconds_left,
        saves_in_time=state.saves_in_time,
        phase_seconds_left=state.phase_seconds_left,
        error=state.error,
        queue_place=len(queued_after) or None,
        losses=losses.losses(),
        log_tail=_tail(run.log_path),
        samples=run.samples(),
        steps=steps,
        resume_step=None if is_lent(state) else _resume_step(run, status),
        silent_s=max(time.time() - state.heartbeat_s, 0.0) if status in ("running", "stopping") else 0.0,
        config=read_config(run),
        scores=scores,
        recommended_step=pick.step if pick else None,
        why_recommended=pick.why if pick else "",
        at_fixed_noise=losses.at_fixed_noise(),
        more_from=None if is_owned(run) else max(run.checkpoint_steps(), default=None),
        queued_after=list(queued_after),
        elapsed_s=max(time.time() - state.began_s, 0.0) if state.began_s and status == "running" else 0.0,
    )


def _resume_step(run: RunFolder, status: Status) -> int | None:
    """Return the step after which a resumed run continues, 0 for its start; None if it needs no resuming."""
    if status not in ("interrupted", "paused", "stopped", "failed"):
        return None
    return max(run.checkpoint_steps(), default=0)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - LOG_TAIL_BYTES, 0))
            return file.read().decode("utf-8", errors="replace")
    except OSError:  # there is none, or no file in its place
        return ""
