"""A run's records when they cannot be written: too many files open, a full disk, a folder in a file's place."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.events import Notice, PhaseProgress, StatusChanged, read_events
from dreambooth.records.runlog import RunLog, read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import train


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_cannot_be_written_is_written_later_and_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    log = RunLog(run, 10)
    log(StatusChanged("running"))
    with no_more_files():
        log(Notice("first"))
        log.bug(ValueError("second"))
        log(PhaseProgress("training", 3, 10))
    log(Notice("third"))
    told = [event for _, event in read_events(run.events_path)]
    assert told == [
        StatusChanged("running"), Notice("first"), PhaseProgress("training", 3, 10), Notice("third"),
    ]  # fmt: skip
    text = run.log_path.read_text("utf-8")
    assert text.index("first") < text.index("second") < text.index("third")
    assert (read_state(run).step, read_state(run).status) == (3, "interrupted")


def test_a_line_is_appended_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes the beginning of a line; what is written when there is room again is not spoilt by it."""
    run = RunFolder(tmp_path / "run")
    log = RunLog(run, 10)
    log(Notice("before"))
    begun = run.events_path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (begun + 10, hard))
    try:
        log(Notice("while it is full"))
        assert run.events_path.stat().st_size == begun
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log(Notice("after"))
    texts = [event.text for _, event in read_events(run.events_path) if isinstance(event, Notice)]
    assert texts == ["before", "while it is full", "after"]


def test_a_log_that_can_never_be_written_ends_no_run(tmp_path: Path, tiny_base_folder: Path, photos: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for path in (run.log_path, run.events_path):
        path.mkdir(parents=True)
    settings = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), concepts=(Concept("photo of zwx dog", str(photos)),),
        output_dir=str(run.path), resolution=32, max_train_steps=2, num_crop_variants=1, n_save_sample=1,
        save_infer_steps=1, seed=1,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        # A new run's records are cleared first; these two folders stay in their files' place.
        patch.setattr(RunFolder, "forget_failed_start", lambda run: None)
        assert train(settings).name == "2"
    assert read_state(run).status == "done"
