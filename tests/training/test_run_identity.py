"""A run is the same run however its settings were given: each way to start one, resumed the way a user resumes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import DreamBoothError, RunFolderError, TrainingError
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import resume, train
from dreambooth.training import run_identity
from dreambooth.training.checkpoint import newest_checkpoint
from tests.harness.killed_runs import FIXTURE, Killed, fixture_run, killing_at, short_settings, written

# Where the runs of the fixture with absolute paths were made.
MADE_IN = "/tmp/dreambooth-fixture"


def command(*arguments: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command of the program, as a shell does."""
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "dreambooth", *map(str, arguments)], cwd=cwd or root, text=True,
        env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def killed_after_a_state(process: "subprocess.Popen[str]", run: RunFolder) -> None:
    """Kill a training once it has written an exact state, which takes a starting process some seconds."""
    while process.poll() is None and not run.checkpoint_steps():
        time.sleep(0.05)
    process.kill()
    output = process.communicate()[0]
    assert run.checkpoint_steps(), output
    assert read_state(run).status == "interrupted", "it was killed amid its steps"


def resumed(*arguments: str | Path, cwd: Path | None = None) -> str:
    """Resume a run by the command line, and return what it printed."""
    process = command("train", *arguments, cwd=cwd)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


# Runs of earlier versions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["1", "1.0"])
def test_a_run_of_the_version_before_is_resumed(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fixture_run(f"relative-{given}", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert resume(run.path).name == "5"
    whole = train(TrainingConfig.from_json(run_identity.settings_as_written(run) | {"output_dir": "whole"}))
    for file in sorted(whole.rglob("*.safetensors")):
        assert (run.path / "5" / file.relative_to(whole)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("given", ["1", "1.0"])
def test_settings_of_the_version_before_are_recognized_with_absolute_paths(given: str) -> None:
    """Their folder cannot be made on every machine, so only the comparison is made here."""
    manifest = json.loads((FIXTURE / f"absolute-{given}" / "manifest.json").read_text())
    kept = json.loads((FIXTURE / f"absolute-{given}" / "config.json").read_text())
    before = run_identity.RunIdentity.from_json(manifest)
    assert kept["concepts"][0]["instance_data_dir"] == f"{MADE_IN}/photos"
    assert run_identity.require_same_run(2, before, before, kept) == []
    with pytest.raises(TrainingError, match="settings are not those"):
        run_identity.require_same_run(2, before, before, kept | {"learning_rate": 0.5})


def test_the_settings_of_the_version_before_are_still_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fixture_run("relative-1", tmp_path)
    monkeypatch.chdir(tmp_path)
    run.config_path.write_text(json.dumps(json.loads(run.config_path.read_text()) | {"learning_rate": 0.5}))
    with pytest.raises(DreamBoothError, match="settings are not those"):
        resume(run.path)


def test_a_state_of_a_later_version_is_refused_and_not_set_aside(tmp_path: Path) -> None:
    run = fixture_run("relative-1", tmp_path)
    file = run.checkpoints / "2" / "manifest.json"
    manifest = {name: value for name, value in json.loads(file.read_text()).items() if name != "digest"}
    manifest |= {"version": run_identity.VERSION + 1, "settings": ["of another form"]}
    file.write_text(json.dumps(manifest | {"digest": run_identity.value_hash(manifest)}))
    with pytest.raises(RunFolderError, match="later version"):
        newest_checkpoint(run, pytest.fail)
    assert run.checkpoint_steps() == [2]


# One run for each way to give settings -------------------------------------------------------------------------------


@pytest.fixture
def settings(tiny_base_folder: Path) -> dict[str, Any]:
    """Return settings of a short run as JSON has them, with whole numbers where the settings are none."""
    return short_settings(tiny_base_folder) | {
        "snr_gamma": 1, "prior_loss_weight": 2, "save_guidance_scale": 3, "noise_offset": 1,
    }  # fmt: skip


def test_python_with_whole_numbers(
    settings: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    concept = Concept("photo of zwx dog", str(photos), "", "")
    config = TrainingConfig(**settings, concepts=[concept], output_dir=str(tmp_path / "run"))  # type: ignore[arg-type]
    with killing_at(monkeypatch, 3), pytest.raises(Killed):
        train(config)
    run = RunFolder(tmp_path / "run")
    assert resume(run.path).name == "8"
    whole = config.to_json() | {"output_dir": str(tmp_path / "whole")}
    last = train(TrainingConfig.from_json(whole))
    for file in sorted(last.rglob("*.safetensors")):
        assert (run.path / "8" / file.relative_to(last)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_default_recipe_of_the_starter_in_a_shell(photos: Path, tmp_path: Path, method: str) -> None:
    """The starter's card says `"snr_gamma": 1`, and the process is killed."""
    run = RunFolder(tmp_path / "run")
    asked = [
        "--instance_data_dir", photos, "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog",
        "--pretrained_model_name_or_path", "starter", "--max_train_steps", "40", "--checkpointing_steps", "1",
        "--num_class_images", "2", "--save_infer_steps", "2", "--output_dir", run.path, "--method", method,
    ]  # fmt: skip
    killed_after_a_state(command("train", *asked), run)
    assert run_identity.settings_as_written(run)["snr_gamma"] == 1
    assert f"{run.path}/40" in resumed(*asked, "--resume_from_checkpoint", "latest")
    assert read_state(run).status == "done"


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("way", ["flags", "settings file", "concepts list", "preset"])
def test_a_run_that_was_killed_is_resumed_by_its_own_command(
    method: str, way: str, settings: dict[str, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, settings = RunFolder(tmp_path / "run"), settings | {"method": method}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    words = ["--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog"]
    concept = {"instance_prompt": "photo of zwx dog", "instance_data_dir": str(photos), "class_prompt": ""}
    asked = {
        "flags": [*words, "--class_prompt", "", *flags],
        "settings file": [*words, "--config", written(tmp_path / "settings.json", settings)],
        "concepts list": ["--concepts_list", written(tmp_path / "concepts.json", [concept]), *flags],
        "preset": [
            *words, "--class_prompt", "photo of dog", "--preset", "full_precision", *flags, "--num_class_images", "2",
            "--save_infer_steps", "2", "--num_probe_images", "0", "--n_save_sample", "1",
        ],
    }[way]  # fmt: skip
    asked = ["train", *asked, "--output_dir", str(run.path)]
    with killing_at(monkeypatch, 3), pytest.raises(Killed):
        main(asked)
    assert run.checkpoint_steps() == [2]
    assert main([*asked, "--resume_from_checkpoint", "latest"]) == 0
    assert run.steps()[-1] == 8
