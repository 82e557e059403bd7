"""A run folder that an earlier version wrote is listed, gone on with, converted and generated from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.numpy import load_file

from dreambooth.config.training import TrainingConfig
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def old_run(own_home: Path, tmp_path: Path) -> Path:
    """Return a copy of the run among the runs of the data folder, its base and photos in the folder of the commands."""
    for name in ("before_folders/base", "resume/photos"):
        shutil.copytree(FIXTURES / name, tmp_path / Path(name).name)
    return Path(shutil.copytree(FIXTURES / "before_folders" / "run", own_home / "runs" / "run"))


def shell(folder: Path, *arguments: str) -> str:
    """Return what a command prints; it must succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth", *arguments], cwd=folder, capture_output=True, text=True, timeout=180,
        env=os.environ | {"PYTHONPATH": str(FIXTURES.parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_listed(own_home: Path, old_run: Path) -> None:
    jobs = Jobs(Workspace(own_home), ModelManager())
    assert ("run, step 4 (full model, SD 1.x)", str(old_run / "4")) in jobs.models()
    view = jobs.view("run")
    assert (view.name, view.status, view.step, view.resume_step) == ("run", "interrupted", 4, 4)
    assert isinstance(view.config, TrainingConfig)
    assert view.config.max_train_steps == 8
    jobs.close()


def test_it_is_resumed_to_what_a_whole_run_gives(old_run: Path, tmp_path: Path) -> None:
    shell(tmp_path, "train", "--output_dir", str(old_run), "--resume_from_checkpoint", "latest")
    assert sorted(entry.name for entry in old_run.iterdir() if entry.name.isdecimal()) == ["0", "2", "4", "6", "8"]
    shell(tmp_path, "train", "--config", str(old_run / ".run" / "config.json"), "--output_dir", "whole")
    resumed, whole = (load_file(run / "8/unet/diffusion_pytorch_model.safetensors")
                      for run in (old_run, tmp_path / "whole"))  # fmt: skip
    assert resumed.keys() == whole.keys()
    assert all((resumed[name] == whole[name]).all() for name in whole)


def test_it_is_converted_and_generated_from(old_run: Path, tmp_path: Path) -> None:
    shell(tmp_path, "convert", str(old_run), "model.safetensors")
    names = load_file(tmp_path / "model.safetensors").keys()
    assert any(name.startswith("model.diffusion_model.") for name in names)
    shell(
        tmp_path, "generate", "--model", str(old_run / "2"), "--prompt", "photo of zwx dog",
        "--num_inference_steps", "2", "--num_images_per_prompt", "1", "--output_dir", "pictures",
    )  # fmt: skip
    (picture,) = (tmp_path / "pictures").rglob("*.png")
    assert Image.open(picture).size == (32, 32)
