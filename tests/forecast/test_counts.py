"""Steps, saves and pictures of a run are counted once: the plan, the trial, the pace and the run itself agree."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.counts import num_saves_before_last, num_saves_left, num_steps_of
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import Device
from dreambooth.events import ModelSaved, SamplesMade, read_events
from dreambooth.forecast import disk, offers
from dreambooth.forecast.counts import (
    adapted_modules,
    counts_of_base,
    counts_of_shape,
    model_bytes,
    num_learning,
    state_bytes,
    state_interval_s,
)
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.pace import Pace, expected_seconds
from dreambooth.forecast.shape import SD15_SHAPE, read_shape
from dreambooth.models.adapter import places_of
from dreambooth.models.base import load_base
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.preflight import preflight
from dreambooth.runs.run import train

LORA = TrainingConfig(method="lora", train_text_encoder=True)
PROCESSOR = Device("cpu", "two cores", 16 << 30, 12 << 30)


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> Callable[..., TrainingConfig]:
    """Return what makes settings that count epochs, of three photos."""

    def made(**changes: Any) -> TrainingConfig:
        values: dict[str, Any] = {
            "pretrained_model_name_or_path": str(tiny_base_folder), "output_dir": str(tmp_path / "run"),
            "concepts": (Concept("photo of zwx dog", str(photos), "photo of dog"),), "resolution": 32, "seed": 1,
            "num_train_epochs": 2, "train_batch_size": 1, "learning_rate": 1e-3, "num_crop_variants": 1,
            "save_interval": 4, "save_infer_steps": 2, "num_probe_images": 0, "n_save_sample": 1,
            "save_sample_prompt": "photo of zwx dog\n \nzwx dog on the beach", "gauge_interval": 0,
        }  # fmt: skip
        return TrainingConfig(**(values | changes)).checked()

    return made


@pytest.mark.parametrize(
    ("changes", "num_photos", "num_processes", "expected"),
    [
        ({}, 5, 1, 10),
        ({"with_prior_preservation": True, "num_class_images": 50}, 5, 1, 100),
        ({"with_prior_preservation": True, "num_class_images": 4}, 5, 1, 10),
        ({"num_class_images": 50, "train_batch_size": 4}, 5, 1, 4),
        ({"with_prior_preservation": True, "num_class_images": 50, "train_batch_size": 4}, 5, 2, 14),
        ({"train_batch_size": 2, "gradient_accumulation_steps": 2}, 7, 3, 2),
        ({"max_train_steps": 7}, 5, 2, 7),
    ],
)
def test_epochs_become_steps(
    config: Callable[..., TrainingConfig], changes: dict[str, Any], num_photos: int, num_processes: int, expected: int
) -> None:
    assert num_steps_of(config(**changes), num_photos, num_processes) == expected


def test_every_concept_has_class_images_of_its_own(config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    one = config(with_prior_preservation=True, num_class_images=50)
    both = dataclasses.replace(one, concepts=(*one.concepts, Concept("photo of sks cat", str(tmp_path), "cat")))
    assert num_steps_of(both, 12) == 2 * num_steps_of(one, 5) == 200


@pytest.mark.parametrize("save_min_steps", [0, 1, 3, 7, 12])
def test_saves_are_those_that_the_loop_would_make(save_min_steps: int) -> None:
    """Counted by hand at every step, against the closed form; the last step is saved beside them."""
    config = TrainingConfig(save_interval=3, save_min_steps=save_min_steps)
    for num_steps in range(1, 15):
        due = [step for step in range(1, num_steps) if step % 3 == 0 and step >= save_min_steps]
        for step in range(num_steps):
            left = [one for one in due if one > step]
            assert num_saves_before_last(config, step, num_steps) == len(left)
            assert num_saves_left(config, step, num_steps) == len(left) + 1
        assert num_saves_left(config, num_steps, num_steps) == 0


@pytest.mark.parametrize(
    ("changes", "num_steps"),
    [({}, 6), ({"with_prior_preservation": True, "num_class_images": 5}, 10)],
    ids=["photos", "class images that are still to be made"],
)
def test_plan_trial_pace_and_run_count_alike(
    config: Callable[..., TrainingConfig],
    changes: dict[str, Any],
    num_steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workspace, settings = Workspace(tmp_path / "data"), config(**changes)
    monkeypatch.setenv("DREAMBOOTH_HOME", str(workspace.data_dir))
    planned = offers.forecast(workspace, settings, 3, PROCESSOR)
    tried = preflight(settings, workspace=workspace, manager=ModelManager("cpu"), token=None)
    assert tried is not None

    refused_by: list[disk.DiskNeed] = []
    monkeypatch.setattr(
        "dreambooth.training.preparation.refuse_short_disk", lambda need, *_, **__: refused_by.append(need)
    )
    train(settings)
    run = RunFolder(Path(str(settings.output_dir)))
    events = [event for _, event in read_events(run.events_path)]
    saves = sum(isinstance(event, ModelSaved) for event in events)
    pictures = sum(len(event.files) for event in events if isinstance(event, SamplesMade))

    assert read_state(run).total_steps == num_steps == planned.config.max_train_steps == tried.num_steps
    assert [saves] == [need.num_saves for need in refused_by] == [tried.disk.num_saves] == [-(-num_steps // 4)]
    assert pictures == (saves + 1) * settings.num_sample_pictures == (saves + 1) * 2
    assert refused_by[0].picture_bytes == tried.disk.picture_bytes == pictures * 2 * 32**2
    # The pace counts its parts by the same numbers: each one is timed with a power of ten seconds of its own.
    pace = Pace(step_s=1.0, save_s=1e3, sample_step_s=1e6, class_image_step_s=0.0)
    expected = expected_seconds(pace, planned.config, 3, 0)
    assert expected == num_steps + 1e3 * saves + 1e6 * pictures * settings.save_infer_steps


def test_a_plan_knows_by_the_steps_of_its_epochs_whether_models_are_saved_on_the_way() -> None:
    """Without prior preservation five photos are no hundred steps, however many class images the settings name."""
    config = TrainingConfig(num_train_epochs=1, num_class_images=100, save_interval=50, train_text_encoder=True)
    steps = num_steps_of(dataclasses.replace(config, train_batch_size=1), 5)
    by_epochs, by_number, unknown = (
        memory_need(one, SD15_SHAPE, "cpu", known).peak_bytes
        for one, known in ((config, steps), (dataclasses.replace(config, max_train_steps=5), None), (config, None))
    )
    assert by_epochs == by_number
    assert unknown > by_number, "what is not known yet may need the copy that models are saved from"


@pytest.mark.reliability
def test_several_processes_count_alike(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    """Two processes, five class images that are not there yet: three steps an epoch, in the trial and in the run."""
    flags = [
        "--pretrained_model_name_or_path", str(tiny_base_folder), "--instance_data_dir", str(photos),
        "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog", "--with_prior_preservation",
        "--num_class_images", "5", "--num_train_epochs", "2", "--train_batch_size", "1", "--resolution", "32",
        "--learning_rate", "1e-3", "--num_crop_variants", "1", "--save_infer_steps", "2", "--save_interval", "4",
        "--seed", "5", "--gauge_interval", "0",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    done = subprocess.run(
        [*launch, "tests.harness.tried_and_trained", *flags, "--output_dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.findall(r"^(\d+) steps take", done.stdout, re.MULTILINE) == ["6"]
    run = RunFolder(tmp_path / "run")
    assert read_state(run).total_steps == 6
    assert run.steps() == [4, 6]


@pytest.mark.parametrize(
    ("targets", "text_encoder", "num_tensors", "num_per_rank"),
    [
        ("attention", False, 384, 199_296),
        ("linear", False, 576, 423_936),
        ("linear", True, 792, 768**2),
        ("all", True, 1050, 1_050_816 + 165_888),
    ],
)
def test_the_modules_of_a_lora_are_known_from_configuration_alone(
    targets: Any, text_encoder: bool, num_tensors: int, num_per_rank: int
) -> None:
    """The counts of sd-scripts for SD 1.5: down, up and alpha of each module, and their numbers for each rank."""
    config = TrainingConfig(method="lora", lora_targets=targets, lora_rank=8, train_text_encoder=text_encoder)
    counts = counts_of_shape(SD15_SHAPE)
    names = [module.name for module in adapted_modules(config, counts)]
    assert 3 * len(names) == num_tensors
    assert len(set(names)) == len(names)
    assert names == sorted(names)
    assert num_learning(config, counts) == 8 * num_per_rank


@pytest.mark.parametrize("targets", ["attention", "linear", "all"])
def test_configuration_names_and_counts_the_layers_that_a_base_has(tiny_base_folder: Path, targets: Any) -> None:
    for name in ("starter", str(tiny_base_folder)):
        base, config = load_base(name), dataclasses.replace(LORA, lora_targets=targets)
        by_shape, by_base = counts_of_shape(read_shape(name)), counts_of_base(base)
        assert adapted_modules(config, by_shape) == places_of(base, targets, ["unet", "text_encoder"])
        assert num_learning(config, by_shape) == num_learning(config, by_base) > 0


def test_a_lora_saves_its_factors_and_keeps_them_with_their_moments() -> None:
    counts = counts_of_shape(SD15_SHAPE)
    assert model_bytes(LORA, counts) == pytest.approx(2 * 16 * 768**2, rel=0.01)
    assert state_bytes(LORA, counts) == pytest.approx(12 * 16 * 768**2, rel=0.01)
    averaged = dataclasses.replace(LORA, use_ema=True, save_precision="fp32")
    assert model_bytes(averaged, counts) == pytest.approx(4 * 16 * 768**2, rel=0.01)
    assert state_bytes(averaged, counts) == pytest.approx(16 * 16 * 768**2, rel=0.01)
    whole = TrainingConfig(train_text_encoder=True)
    assert model_bytes(whole, counts) > 100 * model_bytes(LORA, counts)


def test_small_states_are_kept_every_minute_and_those_of_a_model_every_ten() -> None:
    counts = counts_of_shape(SD15_SHAPE)
    states = [dataclasses.replace(LORA, lora_rank=rank) for rank in (4, 16, 64, 128)]
    intervals = [state_interval_s(state_bytes(config, counts)) for config in states]
    assert intervals[:2] == [60, 60]
    assert 60 < intervals[2] < intervals[3] < 600
    assert state_interval_s(state_bytes(TrainingConfig(train_text_encoder=True), counts)) == 600
