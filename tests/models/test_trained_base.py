"""A trained model as the base of another training: a run is enough, and class images are the original base's."""

import json
import shutil
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.durable import write_json
from dreambooth.models.origin import origin_of
from dreambooth.records.workspace import RunFolder, Workspace
from ui.train.handlers import base_notice


@pytest.fixture
def base(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny base that a test may delete."""
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "original"))


def trained(base: Path, photos: Path, run: Path, *more: str) -> str:
    """Train one from the command line, and return the run's log."""
    flags = [
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(photos), "--output_dir", str(run),
        "--instance_prompt=photo of zwx dog", "--class_prompt=photo of dog", "--with_prior_preservation",
        "--num_class_images=2", "--save_infer_steps=1", "--resolution=32", "--train_batch_size=1",
        "--max_train_steps=2", "--save_interval=1", "--seed=3", *more,
    ]  # fmt: skip
    assert main(["train", *flags]) == 0
    return RunFolder(run).log_path.read_text("utf-8")


def class_folders(home: Path) -> list[Path]:
    return [folder for folder in Workspace(home).class_images_dir.iterdir() if any(folder.glob("*.png"))]


def test_a_runs_folder_is_a_base_and_class_images_come_from_the_original_one(
    base: Path, photos: Path, tmp_path: Path, own_home: Path
) -> None:
    first, second, third = (RunFolder(tmp_path / name) for name in ("first", "second", "third"))
    assert "Class images are" not in trained(base, photos, first.path)
    log = trained(first.path, photos, second.path)
    assert 'The base model is step 2 of the run "first", its last saved one.' in log
    assert f'Class images are those of "{base}", not of the base model.' in log
    settings = json.loads(second.config_path.read_text("utf-8"))
    assert settings["pretrained_model_name_or_path"] == str(first.path / "2")
    assert settings["class_model_name_or_path"] == str(base)
    assert len(class_folders(own_home)) == 1, "the first run's class images serve the second"

    write_json(second.scores_path, {"recommended_step": 1})
    assert "step 1 of the run &quot;second&quot;, the recommended one" in base_notice(str(second.path))
    log = trained(second.path, photos, third.path)
    assert 'step 1 of the run "second", the recommended one.' in log
    assert f'Class images are those of "{base}"' in log, "the base at the end of the chain"
    assert len(class_folders(own_home)) == 1


def test_without_the_original_base_the_run_says_whose_class_images_it_uses(
    base: Path, photos: Path, tmp_path: Path, own_home: Path
) -> None:
    first = tmp_path / "first"
    trained(base, photos, first)
    shutil.rmtree(base)
    log = trained(first, photos, tmp_path / "second")
    told = (
        f'Class images are those of the trained base model itself: its original base "{base}" is not on this machine.'
    )
    assert told in log
    assert len(class_folders(own_home)) == 2
    (first / "2" / "args.json").unlink()
    assert origin_of(str(first / "2")) is None, "nothing says what it was trained from"


def test_the_class_model_can_be_named(base: Path, photos: Path, tmp_path: Path, own_home: Path) -> None:
    first = tmp_path / "first"
    trained(base, photos, first)
    log = trained(first, photos, tmp_path / "second", "--class_model_name_or_path", str(first / "2"))
    assert f'Class images are those of "{first / "2"}"' in log
    assert len(class_folders(own_home)) == 2
