"""What a resume may change, and where it finds a run's files: from a shell, and with two processes at once."""

import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError, DreamBoothError, RunFolderError
from dreambooth.events import Controls, Event, PhaseProgress, Resumed, read_events
from dreambooth.export.archive import zip_model
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.run import resume, train
from tests.harness.killed_runs import Killed, fixture_run, killing_at, short_settings, written

WORDS = ("--instance_prompt", "photo of zwx dog")


@pytest.fixture
def flags(tiny_base_folder: Path) -> list[str]:
    """Return the flags of a short run, without its photos and its folder."""
    return [*WORDS, *(f"--{name}={value}" for name, value in short_settings(tiny_base_folder).items())]


def killed_run(monkeypatch: pytest.MonkeyPatch, flags: list[str], step: int = 5) -> None:
    with killing_at(monkeypatch, step), pytest.raises(Killed):
        main(["train", *flags])


def resumed(run: RunFolder, *flags: str) -> int:
    return main(["train", "--resume_from_checkpoint", str(run.path), *flags])


# Places --------------------------------------------------------------------------------------------------------------


def test_a_run_begun_with_relative_paths_is_resumed_from_another_folder(
    flags: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    killed_run(monkeypatch, [*flags, "--instance_data_dir", "photos", "--output_dir", "run"])
    run = RunFolder(tmp_path / "run")
    assert json.loads(run.config_path.read_text())["concepts"][0]["instance_data_dir"] == str(photos)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["train", "--resume_from_checkpoint", "../run", *flags, "--instance_data_dir", str(photos)]) == 0
    assert run.steps() == [8]
    archive = zip_model(run.path / "8", tmp_path / "model.zip")
    with zipfile.ZipFile(archive) as opened:
        assert str(tmp_path) not in opened.read("args.json").decode()
        assert json.loads(opened.read("args.json"))["max_train_steps"] == 8


def test_photos_that_moved_are_named_anew_and_others_are_refused(
    flags: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run, moved, others = RunFolder(tmp_path / "run"), tmp_path / "moved", tmp_path / "others"
    killed_run(monkeypatch, [*flags, "--instance_data_dir", str(photos), "--output_dir", str(run.path)])
    photos.rename(moved)
    assert resumed(run) == 1
    assert (
        f'instance_data_dir: "{photos}" is gone: give the folder where the photos are now.' in capsys.readouterr().err
    )
    shutil.copytree(moved, others)
    shutil.copy(others / "0.png", others / "1.png")
    before = run.config_path.read_bytes()
    assert resumed(run, "--instance_data_dir", str(others)) == 1
    assert "The photos or class images are not those" in capsys.readouterr().err
    assert run.config_path.read_bytes() == before
    assert resumed(run, "--instance_data_dir", str(moved)) == 0
    assert json.loads(run.config_path.read_text())["concepts"][0]["instance_data_dir"] == str(moved)


def test_class_images_are_not_made_among_the_photos_of_a_resumed_run(
    flags: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = RunFolder(tmp_path / "run")
    prior = ["--with_prior_preservation", "--class_prompt", "photo of dog", "--num_class_images", "4"]
    own = [*flags, *prior, "--save_infer_steps", "1", "--instance_data_dir", str(photos)]
    killed_run(monkeypatch, [*own, "--output_dir", str(run.path)])
    there = sorted(photos.iterdir())
    assert resumed(run, "--class_data_dir", str(photos)) == 1
    assert "also holds the photos of the subject" in capsys.readouterr().err
    assert resumed(run, "--class_data_dir", str(there[0])) == 1
    assert f'class_data_dir: is a file ("{there[0]}")' in capsys.readouterr().err
    assert sorted(photos.iterdir()) == there


def test_a_folder_that_moved_with_run_photos_and_base_is_found(
    photos: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    photos.rename(project / "photos")
    shutil.copytree(tiny_base_folder, project / "base")
    monkeypatch.chdir(project)
    settings = short_settings(Path("base"))
    killed_run(
        monkeypatch,
        [*WORDS, *(f"--{name}={value}" for name, value in settings.items()), "--instance_data_dir", "photos",
         "--output_dir", "runs/dog"],
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    project.rename(tmp_path / "renamed")
    run = RunFolder(tmp_path / "renamed" / "runs" / "dog")
    assert resumed(run) == 0
    kept = json.loads(run.config_path.read_text())
    assert kept["pretrained_model_name_or_path"] == str(tmp_path / "renamed" / "base")
    assert kept["output_dir"] == str(run.path)


@pytest.mark.parametrize("name", ["relative-1", "absolute-1.0"])
def test_a_run_of_the_version_before_is_resumed_where_its_files_are_now(name: str, tmp_path: Path) -> None:
    run = fixture_run(name, tmp_path / "any" / "where")
    places = ("--instance_data_dir", str(tmp_path / "any/where/photos"))
    assert resumed(run, *places, "--pretrained_model_name_or_path", str(tmp_path / "any/where/base")) == 0
    assert run.steps() == [5]


# Settings ------------------------------------------------------------------------------------------------------------


def test_what_changes_no_weight_may_change_and_nothing_else(
    flags: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = RunFolder(tmp_path / "run")
    own = [*flags, "--instance_data_dir", str(photos), "--output_dir", str(run.path), "--save_interval", "2"]
    killed_run(monkeypatch, own)
    assert run.steps() == [2, 4]
    other = written(tmp_path / "other.json", {"adam_beta1": 0.5})
    assert resumed(run, "--config", other) == 1
    assert "adam_beta1: is 0.9 in the run, not 0.5" in capsys.readouterr().err
    assert resumed(run, "--preset", "minimum") == 1
    assert "mixed_precision: is no in the run, not fp16" in capsys.readouterr().err
    assert resumed(run, "--instance_prompt", "photo of another dog") == 1
    assert "concepts: is" in capsys.readouterr().err
    assert resumed(run, "--save_total_limit", "1", "--log_interval", "1", "--config", str(run.config_path)) == 0
    assert run.steps() == [8]
    assert "save_total_limit is 1 from here on; it was not set." in run.log_path.read_text()
    assert json.loads(run.config_path.read_text())["save_total_limit"] == 1


def test_python_may_change_the_same(
    photos: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    concepts = (Concept("photo of zwx dog", str(photos)),)
    config = TrainingConfig(**short_settings(tiny_base_folder), concepts=concepts, output_dir=str(run.path))
    with killing_at(monkeypatch, 5), pytest.raises(Killed):
        train(config)
    for changes in ({"learning_rate": 0.5}, {"nonsense": 1}, {"save_total_limit": 0}):
        with pytest.raises(ConfigError, match=next(iter(changes))):
            resume(run.path, changes=changes)
    assert resume(run.path, changes={"checkpoints_total_limit": 1}).name == "8"


def test_a_class_image_that_was_cut_short_is_made_again(
    flags: list[str], photos: Path, tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    prior = ["--with_prior_preservation", "--class_prompt", "photo of dog", "--num_class_images", "5"]
    own = [*flags, *prior, "--save_infer_steps", "2", "--instance_data_dir", str(photos), "--output_dir", str(run.path)]
    killed_run(monkeypatch, own)
    pictures = sorted(own_home.glob("class_images/*/*.png"))
    contents = [picture.read_bytes() for picture in pictures]
    pictures[1].write_bytes(contents[1][:100])
    assert resumed(run) == 0
    assert [picture.read_bytes() for picture in sorted(own_home.glob("class_images/*/*.png"))] == contents


# The state -----------------------------------------------------------------------------------------------------------


def test_a_state_that_is_named_is_the_one_that_is_taken(
    flags: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = RunFolder(tmp_path / "run")
    own = [*flags, "--instance_data_dir", str(photos), "--checkpoints_total_limit", "3"]
    killed_run(monkeypatch, [*own, "--output_dir", str(run.path)], step=7)
    assert run.checkpoint_steps() == [2, 4, 6]
    assert main(["train", "--resume_from_checkpoint", str(run.checkpoints / "5")]) == 1
    assert f'"{run.name}" has no exact state of step 5.\nThe steps with one: 2, 4, 6.' in capsys.readouterr().err
    assert read_state(run).status == "interrupted", "a mistake in the command changes nothing"
    assert main(["train", "--resume_from_checkpoint", str(run.checkpoints / "2")]) == 0
    assert Resumed(2) in [event for _, event in read_events(run.events_path)]
    assert "goes back to step 2; the exact states after it (4, 6) were removed" in run.log_path.read_text()
    assert main(["train", *own, "--output_dir", str(tmp_path / "whole")]) == 0
    for file in sorted((tmp_path / "whole" / "8").rglob("*.safetensors")):
        assert (run.path / "8" / file.relative_to(tmp_path / "whole" / "8")).read_bytes() == file.read_bytes()


def test_a_run_that_was_finished_early_says_so(photos: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    controls = Controls()

    def press(event: Event) -> None:
        if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", 2):
            controls.finish_now.set()

    settings = short_settings(tiny_base_folder) | {"max_train_steps": 60}
    concepts = (Concept("photo of zwx dog", str(photos)),)
    config = TrainingConfig(**settings, concepts=concepts, output_dir=str(tmp_path / "run"))
    train(config, controls=controls, on_event=press)
    run = RunFolder(tmp_path / "run")
    assert run.steps() == [7] or run.steps() == [8]
    with pytest.raises(RunFolderError, match=f"finished early, at step {run.steps()[0]} of 60"):
        resume(run.path)


# Two at once ---------------------------------------------------------------------------------------------------------

AT_ONCE = """
import sys, time
import dreambooth.runs.run, dreambooth.training.trainer, dreambooth.training.preparation
from dreambooth.commands.cli import main
print("ready", flush=True)
start_s = float(sys.stdin.readline())
while time.time() < start_s:
    pass
sys.exit(main(sys.argv[1:]))
"""


def test_of_two_starts_at_one_instant_one_trains_and_the_other_changes_nothing(
    flags: list[str], photos: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    own = ["train", *flags, "--instance_data_dir", str(photos), "--output_dir", str(run.path)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", AT_ONCE, *own, f"--learning_rate=0.00{number}"],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        for number in (1, 2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start_s = time.time() + 1
    ended = [(process, *process.communicate(timeout=300)) for process in both(processes, start_s)]
    won = [number for number, (process, *_) in enumerate(ended, 1) if process.returncode == 0]
    assert len(won) == 1, [errors for *_, errors in ended]
    _, _, errors = ended[2 - won[0]]
    assert "Traceback" not in errors
    assert "is in use by another process" in errors or "already holds a run" in errors
    assert json.loads(run.config_path.read_text())["learning_rate"] == won[0] / 1000
    assert read_state(run).status == "done"


def both(processes: "list[subprocess.Popen[str]]", start_s: float) -> "list[subprocess.Popen[str]]":
    """Tell both processes when to start, before either is waited for."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{start_s}\n")
        process.stdin.flush()
    return processes


def test_new_runs_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    names = [workspace.new_run_name("run") for _ in range(4)]
    assert len(set(names)) == 4


def test_a_run_that_another_process_has_is_refused_in_one_sentence(
    photos: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is taken between the check of the folder and the start."""
    from dreambooth.durable import held_lock

    run = RunFolder(tmp_path / "run")
    concepts = (Concept("photo of zwx dog", str(photos)),)
    config = TrainingConfig(**short_settings(tiny_base_folder), concepts=concepts, output_dir=str(run.path))
    monkeypatch.setattr(RunFolder, "refuse_if_used", lambda self, is_claimed=False: None)
    with held_lock(run.lock_path), pytest.raises(DreamBoothError, match="in use by another process"):
        train(config)
    assert not run.config_path.exists()
