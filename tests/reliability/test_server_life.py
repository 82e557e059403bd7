"""The long tier of the server's life: R9, R10, R15, R16 of docs/reliability.md."""

import dataclasses
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.events import PhaseProgress, StatusChanged
from dreambooth.models.base import STARTER
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.training.materials import RunContext
from tests.harness.jobs_at_work import until
from tests.harness.server_life import ENDINGS, Failing, ended_by_signal, stub_config, through_restarts
from ui.render import status_card

pytestmark = pytest.mark.reliability


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path) -> TrainingConfig:
    return stub_config(
        photos, pretrained_model_name_or_path=str(tiny_base_folder), resolution=32, log_interval=1, seed=1,
        num_crop_variants=1, n_save_sample=1, save_infer_steps=1, save_sample_prompt="dog",
        with_prior_preservation=False, checkpointing_steps=0,
    )  # fmt: skip


def test_twenty_servers_told_to_end_save_their_run_and_go(config: TrainingConfig, tmp_path: Path) -> None:
    """R9: gone 5 s and one step after the signal."""
    long = dataclasses.replace(config, max_train_steps=5000)
    took_s: list[float] = []
    for number in range(20):
        took_s.append(ended_by_signal(long, tmp_path / str(number), 1 + number))
        print(f"R9: {number + 1}: gone after {took_s[-1]:.1f} s")
    took_s.sort()
    print(f"R9: 20 of 20 saved; gone after {took_s[10]:.1f} s in the middle, {took_s[-1]:.1f} s at most")
    assert took_s[-1] < 10


def test_five_of_each_way_a_thread_ends(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R10: all kinds of errors, five times each, through one queue."""
    monkeypatch.setattr(ModelManager, "collect", lambda _: None)
    failing, slowest_s = Failing(), 0.0
    jobs = Jobs(Workspace(tmp_path / "data"), ModelManager("cpu"), train=failing)
    for kind in [*ENDINGS] * 5:
        failing.error = ENDINGS[kind]
        name, began_s = jobs.start(stub_config(photos)), time.monotonic()
        view = until(partial(jobs.view, name), lambda view: view.status == "failed")
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        assert type(ENDINGS[kind]).__name__ in status_card(view)
        failing.error = None
        after = jobs.start(stub_config(photos))
        # Called within this round, whose names they take.
        until(lambda: jobs.view(after).status, lambda status: status == "done")  # noqa: B023
    jobs.close()
    print(f"R10: {5 * len(ENDINGS)} told, the slowest after {slowest_s:.2f} s")
    assert slowest_s < 5


def test_five_hung_trainings_are_told_within_a_minute(tmp_path: Path, photos: Path) -> None:
    """R10: five apps, each with a training that hangs after a step; nothing is moved but the clock's own hands."""
    let_go = threading.Event()

    def hang(_: TrainingConfig, context: RunContext) -> StatusChanged:
        context.report(PhaseProgress("training", 1, 5))
        let_go.wait()
        return StatusChanged("done")

    apps = [Jobs(Workspace(tmp_path / str(number)), ModelManager("cpu"), train=hang) for number in range(5)]
    began_s = time.monotonic()
    names = [jobs.start(stub_config(photos)) for jobs in apps]
    for jobs, name in zip(apps, names, strict=True):
        # Called within this round.
        until(lambda: status_card(jobs.view(name)), lambda card: "Not responding" in card, seconds=90)  # noqa: B023
    took_s = time.monotonic() - began_s
    let_go.set()
    for jobs in apps:
        jobs.close()
    print(f"R10: 5 hangs told after {took_s:.0f} s")
    assert took_s < 60


def test_thirty_restarts_lose_and_double_no_run(tmp_path: Path, photos: Path) -> None:
    """R15."""
    found = through_restarts(tmp_path, photos, 30, seed=7)
    print(f"R15: 30 restarts: {found}")


def test_a_hundred_runs_in_one_server_leave_nothing_behind(photos: Path, tmp_path: Path) -> None:
    """R16: 10 steps each on the starter: memory, handles, threads, temporary files."""
    import psutil

    process, workspace = psutil.Process(), Workspace(tmp_path / "data")
    jobs = Jobs(workspace, ModelManager("cpu"))
    config = stub_config(
        photos, pretrained_model_name_or_path=STARTER, resolution=64, seed=1, num_crop_variants=1, n_save_sample=1,
        save_infer_steps=2, save_sample_prompt="dog", with_prior_preservation=False, checkpointing_steps=0,
    )  # fmt: skip
    config = dataclasses.replace(config, max_train_steps=10)
    num_runs, counts = int(os.environ.get("SOAK_RUNS", "100")), dict[int, tuple[float, int, int]]()
    for number in range(1, num_runs + 1):
        name = jobs.start(config)
        until(lambda: jobs.view(name).status, lambda status: status in ("done", "failed"), seconds=600)  # noqa: B023
        until(jobs.active, lambda active: active is None)
        assert read_state(workspace.run(name)).status == "done"
        counts[number] = (process.memory_info().rss / 2**20, process.num_fds(), process.num_threads())
        print(
            f"R16: run {number}: {counts[number][0]:.0f} MB, {counts[number][1]} handles, {counts[number][2]} threads"
        )
        forget(workspace.run(name))
    first, last = counts[min(10, num_runs)], counts[num_runs]
    left = [entry for entry in workspace.data_dir.rglob(".*") if entry.name != ".run"]
    jobs.close()
    assert last[0] - first[0] <= 50, "MB"
    assert abs(last[1] - first[1]) <= 2, "handles"
    assert last[2] == first[2], "threads"
    assert left == []


def forget(run: RunFolder) -> None:
    """Remove a run's models, which would fill the disk of a small machine."""
    import shutil

    for step in run.steps():
        shutil.rmtree(run.step_folder(step))
    shutil.rmtree(run.checkpoints, ignore_errors=True)
