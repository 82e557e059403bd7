"""How long a run will take is what like runs took on this device, and unknown where none did."""

import json
from pathlib import Path

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.events import (
    Event,
    LossReader,
    ModelSaved,
    PhaseProgress,
    Resumed,
    SamplesMade,
    StatusChanged,
    StepLoss,
    event_to_line,
    losses_of,
    read_events,
)
from dreambooth.forecast.pace import Pace, expected_seconds, known_pace, measured, remember_pace
from dreambooth.records.workspace import Workspace

CONFIG = TrainingConfig(
    max_train_steps=40, save_interval=20, save_infer_steps=10, n_save_sample=2, save_sample_prompt="a dog",
    num_crop_variants=1, with_prior_preservation=True,
)  # fmt: skip


def loss(step: int) -> StepLoss:
    return StepLoss(step, 0.5, 0.5, None, 1e-6)


EVENTS: list[tuple[float, Event]] = [
    (0, StatusChanged("running")),
    (0, PhaseProgress("loading")),
    (8, PhaseProgress("class images", 10, 50)),
    (48, PhaseProgress("latents", 0, 4)),
    (52, PhaseProgress("samples", 0, 2)),
    (56, SamplesMade(0, ("0.png", "1.png"))),
    (56, PhaseProgress("training", 0, 40)),
    (86, loss(1)),
    (95, loss(10)),
    (105, loss(20)),
    (105, PhaseProgress("saving")),
    (112, ModelSaved(20)),
    (112, PhaseProgress("samples", 0, 2)),
    (116, SamplesMade(20, ("0.png", "1.png"))),
    (116, PhaseProgress("training", 20, 40)),
    (136, loss(40)),
]


def test_the_parts_of_a_run_are_timed_apart() -> None:
    pace = measured(EVENTS, CONFIG)
    # Steps 2 to 20 in 19 s and 21 to 40 in 20 s; the first one compiled.
    assert pace == Pace(
        step_s=1.0, loading_s=8, crop_s=1.0, class_image_step_s=0.1, sample_step_s=8 / 4 / 10, save_s=7.0
    )


def test_too_few_steps_tell_nothing_and_a_resumed_run_counts_its_own_part() -> None:
    assert measured(EVENTS[:9], CONFIG) is None
    again = [(200.0, StatusChanged("running")), (200.0, PhaseProgress("training", 40, 80))]
    assert measured([*EVENTS, *again, (201.0, loss(41))], CONFIG) is None


def test_the_time_a_run_takes_is_made_of_its_parts() -> None:
    pace = measured(EVENTS, CONFIG)
    assert pace is not None
    # Loading, 4 crops, 40 class images of 10 steps, 40 steps, 2 saves, 3 times 2 pictures of 10 steps.
    assert expected_seconds(pace, CONFIG, 4, 40) == pytest.approx(8 + 4 + 40 + 40 + 14 + 12)
    assert expected_seconds(Pace(1.0), CONFIG, 4, 0) is None, "no save was ever timed"


def test_only_like_settings_on_this_device_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    run = workspace.run("r")
    run.records.mkdir(parents=True)
    run.events_path.write_text("".join(event_to_line(event, time_s) for time_s, event in EVENTS))
    assert known_pace(workspace, CONFIG) is None
    remember_pace(workspace, run, CONFIG)
    kept = known_pace(workspace, CONFIG)
    assert kept is not None
    assert kept.step_s == 1.0
    longer = TrainingConfig(**{**CONFIG.__dict__, "max_train_steps": 800, "learning_rate": 1e-3})
    assert known_pace(workspace, longer) == kept, "rate and number of steps do not change a step's time"
    assert known_pace(workspace, TrainingConfig(**{**CONFIG.__dict__, "mixed_precision": "bf16"})) is None
    for own in ({"method": "lora"}, {"method": "lora", "lora_rank": 64}):
        lora = TrainingConfig(**{**CONFIG.__dict__, **own})
        assert known_pace(workspace, lora) is None, "a LoRA's step takes another time"
        remember_pace(workspace, run, lora)
        assert known_pace(workspace, lora) is not None
    monkeypatch.setattr("dreambooth.forecast.pace.device_name", lambda: "Another GPU")
    assert known_pace(workspace, CONFIG) is None


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": 1}', '[{"likeness": 1}]', "[" * 5000, "null"], ids=lambda text: text[:12]
)
def test_a_damaged_file_of_paces_is_no_pace(tmp_path: Path, text: str) -> None:
    (tmp_path / "paces.json").write_text(text)
    assert known_pace(Workspace(tmp_path), CONFIG) is None


def test_a_pace_that_is_no_number_is_no_pace(tmp_path: Path) -> None:
    from dreambooth.forecast.pace import likeness

    entry = {"likeness": likeness(CONFIG), "pace": {"step_s": float("nan")}}
    (tmp_path / "paces.json").write_text(json.dumps([entry]))
    assert known_pace(Workspace(tmp_path), CONFIG) is None


def test_losses_are_read_on_from_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = LossReader(path)
    assert reader.losses() == []
    lines = [event_to_line(event, 0) for event in (loss(1), loss(2), PhaseProgress("training", 2, 9), loss(3))]
    for end in (1, 3, 4):
        path.write_text("".join(lines[:end]) + lines[0][:20])
        assert reader.losses() == losses_of(read_events(path)), "a half line waits"
    with path.open("w") as file:
        file.write("".join([*lines, event_to_line(Resumed(1), 0), event_to_line(loss(2), 0)]))
    assert [one.step for one in reader.losses()] == [1, 2] == [one.step for one in losses_of(read_events(path))]
    path.unlink()
    assert reader.losses() == []
