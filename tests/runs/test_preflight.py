"""A trial before a run: it measures, and leaves nothing behind."""

import datetime
import os
import shutil
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import sweep_unfinished
from dreambooth.errors import ConfigError
from dreambooth.events import Controls, Event, PhaseProgress
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.preflight import preflight


def test_a_preflight_measures_steps_samples_and_saves_and_leaves_nothing(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path / "data")
    own_class_dir = tmp_path / "class"
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), resolution=32, max_train_steps=500, save_interval=200,
        concepts=(Concept("photo of zwx dog", str(photos), "photo of dog", str(own_class_dir)),), learning_rate=1e-3,
        with_prior_preservation=True, num_class_images=12, train_text_encoder=True, train_batch_size=1,
        save_sample_prompt="photo of zwx dog", n_save_sample=1, num_crop_variants=4,
    )  # fmt: skip
    found = preflight(config, workspace=workspace, manager=ModelManager("cpu"), token=None)
    assert found is not None
    assert found.peak_bytes > 0
    assert 0 < found.seconds_per_step < 60
    assert found.seconds_per_sampling > 0
    assert found.seconds_per_model > 0
    assert found.seconds_per_state > 0
    assert found.num_steps == 500
    assert found.disk.num_saves == 3
    # What the run will write, measured: fp16 weights; fp32 weights and two moments.
    assert found.disk.state_bytes > 4 * found.disk.model_bytes > 0
    # Ten probe pictures in seven batches, each of 20 denoising steps, against one sample.
    assert found.seconds_per_scoring > found.seconds_per_sampling
    assert found.seconds > 500 * found.seconds_per_step + 4 * (found.seconds_per_sampling + found.seconds_per_scoring)
    assert found.finish(datetime.datetime(2026, 1, 1)) > datetime.datetime(2026, 1, 1)
    assert [path for path in workspace.data_dir.rglob("*") if path.is_file() or path.name.startswith(".")] == []
    assert not own_class_dir.exists()


def test_a_preflight_is_stopped_like_a_run(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    controls = Controls()
    controls.stop.set()
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), resolution=32, max_train_steps=500,
        concepts=(Concept("photo of zwx dog", str(photos)),), num_crop_variants=64,
    )  # fmt: skip
    workspace = Workspace(tmp_path / "data")
    assert preflight(config, workspace=workspace, manager=ModelManager("cpu"), token=None, controls=controls) is None

    def stop_at_first_step(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "training":
            controls.stop.set()

    controls = Controls()
    found = preflight(
        config, workspace=workspace, manager=ModelManager("cpu"), token=None, controls=controls,
        report=stop_at_first_step,
    )  # fmt: skip
    assert found is None
    with pytest.raises(ConfigError, match="instance_data_dir"):
        preflight(TrainingConfig(), workspace=workspace, manager=ModelManager("cpu"), token=None)


def test_preflight_takes_the_arguments_of_train_and_says_what_a_run_takes(
    tiny_base_folder: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DREAMBOOTH_HOME", str(tmp_path / "data"))
    status = main([
        "preflight", "--preset", "auto", "--pretrained_model_name_or_path", str(tiny_base_folder),
        "--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog",
        "--resolution", "32", "--num_class_images", "2", "--mixed_precision", "no", "--n_save_sample", "1",
    ])  # fmt: skip
    told = capsys.readouterr().out
    assert status == 0
    for word in (
        "Memory:",
        "Time:",
        "Disk:",
        "800 steps take",
        "Presets that fit cards",
        "8 GB: `recommended` at 32 px",
    ):
        assert word in told


def test_what_a_killed_preflight_leaves_is_swept_by_the_next_run(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Ends the trial where it stands."""

    def die(*arguments: object, **options: object) -> None:
        raise Killed

    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), resolution=32,
        concepts=(Concept("photo of zwx dog", str(photos)),), num_crop_variants=1,
    )  # fmt: skip
    workspace = Workspace(tmp_path / "data")
    monkeypatch.setattr("dreambooth.training.preparation.prepare", die)
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
    with pytest.raises(Killed):
        preflight(config, workspace=workspace, manager=ModelManager("cpu"), token=None)
    monkeypatch.undo()
    (left,) = workspace.data_dir.iterdir()
    left.rename(left.with_name(left.name.replace(str(os.getpid()), "4194304", 1)))  # no process has that number
    sweep_unfinished(workspace.data_dir)
    assert [*workspace.data_dir.iterdir()] == []
