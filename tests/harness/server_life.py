"""Servers that are really started, killed and started again, with a stand-in for the training where that is all."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.events import PhaseProgress, StatusChanged, read_events
from dreambooth.models.base import STARTER
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import Workspace, held_data_folder
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import Training
from dreambooth.training.materials import RunContext
from tests.harness.children import exit_status, in_child, reached
from tests.harness.jobs_at_work import until
from tests.harness.open_page import free_port

STUB_STEPS = 5
ENDINGS: dict[str, BaseException] = {
    "wrong value": ValueError("no such mode"),
    "missing library": ImportError("No module named 'triton'"),
    "a library that exits": SystemExit(3),
    "interrupt": KeyboardInterrupt(),
    "memory": MemoryError("cannot allocate 2 GiB"),
    "system": OSError(5, "Input/output error"),
    "torch": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
}


def stub_config(photos: Path, **changes: Any) -> TrainingConfig:
    """Return settings that pass every check; the stand-ins do not look at them."""
    concepts = (Concept("photo of zwx dog", str(photos), "photo of dog"),)
    # A base that is here: one of the Hub is asked for before a run is queued.
    changes = {"pretrained_model_name_or_path": STARTER} | changes
    return TrainingConfig(concepts=concepts, max_train_steps=STUB_STEPS, **changes).checked()


def append(path: Path, line: str) -> None:
    """Add a line to a journal in one write, so that a kill leaves it whole or out."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def lines(path: Path) -> list[str]:
    """Return a journal's lines."""
    return path.read_text().splitlines() if path.exists() else []


# Restarts ------------------------------------------------------------------------------------------------------------


def stub_training(_: TrainingConfig, context: RunContext) -> StatusChanged:
    """Do five short steps, each with a state, in a journal; a resumed run goes on after its newest."""
    run = context.run
    first = max(run.checkpoint_steps(), default=0) if context.is_resumed else 0
    for step in range(first + 1, STUB_STEPS + 1):
        if context.controls.stop.is_set():
            return StatusChanged("stopped")
        time.sleep(0.02)
        context.report(PhaseProgress("training", step, STUB_STEPS))
        append(context.workspace.data_dir / "steps", f"{run.name} {step}")
        (run.checkpoints / str(step)).mkdir(parents=True, exist_ok=True)
    return StatusChanged("done")


class Failing:
    """Stands in for a training that fails at its third step while there is an `error`, and is `stub_training` else."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error

    def __call__(self, config: TrainingConfig, context: RunContext) -> StatusChanged:
        if self.error is None:
            return stub_training(config, context)
        context.report(PhaseProgress("training", 3, 5))
        raise self.error


def a_server(workspace: Workspace, photos: Path, seed: int, *, to_the_end: bool) -> None:
    """Be a server: resume what was interrupted, start three runs, take one out of the line; end when all are done."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, held_data_folder(workspace):
        patch.setattr(ModelManager, "collect", lambda _: None)
        jobs = Jobs(workspace, ModelManager("cpu"), train=stub_training)
        for run in reversed(workspace.runs()):
            if read_state(run).status == "interrupted":
                jobs.resume(run.name)
        names = [] if to_the_end else [jobs.start(stub_config(photos)) for _ in range(3)]
        for name in names:
            append(workspace.data_dir / "started", name)
        if names and rng.random() < 0.5:
            jobs.stop(names[-1])
            append(workspace.data_dir / "stopped", names[-1])
        until(jobs.active, lambda active: active is None, seconds=110)
        jobs.close()


def through_restarts(folder: Path, photos: Path, num_restarts: int, seed: int) -> dict[str, int]:
    """Kill and start a server again and again; returns how many runs there were, and how they ended."""
    workspace, rng = Workspace(folder / "data"), random.Random(seed)
    interrupted = 0
    for number in range(num_restarts):
        child = in_child(lambda: a_server(workspace, photos, seed + number, to_the_end=False))  # noqa: B023
        known = len(lines(workspace.data_dir / "started"))
        until(lambda: len(lines(workspace.data_dir / "started")), lambda found: found >= known + 3)  # noqa: B023
        moment = len(lines(workspace.data_dir / "steps")) + rng.randrange(8)
        until(lambda: len(lines(workspace.data_dir / "steps")), lambda found: found >= moment)  # noqa: B023
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        statuses = {run.name: read_state(run).status for run in workspace.runs()}
        assert set(statuses.values()) <= {"interrupted", "stopped", "done"}, statuses
        assert set(lines(workspace.data_dir / "started")) <= set(statuses), "none is lost"
        shown = Jobs(workspace, ModelManager("cpu"))
        for name, status in statuses.items():
            assert (shown.view(name).resume_step is None) == (status == "done"), "one click goes on"
        interrupted += sum(status == "interrupted" for status in statuses.values())
    assert exit_status(in_child(lambda: a_server(workspace, photos, 0, to_the_end=True))) == 0
    runs = workspace.runs()
    statuses = {run.name: read_state(run).status for run in runs}
    # Between a run's folder and the journal's line a kill may lie, and between a run's own stop and its line.
    assert sorted(statuses) == sorted(set(statuses))
    assert set(lines(workspace.data_dir / "started")) <= set(statuses)
    assert len(statuses) == 3 * num_restarts
    assert set(statuses.values()) <= {"done", "stopped"}
    steps, dones = lines(workspace.data_dir / "steps"), 0
    doubled = len(steps) - len(set(steps))
    assert doubled <= num_restarts, "a kill repeats one step at most"
    for run in runs:
        if statuses[run.name] == "done":
            assert {f"{run.name} {step}" for step in range(1, STUB_STEPS + 1)} <= set(steps)
            final = [event for _, event in read_events(run.events_path) if event == StatusChanged("done")]
            assert final
            dones += len(final)
    # A kill may lie between the line that says a run is done and its record; it is then said once more.
    assert dones <= sum(status == "done" for status in statuses.values()) + num_restarts
    done = sum(status == "done" for status in statuses.values())
    return {"runs": len(runs), "done": done, "stopped": len(runs) - done, "interrupted, seen": interrupted}


# The whole app -------------------------------------------------------------------------------------------------------


def serve_with(data_dir: Path, prepared: Callable[[Jobs], Any], port: int, train: Training | None) -> None:
    """Be the app, with something done to its jobs before the page opens, and this training; never returns."""
    import faulthandler

    import app
    import ui.build

    # Where a server that never answers hangs.
    faulthandler.dump_traceback_later(90, file=open(data_dir.parent / "hangs.txt", "w"))  # noqa: SIM115
    os.environ["DREAMBOOTH_HOME"] = str(data_dir)
    build = ui.build.build_page

    def build_after(jobs: Jobs, *rest: Any, **named: Any) -> Any:
        prepared(jobs)
        return build(jobs, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ui.build.build_page", build_after)
        made = type("Jobs", (Jobs,), {"__init__": partialmethod(Jobs.__init__, train=train)})
        patch.setattr("dreambooth.runs.jobs.Jobs", made)
        os._exit(app.main(["--port", str(port)]))


@contextlib.contextmanager
def a_whole_app(
    data_dir: Path, prepared: Callable[[Jobs], Any], train: Training | None = None
) -> Iterator[tuple[int, str]]:
    """Run the app in a child; yields its process id and address when the page answers, and kills it afterwards."""
    import urllib.request

    port = free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    child = in_child(lambda: serve_with(data_dir, prepared, port, train))
    url = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the app ended before its page opened"
        try:
            with urllib.request.urlopen(url, timeout=5) as page:
                return bool(page.status == 200)
        except OSError:
            return False

    try:
        until(answers, bool, seconds=120)
        yield child, url
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def ended_by_signal(config: TrainingConfig, folder: Path, at_step: int) -> float:
    """SIGTERM a server that trains, check what it leaves, and return how many seconds it took to go."""
    data_dir = folder / "data"
    workspace = Workspace(data_dir)

    def two_runs(jobs: Jobs) -> None:
        jobs.start(config, "first")
        jobs.start(config, "second")

    with a_whole_app(data_dir, two_runs) as (child, _):
        second, first = sorted(workspace.runs(), key=lambda run: run.name, reverse=True)
        reached(first, at_step)
        os.kill(child, signal.SIGTERM)
        began_s = time.monotonic()
        assert exit_status(child) == 0
        took_s = time.monotonic() - began_s
    assert read_state(first).status == "stopped"
    (step,) = first.checkpoint_steps()
    assert step >= at_step
    assert first.steps() == [step]
    assert read_state(second).status == "stopped", "the one in line"
    with held_data_folder(workspace):
        pass
    jobs = Jobs(workspace, ModelManager("cpu"))
    assert [jobs.view(run.name).resume_step for run in (first, second)] == [step, 0]
    return took_s
