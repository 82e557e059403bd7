"""One device, many clicks, and the server's life: R9, R10, R13, R14 and R15 of docs/reliability.md, at push size."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from natsort import natsorted

from dreambooth.config.training import TrainingConfig
from dreambooth.durable import held_lock, is_locked, sweep_unfinished
from dreambooth.errors import DeviceError, DreamBoothError
from dreambooth.events import PhaseProgress, StatusChanged
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import RunLog, read_state
from dreambooth.records.workspace import Workspace, held_data_folder
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import Training, resume, start_records
from dreambooth.training.materials import RunContext
from tests.harness.children import exit_status, in_child
from tests.harness.jobs_at_work import until
from tests.harness.open_page import open_page
from tests.harness.server_life import ENDINGS, Failing, ended_by_signal, stub_config, through_restarts
from ui.render import status_card


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "data")


@pytest.fixture
def jobs_with(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Training], Jobs]]:
    """Return what makes an app's jobs with a stand-in for the training."""
    # The stand-ins hold no device memory, and looking for it takes longer than they do.
    monkeypatch.setattr(ModelManager, "collect", lambda _: None)
    with contextlib.ExitStack() as opened:

        def made(train: Training) -> Jobs:
            jobs = Jobs(workspace, ModelManager("cpu"), train=train)
            opened.callback(jobs.close)
            return jobs

        yield made


# R13: many clicks ----------------------------------------------------------------------------------------------------


def test_a_hundred_clicks_at_once_train_once_each_one_at_a_time(
    jobs_with: Callable[[Training], Jobs], workspace: Workspace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R13: 20 threads x 5 submits."""
    leases: list[tuple[str, str]] = []

    def train(config: TrainingConfig, context: RunContext) -> StatusChanged:
        leases.append(("takes", context.run.name))
        time.sleep(0.002)
        leases.append(("leaves", context.run.name))
        return StatusChanged("done")

    jobs = jobs_with(train)
    config, own = stub_config(photos), dict[int, list[str]]()
    monkeypatch.setattr("time.strftime", lambda *_: "20261123-120000")

    def submit(number: int) -> None:
        own[number] = [jobs.start(config) for _ in range(5)]

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(jobs.active, lambda active: active is None, seconds=120)
    names = [name for what, name in leases if what == "takes"]
    assert leases == [(what, name) for name in names for what in ("takes", "leaves")], "never two at once"
    assert names == natsorted({name for five in own.values() for name in five}), "in the order they came, once each"
    assert len(names) == 100
    assert all(five == natsorted(five) for five in own.values())
    assert {read_state(run).status for run in workspace.runs()} == {"done"}


def test_a_second_server_on_one_folder_refuses_and_names_the_first(workspace: Workspace, tmp_path: Path) -> None:
    """R13: the real command, twice; the page of the first goes on."""
    environment = dict(os.environ) | {"DREAMBOOTH_HOME": str(workspace.data_dir)}
    with held_data_folder(workspace):
        refused = subprocess.run(
            [sys.executable, "app.py", "--port", "7999"],
            cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert refused.returncode == 1
    assert f"error: Another server is already using {workspace.data_dir}." in refused.stderr
    assert f"It is process {os.getpid()}, started 20" in refused.stderr
    assert "DREAMBOOTH_HOME" in refused.stderr
    assert "Traceback" not in refused.stderr


# R14: stale locks ----------------------------------------------------------------------------------------------------


def test_a_dead_servers_folder_is_free_at_once_and_a_living_ones_never(workspace: Workspace, tmp_path: Path) -> None:
    """R14: 50 holders killed, while another program lives under the number that their lock names."""
    other = subprocess.Popen(["sleep", "600"])
    lock, longest_s = workspace.data_dir / "server.lock", 0.0

    def hold() -> None:
        with held_data_folder(workspace), held_lock(workspace.run("r").lock_path):
            (tmp_path / "ready").touch()
            time.sleep(600)

    try:
        for _ in range(50):
            child = in_child(hold)
            until((tmp_path / "ready").exists, bool)
            assert f"{child}, started" in lock.read_text()
            with pytest.raises(DreamBoothError, match=str(child)), held_data_folder(workspace):
                pytest.fail("stolen from a living holder")
            lock.write_text(f"{other.pid}, started long ago")
            os.kill(child, signal.SIGKILL)
            began_s = time.monotonic()
            os.waitpid(child, 0)
            with held_data_folder(workspace), held_lock(workspace.run("r").lock_path):
                longest_s = max(longest_s, time.monotonic() - began_s)
            (tmp_path / "ready").unlink()
    finally:
        other.kill()
        other.wait()
    print(f"R14: 50 freed, the slowest after {longest_s:.2f} s")
    assert longest_s < 10


def test_those_who_look_at_a_lock_never_take_each_other_for_its_holder(tmp_path: Path) -> None:
    lock, wrong = tmp_path / "lock", []
    lock.touch()
    ends_s = time.monotonic() + 1

    def look() -> None:
        while time.monotonic() < ends_s:
            wrong.extend(["held"] * is_locked(lock))

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join()
    assert wrong == []


def test_what_a_dead_process_left_is_swept_when_its_number_is_given_again(tmp_path: Path) -> None:
    """A container gives its server the same number at every start."""
    old, new = (tmp_path / f".photo.png.{os.getpid()}-0000000{number}" for number in (1, 2))
    for file in (old, new):
        file.touch()
    os.utime(old, (1e9, 1e9))
    sweep_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [new]


def test_a_sweep_passes_over_what_others_finish_meanwhile(tmp_path: Path) -> None:
    """A run begins, and sweeps, while another one's state is written."""
    from dreambooth.durable import new_folder, write_text

    ends_s, wrong = time.monotonic() + 2, list[BaseException]()

    def write() -> None:
        while time.monotonic() < ends_s:
            write_text(tmp_path / "state.json", "{}")
            with new_folder(tmp_path / "1") as folder:
                (folder / "a").touch()
            (tmp_path / "1" / "a").unlink()
            (tmp_path / "1").rmdir()

    def guarded() -> None:
        try:
            write()
        except OSError as error:
            wrong.append(error)

    writer = threading.Thread(target=guarded)
    writer.start()
    while writer.is_alive():
        sweep_unfinished(tmp_path)
    assert wrong == [], "and takes nothing away from them"
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


# R15: restarts -------------------------------------------------------------------------------------------------------


def test_restarts_lose_and_double_no_run(tmp_path: Path, photos: Path) -> None:
    """R15: 4 restarts by SIGKILL, with runs at work, in line, stopped and done; each is seen and goes on."""
    assert through_restarts(tmp_path, photos, 4, seed=1)["runs"] == 12


def test_a_run_in_line_belongs_to_its_server_alone(
    jobs_with: Callable[[Training], Jobs], workspace: Workspace, photos: Path
) -> None:
    go_on = threading.Event()
    jobs = jobs_with(waiting_for(go_on))
    names = [jobs.start(stub_config(photos)) for _ in range(3)]
    assert [read_state(workspace.run(name)).status for name in names[1:]] == ["queued"] * 2
    with pytest.raises(DreamBoothError, match="running or queued"):
        resume(workspace.run(names[2]).path)
    threading.Timer(0.2, go_on.set).start()
    jobs.close()
    assert [jobs.view(name).status for name in names] == ["done", "stopped", "stopped"]
    assert jobs.view(names[1]).resume_step == 0
    with pytest.raises(DeviceError, match="shutting down"):
        jobs.start(stub_config(photos))


def waiting_for(go_on: threading.Event) -> Training:
    """Return a stand-in for the training that is done as soon as it may go on."""

    def train(config: TrainingConfig, context: RunContext) -> StatusChanged:
        assert go_on.wait(30)
        return StatusChanged("done")

    return train


# R10: how a run's thread ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENDINGS)
def test_however_the_thread_is_ended_the_run_says_so_and_the_next_one_works(
    jobs_with: Callable[[Training], Jobs], photos: Path, kind: str
) -> None:
    """R10: told within 5 s with its reason, what was reached, and a way on."""
    failing = Failing(ENDINGS[kind])
    jobs = jobs_with(failing)
    name, began_s = jobs.start(stub_config(photos)), time.monotonic()
    view = until(lambda: jobs.view(name), lambda view: view.status not in ("queued", "running"))
    assert time.monotonic() - began_s < 5
    assert (view.status, view.step, view.total_steps, view.resume_step) == ("failed", 3, 5, 0)
    assert view.error is not None
    assert type(ENDINGS[kind]).__name__ in view.error.what
    assert f"unexpected {type(ENDINGS[kind]).__name__}" in status_card(view)
    assert "Traceback" in view.log_tail
    failing.error = None
    after = jobs.start(stub_config(photos))
    assert until(lambda: jobs.view(after).status, lambda status: status != "queued" and status != "running") == "done"


def test_a_training_that_hangs_is_said_to_within_a_minute(
    jobs_with: Callable[[Training], Jobs], workspace: Workspace, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R10: an old heartbeat under a held lock; time itself is moved here, the long tier waits."""
    let_go = threading.Event()
    jobs = jobs_with(waiting_for(let_go))
    name, after = jobs.start(stub_config(photos)), jobs.start(stub_config(photos))
    until(lambda: jobs.view(name).status, lambda status: status == "running")
    assert "Not responding" not in status_card(jobs.view(name))
    with monkeypatch.context() as patch:
        now_s = time.time() + 58
        patch.setattr("time.time", lambda: now_s)
        view = jobs.view(name)
        assert view.status == "running"
        assert "Not responding: no sign of life for 58 s" in status_card(view)
        assert "start it again and resume" in status_card(view)
        assert jobs.view(after).status == "queued", "no second run beside it"
    let_go.set()


def test_a_killed_servers_run_is_interrupted_where_it_was(workspace: Workspace, photos: Path) -> None:
    """R10: the process that trained is gone; its folder tells at the next start."""

    def train_for_ever() -> None:
        run = workspace.run("r")
        with held_lock(run.lock_path):
            log = RunLog(run, 100)
            log(StatusChanged("running"))
            log(PhaseProgress("training", 7, 100))
            time.sleep(600)

    run = workspace.run("r")
    start_records(stub_config(photos), run)
    child = in_child(train_for_ever)
    until(lambda: read_state(run).step, lambda step: step == 7)
    assert read_state(run).status == "running"
    os.kill(child, signal.SIGKILL)
    assert exit_status(child) is None
    view = Jobs(workspace, ModelManager("cpu")).view("r")
    assert (view.status, view.step, view.resume_step) == ("interrupted", 7, 0)


# R9: the server is told to end ---------------------------------------------------------------------------------------


def test_a_signal_to_the_server_saves_the_run_and_frees_the_folder(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """R9: the whole app with a real training, SIGTERM once."""
    config = stub_config(
        photos, pretrained_model_name_or_path=str(tiny_base_folder), resolution=32, log_interval=1, seed=1,
        num_crop_variants=1, n_save_sample=1, save_infer_steps=1, save_sample_prompt="dog",
        with_prior_preservation=False, checkpointing_steps=0,
    )  # fmt: skip
    took_s = ended_by_signal(dataclasses.replace(config, max_train_steps=2000), tmp_path, 3)
    print(f"R9: gone after {took_s:.1f} s")
    assert took_s < 10


def test_a_page_that_takes_long_to_build_is_opened_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a busy machine, where Gradio's own look at the page, of three seconds, ended the app."""

    def too_slow(url: str, **_: object) -> httpx.Response:
        raise httpx.ReadTimeout(f"{url} took more than three seconds")

    monkeypatch.setattr("gradio.networking.httpx.head", too_slow)
    with open_page(tmp_path) as page:
        assert httpx.get(page.url, timeout=60).status_code == 200
