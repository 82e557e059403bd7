"""Files that a kill, a disk or a hand has changed: every reader of settings, events, states and cards answers in words.

Hypothesis makes the cases; a few hundred at every push, 20,000 in tests/reliability/test_corpus_readers.py.
"""

from pathlib import Path
from typing import Any

import pytest

from dreambooth import events as events_module
from dreambooth.events import Event, ModelSaved, Notice, PhaseProgress, SamplesMade, StepLoss, read_events
from tests.harness.damaged_files import READERS, try_reader

NO_JSON = [b"", b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"null", b"1" * 5000, b"NaN"]
NUM_CASES = 100  # of each reader


@pytest.mark.parametrize("reader", READERS)
def test_readers_answer_damaged_files_in_their_own_words(reader: str, tmp_path: Path) -> None:
    """S13: made-up settings, concepts, events, states and cards: nothing but DreamBoothError comes out."""
    assert try_reader(reader, tmp_path, NUM_CASES) >= NUM_CASES


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("content", NO_JSON)
def test_readers_answer_files_that_are_no_json(reader: str, content: bytes, tmp_path: Path, monkeypatch: Any) -> None:
    """S13: empty, nested 200,000 deep, not UTF-8, a number of 5,000 digits."""
    monkeypatch.setattr("tests.harness.damaged_files.as_bytes", lambda *_: content)
    READERS[reader][0]([{}] if reader in ("events", "concepts") else {}, tmp_path)


def test_whole_events_are_read_as_they_were_written(tmp_path: Path) -> None:
    """S13, control: the strict reader takes everything the writer writes, NaN losses included."""
    written: list[Event] = [
        PhaseProgress("training", 3, 10), StepLoss(1, 0.5, 0.25, None, 1e-6), StepLoss(2, 1, 1, 0, 0),
        SamplesMade(0, ("0.png", "1.png")), ModelSaved(200), Notice("\u00e9", "warning"),
        events_module.StatusChanged("failed", "a", "b", "c"), events_module.Resumed(4),
    ]  # fmt: skip
    path = tmp_path / "events.jsonl"
    path.write_text("".join(events_module.event_to_line(event, 1.5) for event in written))
    assert read_events(path) == [(1.5, event) for event in written]
    path.write_text(events_module.event_to_line(StepLoss(1, float("nan"), 0.0, None, 0.0), 1.5))
    assert len(read_events(path)) == 1
