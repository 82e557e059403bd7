"""What a kill, a disk or a hand makes of the files that are read: made by hypothesis, and tried on each reader."""

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dreambooth import events as events_module
from dreambooth.config.concepts import Concept, load_concepts_list, read_concepts
from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig, load_config
from dreambooth.data.focus import FOCUS_FILE, read_focus
from dreambooth.data.photo_records import RECORDS_FILE
from dreambooth.data.photo_sets import TOGETHER_FILE, WORDS_FILE, PhotoSet
from dreambooth.errors import BaseModelError, DreamBoothError, TrainingError
from dreambooth.events import losses_of, read_events
from dreambooth.forecast.offers import class_images_to_make
from dreambooth.forecast.pace import known_pace
from dreambooth.models.base import read_card
from dreambooth.records.runlog import RunState, as_text, read_state
from dreambooth.records.storage import CHOICES, plan
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.scoring.records import read_scores
from dreambooth.training.checkpoint import verified
from dreambooth.training.finishing import read_finish

NAMES = [info.name for info in describe(TrainingConfig)] + ["concepts", "instance_prompt", "unknown"]
KINDS = ["PhaseProgress", "StepLoss", "SamplesMade", "ModelSaved", "Notice", "StatusChanged", "Resumed", "Other", ""]
EVENT_FIELDS = ["phase", "done", "total", "step", "loss", "files", "text", "level", "status", "what", "prior_loss"]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from([10**400, -(10**30), 2**63, "training", "running", "fp16", "\ud800", "a\0b", "x" * 3000, 1e308]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
settings_like = values | st.dictionaries(st.sampled_from(NAMES), values, max_size=8)
concept_like = st.dictionaries(
    st.sampled_from(["instance_prompt", "instance_data_dir", "class_prompt", "class_data_dir", "x"]), values, max_size=5
)
event_like = st.dictionaries(
    st.sampled_from(["event", "time_s", *EVENT_FIELDS]), values, max_size=9
) | st.fixed_dictionaries(
    {"event": st.sampled_from(KINDS), "time_s": st.floats() | values},
    optional={name: values for name in EVENT_FIELDS},
)
state_like = values | st.dictionaries(st.sampled_from(sorted(RunState.__dataclass_fields__)), values, max_size=9)
card_like = values | st.dictionaries(
    st.sampled_from(["native_px", "is_toy", "notice", "recipe", "x"]), values | settings_like, max_size=5
)
scores_like = values | st.fixed_dictionaries(
    {"examiner": values, "ceiling": values, "steps": st.lists(
        st.dictionaries(st.sampled_from(["step", "fidelity", "prompt", "drift", "measures"]), values), max_size=3
    )}
)  # fmt: skip
words_like = values | st.dictionaries(
    st.sampled_from(["kind", "identifier", "class_word", "instance_prompt", "class_prompt", "x"]), values, max_size=5
)
focus_like = st.fixed_dictionaries({"x": scalars, "y": scalars, "zoom": scalars})
manifest_like = values | st.fixed_dictionaries(
    {"digest": values, "step": values, "settings": values, "photos": values, "machine": values,
     "files": values | st.dictionaries(st.text(max_size=5), st.fixed_dictionaries({"bytes": values, "sha256": values}))}
)  # fmt: skip


def as_bytes(content: Any) -> bytes:
    """Return the value as JSON, one time in four with bytes changed or the end missing."""
    text = json.dumps(content).encode()
    rng = random.Random(text)
    if rng.random() < 0.25 and text:
        damaged = bytearray(text[: rng.randrange(len(text) + 1)])
        for _ in range(min(3, len(damaged))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    return text


def fuzzed(num_cases: int) -> Callable[[Any], Any]:
    """Return the settings under which a test is tried so many times, the same ones every time."""
    return settings(
        max_examples=num_cases, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


def try_settings(content: Any, folder: Path) -> None:
    """Read settings from a value and from a file of it; what is accepted is checked without a crash too."""
    path = folder / "config.json"
    path.write_bytes(as_bytes(content))
    for read in (lambda: TrainingConfig.from_json(content), lambda: load_config(path)):
        with contextlib.suppress(DreamBoothError):
            config = read()
            json.dumps(config.to_json())
            config.checked()


def try_concepts(content: Any, folder: Path) -> None:
    """Read a concepts_list from a value and from a file of it."""
    path = folder / "concepts.json"
    path.write_bytes(as_bytes(content))
    for read in (lambda: read_concepts(content), lambda: load_concepts_list(path)):
        with contextlib.suppress(DreamBoothError):
            read()


def try_events(content: list[Any], folder: Path) -> None:
    """Read events from lines of which some are damaged, and do with them what the page does."""
    path = folder / "events.jsonl"
    path.write_bytes(b"\n".join(as_bytes(line) for line in content) + b"\n")
    found = read_events(path)
    assert len(found) <= len(path.read_text("utf-8", errors="replace").splitlines())
    assert all(isinstance(loss.step, int) for loss in losses_of(found))
    for time_s, event in found:
        assert isinstance(time_s, float)
        as_text(event)
        events_module.event_to_line(event, time_s)


def try_state(content: Any, folder: Path) -> None:
    """Read a run's state, which is shown as text and compared as numbers."""
    run = RunFolder(folder / "run")
    run.records.mkdir(parents=True, exist_ok=True)
    run.state_path.write_bytes(as_bytes(content))
    state = read_state(run)
    assert state.step + state.total_steps + state.phase_done + state.phase_total + state.owner_pid is not None
    assert isinstance(state.status + state.phase, str)
    assert state.error is None or state.error.what is not None


def try_card(content: Any, folder: Path) -> None:
    """Read a base's card."""
    folder = folder / "base"
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_bytes(as_bytes(content))
    with contextlib.suppress(BaseModelError):
        assert read_card(str(folder)).native_px >= 16


def try_scores(content: Any, folder: Path) -> None:
    """Read a run's scores, and what the page makes of them."""
    run = RunFolder(folder / "run")
    run.records.mkdir(parents=True, exist_ok=True)
    run.scores_path.write_bytes(as_bytes(content))
    scores = read_scores(run)
    if scores is not None:
        pick = scores.recommended([1, 2])
        assert pick is None or isinstance(pick.why, str)


def try_words(content: Any, folder: Path) -> None:
    """Read all that lies beside the photos of a set; every word is text that can be shown and written."""
    kept = PhotoSet(folder / "a-set")
    kept.folder.mkdir(exist_ok=True)
    for name in (WORDS_FILE, RECORDS_FILE, TOGETHER_FILE):
        (kept.folder / name).write_bytes(as_bytes(content))
    assert all(isinstance(word, str) and word.encode() is not None for word in vars(kept.words()).values())
    assert kept.photos() == []
    assert kept.together() == [kept]
    assert kept.shown_name("a.png").encode() is not None


def try_state_of_a_step(content: Any, folder: Path) -> None:
    """Read a state's manifest: what is none is told as a damaged state."""
    state = folder / "4"
    state.mkdir(exist_ok=True)
    (state / "manifest.json").write_bytes(as_bytes(content))
    with pytest.raises(TrainingError, match="is damaged"):
        verified(state)


def try_focus(content: Any, folder: Path) -> None:
    """Read the squares of a folder's photos; each lies in its photo."""
    (folder / FOCUS_FILE).write_bytes(as_bytes(content))
    with contextlib.suppress(DreamBoothError):
        assert all(0 <= focus.x <= 1 for focus in read_focus(folder).values())


def try_notes(content: Any, folder: Path) -> None:
    """Read the data folder's own notes: how fast runs were, what class images are of, where a run ends early."""
    workspace = Workspace(folder / "data")
    config = TrainingConfig(concepts=(Concept("a", "b", "c"),), with_prior_preservation=True, num_class_images=3)
    pictures = workspace.class_images_dir / "0123456789abcdef"
    pictures.mkdir(exist_ok=True)
    for note in (workspace.data_dir / "paces.json", pictures / "info.json", folder / "finish.json"):
        note.write_bytes(as_bytes(content))
    assert class_images_to_make(workspace, config) == 3
    plan(workspace, CHOICES)
    known_pace(workspace, config)
    read_finish(folder / "finish.json")


READERS: dict[str, tuple[Callable[[Any, Path], None], Any]] = {
    "settings": (try_settings, settings_like),
    "concepts": (try_concepts, values | st.lists(concept_like, max_size=4)),
    "events": (try_events, st.lists(event_like, max_size=6)),
    "state": (try_state, state_like),
    "card": (try_card, card_like),
    "scores": (try_scores, scores_like),
    "words": (try_words, words_like),
    "manifest": (try_state_of_a_step, manifest_like),
    "focus": (try_focus, values | st.dictionaries(st.text(max_size=5), focus_like, max_size=3)),
    "notes": (try_notes, values | st.dictionaries(st.sampled_from(["prompt", "start", "end", "pace"]), values)),
}


def try_reader(name: str, folder: Path, num_cases: int) -> int:
    """Try the reader on so many made-up contents; returns how many were tried."""
    attempt, contents = READERS[name]
    tried = 0

    @fuzzed(num_cases)
    @given(contents)
    def case(content: Any) -> None:
        nonlocal tried
        tried += 1
        attempt(content, folder)

    case()
    return tried
