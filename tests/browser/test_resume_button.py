"""A server that was killed and started again, in a real browser: the run says so, and one click goes on with it."""

import dataclasses
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.events import PhaseProgress, StatusChanged, StepLoss
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.training.materials import RunContext
from tests.harness.jobs_at_work import until
from tests.harness.server_life import a_whole_app, stub_config
from tests.harness.visit import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
NUM_STEPS, STEPS_BETWEEN_STATES = 400, 10


def slow_training(_: TrainingConfig, context: RunContext) -> StatusChanged:
    """Take steps with a state at every tenth; a resumed run goes on after its newest, and faster."""
    run, report = context.run, context.report
    first = max(run.checkpoint_steps(), default=0) if context.is_resumed else 0
    for step in range(first + 1, NUM_STEPS + 1):
        report(PhaseProgress("training", step, NUM_STEPS))
        report(StepLoss(step, 0.5, 0.5, None, 1e-6))
        if step % STEPS_BETWEEN_STATES == 0:
            (run.checkpoints / str(step)).mkdir(parents=True, exist_ok=True)
        if context.controls.stop.wait(0 if context.is_resumed else 0.1):
            return StatusChanged("stopped")
    return StatusChanged("done")


def test_an_interrupted_run_is_resumed_by_a_click(browser: "Browser", tmp_path: Path, photos: Path) -> None:
    data_dir, workspace = tmp_path / "data", Workspace(tmp_path / "data")

    def prepared(jobs: Jobs) -> None:
        if not jobs.active() and not workspace.runs():
            jobs.start(dataclasses.replace(stub_config(photos), max_train_steps=NUM_STEPS), "watched")

    with a_whole_app(data_dir, prepared, slow_training) as (child, url):
        (run,) = until(workspace.runs, bool)
        until(lambda: read_state(run).step, lambda step: step > STEPS_BETWEEN_STATES)
        before = Visit(browser, url)
        before.tab("Train")
        before.until("run-status", rf"Training: step \d+ of {NUM_STEPS}")
        before.context.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    state = max(run.checkpoint_steps())
    with a_whole_app(data_dir, prepared, slow_training) as (_, url):
        after = Visit(browser, url)
        after.run()
        after.until("run-status", "Interrupted at step")
        assert not after.page.locator("#stop").is_visible(), "nothing is stuck in stopping"
        button = after.page.locator("#resume")
        assert re.fullmatch(f"Resume at step {state}", button.inner_text())
        button.click()
        after.until("run-message", "The run continues where it stopped")
        after.until("run-status", f"Finished after {NUM_STEPS} steps")
        assert not button.is_visible()
        after.close()
    assert read_state(run).status == "done"
