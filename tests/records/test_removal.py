"""Deleting a run: all that the program wrote, nothing that a person put there, and never what is in use."""

from pathlib import Path

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import held_lock
from dreambooth.environment import Settings
from dreambooth.errors import RunFolderError
from dreambooth.records.removal import remove_run
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.run import train


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with one real run: two saved steps, samples, and a state."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("trained")
    (folder / "photos").mkdir()
    Image.new("RGB", (48, 48), "red").save(folder / "photos" / "a.png")
    train(
        TrainingConfig(
            pretrained_model_name_or_path=str(tiny_base_folder), output_dir=str(folder / "data" / "runs" / "r"),
            concepts=(Concept("photo of zwx dog", str(folder / "photos"), "photo of dog"),), resolution=32,
            train_batch_size=1, max_train_steps=2, save_interval=1, learning_rate=1e-3, num_crop_variants=1,
            save_sample_prompt="dog", n_save_sample=1, save_infer_steps=1,
        ),
        settings=Settings(folder / "data"),
    )  # fmt: skip
    return folder / "data"


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Workspace:
    import shutil

    shutil.copytree(trained, tmp_path / "data")
    return Workspace(tmp_path / "data")


def test_nothing_of_a_run_is_left(workspace: Workspace) -> None:
    run = workspace.run("r")
    assert run.steps() == [1, 2]
    removed = remove_run(workspace, run)
    assert removed.num_bytes > 100_000
    assert removed.left == ()
    assert not run.path.exists()
    assert workspace.runs() == []


def test_what_a_person_put_there_stays(workspace: Workspace) -> None:
    run = workspace.run("r")
    own = [run.path / "notes.txt", run.path / "2" / "samples" / "best.png", run.path / "2" / "unet" / "my.txt"]
    own.append(run.path / "3" / "args.txt")
    for file in own:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    removed = remove_run(workspace, run)
    assert removed.left == tuple(sorted(own))
    assert all(file.read_text() == "mine" for file in own)
    assert workspace.runs() == [], "it is no run any more"


def test_a_run_in_use_is_left_as_it_is(workspace: Workspace) -> None:
    run = workspace.run("r")
    for lock in (run.lock_path, run.queue_lock_path):
        with held_lock(lock), pytest.raises(RunFolderError, match="Stop it first"):
            remove_run(workspace, run)
    assert run.steps() == [1, 2]


def test_what_lies_elsewhere_is_not_touched(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    workspace.run("r").path.rename(elsewhere)
    with pytest.raises(RunFolderError, match="is not in this app's data folder"):
        remove_run(workspace, RunFolder(elsewhere))
    (workspace.runs_dir / "r").symlink_to(elsewhere)
    with pytest.raises(RunFolderError, match="is not in this app's data folder"):
        remove_run(workspace, workspace.run("r"))
    assert RunFolder(elsewhere).steps() == [1, 2]
