"""What no terminal, pipe or signal can do to a command: each is run as a user would, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import StoppedError
from dreambooth.events import Controls, Event, PhaseProgress
from dreambooth.runs import run as runs
from dreambooth.runs.run import train

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has neither /dev/full nor SIGHUP")


def started(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """Start a command in a process of its own, as a shell does in the foreground."""
    return _in_foreground([sys.executable, "-m", "dreambooth", *map(str, arguments)], **options)


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _in_foreground(command: list[str], **options: Any) -> "subprocess.Popen[str]":
    # What these tests are started by, a shell's background or nohup, ignores Ctrl-C or SIGHUP, and hands that down.
    usual = {
        "cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
        "preexec_fn": _heed_signals,
    }  # fmt: skip
    return subprocess.Popen(command, **usual | options)


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """Yield the writing end of a pipe that nobody reads any longer."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.fixture
def full() -> Iterator[IO[bytes]]:
    """Yield a file on a disk that is full."""
    with open("/dev/full", "wb") as file:
        yield file


@pytest.fixture
def training(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> list[str | Path]:
    """Return a short training's command; a file among its photos is told of by a name that few code pages have."""
    (photos / "写真.bmp").write_bytes(b"no photo that is read")
    return [
        "train", "--pretrained_model_name_or_path", tiny_base_folder, "--instance_data_dir", photos,
        "--instance_prompt", "photo of zwx dog", "--resolution", "32", "--max_train_steps", "2",
        "--train_batch_size", "1", "--output_dir", tmp_path / "写真",
    ]  # fmt: skip


def status_of(run: Path) -> str:
    return str(json.loads((run / ".run" / "state.json").read_text())["status"])


def wait_for(run: Path, what: str, process: "subprocess.Popen[str]") -> None:
    """Wait until the run has told this."""
    events, end_s = run / ".run" / "events.jsonl", time.monotonic() + 120
    while not (events.exists() and what in events.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end_s
        time.sleep(0.05)


# Output that cannot be written ---------------------------------------------------------------------------------------


@posix
def test_a_training_outlives_the_reader_of_its_output(
    training: list[str | Path], closed_pipe: int, tmp_path: Path
) -> None:
    process = started(*training, stdout=closed_pipe, stderr=closed_pipe)
    assert process.wait(120) == 0
    assert status_of(tmp_path / "写真") == "done"
    assert (tmp_path / "写真" / "2" / "model_index.json").exists()


@posix
def test_a_training_outlives_a_full_disk_under_its_output(
    training: list[str | Path], full: IO[bytes], tmp_path: Path
) -> None:
    process = started(*training, stdout=full)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 0, error
    assert status_of(tmp_path / "写真") == "done"
    assert "Some of the output could not be written: No space left on device." in error
    assert "disk is full" not in (tmp_path / "写真" / ".run" / "log.txt").read_text("utf-8")


def test_a_training_outlives_a_terminal_without_the_letters_of_its_files(
    training: list[str | Path], tmp_path: Path
) -> None:
    process = started(*training, env=os.environ | {"PYTHONIOENCODING": "cp1252", "LC_ALL": "C"})
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert status_of(tmp_path / "写真") == "done"
    assert r"\u5199\u771f" in out


@posix
@pytest.mark.parametrize("command", [["clean"], ["doctor"], ["train", "--help"], ["grid", "nowhere"]], ids=" ".join)
def test_no_command_ends_in_a_traceback_when_its_reader_goes_away(command: list[str], closed_pipe: int) -> None:
    process = started(*command, stdout=closed_pipe)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == (1 if command[0] == "grid" else 0), error
    assert "Traceback" not in error
    assert "Broken pipe" not in error
    assert "could not be written" not in error


@posix
def test_output_that_is_lost_on_a_full_disk_is_told_of(full: IO[bytes]) -> None:
    process = started("clean", stdout=full)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0
    assert error == "Some of the output could not be written: No space left on device.\n"


def test_an_observer_that_fails_is_left_out_and_the_run_goes_on(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    seen: list[Event] = []

    def observe(event: Event) -> None:
        seen.append(event)
        if len(seen) == 3:
            raise LookupError("nobody watches")

    assert train(config(tiny_base_folder, photos, tmp_path), on_event=observe).name == "2"
    log = (tmp_path / "run" / ".run" / "log.txt").read_text("utf-8")
    assert len(seen) == 3
    assert log.count("The display failed; the run continues without it: LookupError: nobody watches") == 1
    assert "Traceback" in log
    assert status_of(tmp_path / "run") == "done"


def config(base: Path, photos: Path, folder: Path, **changes: Any) -> TrainingConfig:
    """Return the settings of two steps."""
    values: dict[str, Any] = {
        "concepts": (Concept("photo of zwx dog", str(photos), "photo of dog"),),
        "pretrained_model_name_or_path": str(base),
        "output_dir": str(folder / "run"),
        "resolution": 32,
        "max_train_steps": 2,
        "train_batch_size": 1,
    }
    return TrainingConfig(**values | changes)


# Signals -------------------------------------------------------------------------------------------------------------


@posix
def test_a_closed_terminal_ends_a_training_as_sigterm_does(training: list[str | Path], tmp_path: Path) -> None:
    """A shell and the kernel each send a SIGHUP."""
    run = tmp_path / "写真"
    process = started(*training, "--max_train_steps", "9999")
    wait_for(run, "StepLoss", process)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert status_of(run) == "stopped"
    assert any(entry.name.isdecimal() for entry in run.iterdir())


@posix
def test_nohup_keeps_a_training_from_ending_with_its_terminal(training: list[str | Path], tmp_path: Path) -> None:
    run = tmp_path / "写真"
    process = started(
        *training, "--max_train_steps", "9999", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    wait_for(run, "StepLoss", process)
    process.send_signal(signal.SIGHUP)
    wait_for(run, '"step": 20', process)
    assert status_of(run) == "running"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert status_of(run) == "stopped"


def stopping_in(phase: str, controls: Controls) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == phase:
            controls.stop.set()

    return observe


@posix
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_training_that_is_stopped_before_its_first_step_says_so(
    training: list[str | Path], number: int, status: int, tmp_path: Path
) -> None:
    run = tmp_path / "写真"
    many = ["--class_prompt", "photo of dog", "--with_prior_preservation", "--num_class_images", "999"]
    process = started(*training, *many)
    wait_for(run, "class images", process)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == status, error
    assert "Stopped before the first step.\nNo model was saved.\nStart it again with the same settings.\n" in error
    assert "error:" not in error
    assert "The model is in" not in out
    assert status_of(run) == "stopped"


def test_from_python_a_run_that_was_stopped_before_its_first_step_raises(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    controls = Controls()
    with pytest.raises(StoppedError, match="Stopped before the first step"):
        train(config(tiny_base_folder, photos, tmp_path), controls=controls, on_event=stopping_in("loading", controls))


def test_a_demo_that_is_stopped_neither_converts_nor_generates(
    own_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(config: TrainingConfig, *, controls: Controls, **options: Any) -> Path:
        signal.raise_signal(signal.SIGINT)
        assert controls.stop.is_set()
        return Path(str(config.output_dir)) / "3"

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(runs, "train", stopped)
    assert main(["demo"]) == 130
    error = capsys.readouterr().err
    assert "Nothing was converted or generated." in error
    assert "error:" not in error
    assert not list(own_home.glob("exports/*"))
    assert not list(own_home.glob("pictures/*"))
    assert signal.getsignal(signal.SIGINT) is before, "a Ctrl-C after the training would count for nothing"


@posix
def test_ctrl_c_ends_a_command_without_a_traceback(tiny_base_folder: Path, tmp_path: Path) -> None:
    request = ["--prompt", "photo of dog", "--num_images_per_prompt", "64", "--num_inference_steps", "100"]
    process = started("generate", "--model", tiny_base_folder, *request, "--output_dir", tmp_path / "pictures")
    assert process.stderr is not None
    # The bar is there before the libraries are loaded.
    assert process.stderr.read(10)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    # Amid an `exec`, as in the making of a dataclass, Python ends by the signal itself: for a shell, 130 as well.
    assert process.returncode in (130, -signal.SIGINT)
    assert error.endswith("Interrupted.\n")
    assert "Traceback" not in error


def test_ctrl_c_that_a_library_swallows_ends_the_command_all_the_same(tmp_path: Path) -> None:
    program = """
import sys, time
from dreambooth import entry_point
entry_point.INTERRUPT_AGAIN_S = 1.0

def command():
    print("ready", flush=True)
    try:
        time.sleep(60)
    except BaseException:
        pass
    if sys.argv[1] == "fails":
        raise ImportError("cannot import name")
    time.sleep(60)

sys.exit(entry_point.run_program(command))
"""
    for what in ("goes on", "fails"):
        process = _in_foreground([sys.executable, "-c", program, what])
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=30)[1]
        assert (process.returncode, error) == (130, "\nInterrupted.\n"), what
