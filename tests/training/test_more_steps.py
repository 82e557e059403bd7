"""More steps than a run was started with: from the command line, after its end or before, killed amid it or not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.environment import Settings
from dreambooth.events import losses_of, read_events
from dreambooth.export.model_card import model_card
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import train
from dreambooth.scoring.records import read_scores
from dreambooth.training.extending import Extension, extended, read_extensions
from dreambooth.training.finishing import Finish
from tests.harness.watched_runs import Watcher, short_settings
from ui.boundary import Services, Shown
from ui.train.actions import Handlers


@pytest.fixture
def flags(tiny_base_folder: Path, photos: Path) -> list[str]:
    return [
        "--pretrained_model_name_or_path", str(tiny_base_folder), "--instance_data_dir", str(photos),
        "--instance_prompt=photo of zwx dog", "--class_prompt=photo of dog", "--resolution=32", "--train_batch_size=1",
        "--learning_rate=1e-3", "--seed=3", "--log_interval=1", "--save_precision=fp32", "--num_crop_variants=1",
    ]  # fmt: skip


def trained(run: Path, *flags: str) -> RunFolder:
    assert main(["train", "--output_dir", str(run), *flags]) == 0
    return RunFolder(run)


def further(run: RunFolder, total: int, *flags: str) -> int:
    """Train a run to a new total from the command line, and return the exit status."""
    resumed = ["--resume_from_checkpoint", "latest", "--output_dir", str(run.path)]
    return main(["train", *resumed, "--max_train_steps", str(total), *flags])


def rates(run: RunFolder) -> list[float]:
    return [one.learning_rate for one in losses_of(read_events(run.events_path))]


def weights(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*.safetensors"))}


def test_a_finished_run_that_goes_on_is_the_longer_run_bit_for_bit(flags: list[str], tmp_path: Path) -> None:
    # At a constant rate the schedule is the same: moments, average, visits and teacher draws must go on.
    prior = ["--with_prior_preservation", "--num_class_images=3", "--save_infer_steps=1", "--teacher_prior"]
    more = [*flags, *prior, "--use_ema", "--train_text_encoder", "--stratified_timesteps"]
    whole = trained(tmp_path / "whole", *more, "--max_train_steps=7")
    run = trained(tmp_path / "run", *more, "--max_train_steps=4")
    assert run.checkpoint_steps() == [4]
    assert read_state(run).status == "done"
    assert further(run, 7) == 0
    assert run.steps() == [4, 7]
    assert weights(run.path / "7") == weights(whole.path / "7")
    assert run.checkpoint_steps() == [7], "and it can go on again"
    assert "extended after step 4 from 4 to 7 steps" in run.log_path.read_text("utf-8")
    assert further(run, 8) == 0
    said = ("extended after step 4 from 4 to 7 steps", "extended after step 7 from 7 to 8 steps")
    assert all(text in model_card(run.path / "8", "me/dog", None) for text in said)
    assert said[1] not in model_card(run.path / "7", "me/dog", None)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "constant_with_warmup"])
def test_added_steps_have_a_schedule_of_their_own(flags: list[str], tmp_path: Path, schedule: str) -> None:
    warm_up = [] if schedule == "constant" else ["--lr_warmup_steps=0"]
    run = trained(tmp_path / "run", *flags, *warm_up, f"--lr_scheduler={schedule}", "--max_train_steps=3")
    before = rates(run)
    assert further(run, 23) == 0
    now = rates(run)
    assert now[:3] == before
    assert len(now) == 23
    if schedule == "constant":
        assert set(now) == {1e-3}
        return
    assert now[3:5] == [0.0, 1e-3], "5 % of 20 steps are warm-up, then comes the peak"
    if schedule == "constant_with_warmup":
        assert set(now[4:]) == {1e-3}
    else:
        assert now[4:] == sorted(now[4:], reverse=True)
        assert now[-1] < 1e-4


def test_an_unfinished_run_keeps_its_schedule_up_to_its_step(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    watcher = Watcher(stop_at=4)
    config = short_settings(tiny_base_folder, photos, tmp_path / "run", max_train_steps=8, lr_scheduler="linear",
                      lr_warmup_steps=0)  # fmt: skip
    run = RunFolder(train(config, controls=watcher.controls, on_event=watcher).parent)
    assert further(run, 12) == 0
    assert rates(run)[:4] == pytest.approx([1e-3 * (1 - step / 8) for step in range(4)])
    assert rates(run)[4:] == pytest.approx([1e-3 * (1 - step / 8) for step in range(8)])
    assert read_extensions(run.extensions_path) == (Extension(4, 8, 12),)


def test_more_steps_after_an_early_finish(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    watcher = Watcher(finish_at=3)
    config = short_settings(tiny_base_folder, photos, tmp_path / "run", max_train_steps=20)
    run = RunFolder(train(config, controls=watcher.controls, on_event=watcher).parent)
    assert run.steps() == [8]
    assert further(run, 12) == 0
    assert run.steps() == [8, 12]
    assert not run.finish_path.exists()
    assert rates(run)[8:] == [1e-3] * 4
    assert "The run is continued to step 12 after its early end at step 8 of 20;" in run.log_path.read_text("utf-8")


def test_killed_in_the_extension_and_resumed_it_is_bit_equal(flags: list[str], tmp_path: Path) -> None:
    added = ["--lr_scheduler=cosine", "--lr_warmup_steps=0", "--checkpointing_steps=2"]
    run = trained(tmp_path / "run", *flags, *added, "--max_train_steps=3")
    whole = RunFolder(Path(shutil.copytree(run.path, tmp_path / "whole")))
    assert further(whole, 24) == 0
    command = [sys.executable, "-m", "dreambooth", "train", "--resume_from_checkpoint", "latest"]
    process = subprocess.Popen(
        [*command, "--output_dir", str(run.path), "--max_train_steps=24"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline_s = time.monotonic() + 240
    while max(run.checkpoint_steps()) < 8 and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    output, _ = process.communicate()
    assert 8 <= max(run.checkpoint_steps()) < 24, output
    assert 24 not in run.steps()
    assert main(["train", "--resume_from_checkpoint", "latest", "--output_dir", str(run.path)]) == 0
    assert weights(run.path / "24") == weights(whole.path / "24")
    assert rates(run) == rates(whole)


def test_scores_and_recommendation_cover_all_steps(flags: list[str], tmp_path: Path) -> None:
    samples = ["--save_sample_prompt=photo of zwx dog", "--n_save_sample=1", "--num_probe_images=1"]
    run = trained(
        tmp_path / "run", *flags, *samples, "--save_infer_steps=1", "--save_interval=2", "--max_train_steps=4"
    )
    assert further(run, 6) == 0
    scores = read_scores(run)
    assert scores is not None
    assert [one.step for one in scores.steps] == [0, 2, 4, 6]


@pytest.mark.parametrize("way", ["a setting", "clean"])
def test_without_its_state_a_run_offers_its_last_step_as_base(
    flags: list[str], tmp_path: Path, way: str, capsys: pytest.CaptureFixture[str], own_home: Path
) -> None:
    run_path = own_home / "runs" / "run"
    kept = ["--drop_final_state"] if way == "a setting" else []
    run = trained(run_path, *flags, *kept, "--max_train_steps=2")
    if way == "clean":
        assert run.checkpoint_steps() == [2]
        assert main(["clean", "--what", "exact states", "--yes"]) == 0
    assert run.checkpoint_steps() == []
    assert further(run, 4) == 1
    error = capsys.readouterr().err
    assert '"run" cannot be trained further.' in error
    assert f'--pretrained_model_name_or_path "{run.path / "2"}"' in error
    workspace = Workspace(own_home)
    services = Services(Jobs(workspace, ModelManager()), workspace, Settings(own_home), Shown(tmp_path))
    answer = Handlers(services).train_more("run", 4)
    assert "Its exact state is gone" in answer["message"]
    assert answer["base"].value == str(run.path / "2"), "the page's button offers it as the form's base"


def test_a_total_that_is_not_larger_is_refused(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", *flags, "--max_train_steps=2")
    assert further(run, 2) == 1
    assert "is 2, and the run has 2 steps" in capsys.readouterr().err
    assert main(["train", "--resume_from_checkpoint", "latest", "--output_dir", str(run.path)]) == 1
    assert "--max_train_steps" in capsys.readouterr().err, "it says how to train more"


def test_going_back_before_an_extension_gives_it_up() -> None:
    first = Extension(10, 10, 20)
    assert extended((), 10, 10, 20, None) == (first,)
    assert extended((first,), 15, 20, 20, None) == (first,)
    assert extended((first,), 15, 20, 30, None) == (first, Extension(15, 20, 30))
    assert extended((first,), 5, 20, 30, None) == (Extension(5, 10, 30),)
    assert extended((), 12, 60, 60, Finish(8, 12)) == (Extension(12, 60, 60),)
    assert extended((), 10, 60, 60, Finish(8, 12)) == (), "it is still to cool down"
