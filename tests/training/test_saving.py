"""A model is written while the training goes on, and nothing that a save promises is lost by it."""

import dataclasses
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.errors import DreamBoothError
from dreambooth.events import Controls, Event, ModelSaved, Notice, PhaseProgress, read_events
from dreambooth.forecast import counts
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import resume, train
from dreambooth.training import saving
from dreambooth.training.saving import RunSaver
from tests.harness.trained import Run, quick_settings

WAIT_S = 60


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> TrainingConfig:
    return quick_settings(
        tiny_base_folder, photos, max_train_steps=6, num_crop_variants=1, save_interval=2, save_min_steps=2,
        checkpointing_steps=0, gauge_interval=0, train_text_encoder=True, use_ema=True,
        output_dir=str(tmp_path / "run"),
    )  # fmt: skip


class Held:
    """Holds the writing of models up until it is told to let go, and notes which were begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, end: Callable[[int], None] = lambda step: None) -> None:
        self.let_go, self.begun = threading.Event(), list[int]()
        write = RunSaver._write_model

        def held(saver: RunSaver, step: int, weights: Any) -> None:
            self.begun.append(step)
            assert self.let_go.wait(WAIT_S), "nobody let go"
            end(step)
            write(saver, step, weights)

        monkeypatch.setattr(RunSaver, "_write_model", held)


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the contents of a step folder; its settings name the folder of their run."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "args.json"
    }


def told(events: list[Event]) -> list[tuple[str, int]]:
    """Return the steps and the models that were told of, in order."""
    found: list[tuple[str, int]] = []
    for event in events:
        if isinstance(event, ModelSaved):
            found.append(("saved", event.step))
        if isinstance(event, PhaseProgress) and event.phase == "training" and ("step", event.done) not in found:
            found.append(("step", event.done))
    return found


def test_a_save_returns_to_the_loop_before_its_files_are_written(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, events = Held(monkeypatch), list[Event]()
    run, seen = RunFolder(Path(str(config.output_dir))), list[list[int]]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", 3):
            seen.append(run.steps())
            held.let_go.set()

    train(config, on_event=on_event)
    assert seen == [[]], "step 3 was made while the model of step 2 was held up"
    assert held.begun == [2, 4, 6]
    assert [step for what, step in told(events) if what == "saved"] == [2, 4, 6]
    assert told(events).index(("saved", 2)) > told(events).index(("step", 3))
    assert told(events)[-1] == ("saved", 6)


def test_a_model_written_meanwhile_is_byte_for_byte_that_of_a_save_that_was_waited_for(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without room for the copy the training waits, and says so once."""
    meanwhile, waited = list[Event](), list[Event]()
    train(config, on_event=meanwhile.append)
    monkeypatch.setattr(saving, "HOST_MARGIN_BYTES", 1 << 60)
    train(dataclasses.replace(config, output_dir=str(tmp_path / "waited")), on_event=waited.append)
    for step in ("2", "4", "6"):
        one, other = files_of(tmp_path / "run" / step), files_of(tmp_path / "waited" / step)
        assert len(one) > 10
        assert one == other
    assert not any(isinstance(event, PhaseProgress) and event.phase == "copying" for event in waited)
    notices = [[event.text for event in events if isinstance(event, Notice)] for events in (meanwhile, waited)]
    assert sum("the training pauses while models are written" in text for text in notices[1]) == 1
    assert len(notices[1]) == len(notices[0]) + 1


def test_a_second_save_waits_for_the_first(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    held, events = Held(monkeypatch), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, PhaseProgress) and event.phase == "saving" and ("step", 4) in told(events):
            assert held.let_go.is_set() or held.begun == [2]
            held.let_go.set()

    train(config, on_event=on_event)
    assert told(events).index(("saved", 2)) > told(events).index(("step", 4))
    assert told(events).index(("saved", 2)) < told(events).index(("step", 5))


@pytest.mark.parametrize("wish", ["stop", "finish_now", "lend"])
def test_whoever_ends_or_pauses_a_training_waits_for_the_model(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    held, controls, events = Held(monkeypatch), Controls(), list[Event]()
    run, is_asked = RunFolder(Path(str(config.output_dir))), list[bool]()

    def on_event(event: Event) -> None:
        events.append(event)
        if told(events)[-1:] == [("step", 3)] and not is_asked:
            is_asked.append(True)
            getattr(controls, wish).set()
        if isinstance(event, PhaseProgress) and event.phase == "saving" and ("step", 3) in told(events):
            held.let_go.set()
        if isinstance(event, PhaseProgress) and event.phase == "lent":
            assert run.steps() == [2]
            controls.lend.clear()

    train(config, controls=controls, on_event=on_event)
    assert run.steps()[:2] == ([2, 3] if wish == "stop" else [2, 4])
    assert read_state(run).status == ("stopped" if wish == "stop" else "done")


def test_a_disk_that_fills_up_meanwhile_pauses_the_run_at_the_next_step_and_it_resumes_exactly(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """R6: the state of the step is there already; the model is made again when there is room."""
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    train(whole)

    def no_room(step: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run, events = RunFolder(Path(str(config.output_dir))), list[Event]()
    with monkeypatch.context() as patch:
        held = Held(patch, no_room)

        def on_event(event: Event) -> None:
            events.append(event)
            if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", 3):
                held.let_go.set()

        with pytest.raises(DreamBoothError, match="disk is full"):
            train(config, on_event=on_event)
    assert read_state(run).status == "paused"
    assert run.steps() == []
    assert run.checkpoint_steps() == [2]
    assert ("step", 5) not in told(events)
    assert not any(isinstance(event, ModelSaved) for event in events)
    resume(run.path)
    for step in ("2", "4", "6"):
        assert files_of(run.path / step) == files_of(tmp_path / "whole" / step)
    assert [event.step for _, event in read_events(run.events_path) if isinstance(event, ModelSaved)] == [2, 4, 6]


@pytest.mark.parametrize(
    ("own", "expected"),
    [({"method": "lora", "lora_rank": 1, "lora_targets": "attention"}, [1, 2, 3]), ({}, [])],
    ids=["factors", "whole weights"],
)
def test_a_state_is_kept_as_often_as_its_size_allows(
    make: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], expected: list[int]
) -> None:
    """At one speed of writing, a LoRA's is kept every minute by the clock, and that of whole weights not yet."""
    run = make(max_train_steps=4, train_text_encoder=True, drop_final_state=True, **own)
    monkeypatch.setattr(counts, "STATE_BYTES_PER_S", 10_000)
    now_s, seen = 0.0, list[int]()
    monkeypatch.setattr(saving.time, "monotonic", lambda: now_s)

    def pass_time(event: Event) -> None:
        nonlocal now_s
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done:
            seen.extend(step for step in run.folder.checkpoint_steps() if step not in seen)
            now_s = 61.0 * event.done

    run.press = pass_time
    run.train()
    assert seen == expected
