"""A LoRA's saved steps are counted, limited, copied, cleaned and removed as those of a full run are."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.formats.layout import CARD, saved_step_kind
from dreambooth.records import storage
from dreambooth.records.removal import remove_run
from dreambooth.records.saved_weights import weight_files
from dreambooth.records.storage import carry_out, plan
from dreambooth.records.workspace import RunFolder, Workspace

FLAGS = (
    "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog", "--method", "lora", "--lora_rank", "2",
    "--resolution", "32", "--train_batch_size", "1", "--learning_rate", "1e-3", "--num_crop_variants", "1", "--seed",
    "1", "--save_sample_prompt", "photo of zwx dog", "--n_save_sample", "1", "--save_infer_steps", "1",
    "--num_probe_images", "0", "--lr_warmup_steps", "0", "--max_train_steps", "5", "--save_interval", "1",
    "--save_total_limit", "3",
)  # fmt: skip


def command(home: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of the program, with its data folder and its Drive below `home`."""
    (home / "MyDrive").mkdir(parents=True, exist_ok=True)
    places = {"DREAMBOOTH_HOME": str(home / "data"), "DREAMBOOTH_DRIVE": str(home / "MyDrive" / "DreamBooth")}
    return subprocess.run(
        [sys.executable, "-m", "dreambooth", *arguments], env=os.environ | places, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the data folder and the Drive of a run by the command line."""
    home = tmp_path_factory.mktemp("lora")
    photos = home / "photos"
    photos.mkdir()
    for number in range(3):
        Image.linear_gradient("L").resize((48, 48)).rotate(90 * number).save(photos / f"{number}.png")
    where = ["--instance_data_dir", str(photos), "--pretrained_model_name_or_path", str(tiny_base_folder)]
    done = command(home, "train", *FLAGS, *where, "--output_dir", str(home / "data" / "runs" / "zwx dog"))
    assert done.returncode == 0, done.stderr[-3000:]
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of it, to be changed."""
    shutil.copytree(trained, tmp_path / "home")
    return tmp_path / "home"


def run_in(home: Path) -> RunFolder:
    return RunFolder(home / "data" / "runs" / "zwx dog")


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_the_newest_are_kept_with_card_and_file_and_of_the_others_settings_and_samples(home: Path) -> None:
    run = run_in(home)
    assert run.steps() == [3, 4, 5]
    for step in (1, 2):
        assert files_in(run.step_folder(step)) == {"args.json", "samples/0.png"}
    assert weight_files(run, 4) == [run.step_folder(4) / CARD, run.step_folder(4) / "zwx-dog-4.safetensors"]


def test_the_drive_has_every_step_that_was_saved(home: Path) -> None:
    copied = RunFolder(home / "MyDrive" / "DreamBooth" / "runs" / "zwx dog")
    assert copied.steps() == [1, 2, 3, 4, 5]
    for step in run_in(home).steps():
        assert files_in(copied.step_folder(step)) == files_in(run_in(home).step_folder(step))
    assert not copied.checkpoint_steps()


def test_clean_deletes_all_loras_but_the_newest_and_nothing_of_a_persons(home: Path) -> None:
    run = run_in(home)
    kept = run.step_folder(3) / "my own.safetensors"
    kept.write_bytes(b"mine")
    told = command(home, "clean", "--what", "intermediate weights")
    assert told.returncode == 0, told.stderr
    assert run.steps() == [3, 4, 5], "only --yes deletes"
    named = {line.split("  ")[-1] for line in told.stdout.splitlines() if line.endswith((".json", ".safetensors"))}
    assert named == {str(file) for step in (3, 4) for file in weight_files(run, step)}
    done = command(home, "clean", "--what", "intermediate weights", "--yes")
    assert done.returncode == 0, done.stderr
    assert run.steps() == [5]
    assert files_in(run.step_folder(3)) == {"args.json", "samples/0.png", kept.name}
    assert files_in(run.step_folder(4)) == {"args.json", "samples/0.png"}


def test_a_removal_that_was_cut_off_leaves_no_step_and_can_be_ended(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, workspace = run_in(home), Workspace(home / "data")
    delete, deleted = storage._deleted, list[Path]()

    def die_at_the_second(path: Path, inside: Path) -> int:
        if deleted:
            raise KeyboardInterrupt
        deleted.append(path)
        return delete(path, inside)

    monkeypatch.setattr(storage, "_deleted", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        carry_out(workspace, plan(workspace, ["intermediate weights"]))
    monkeypatch.undo()
    assert deleted == [run.step_folder(3) / CARD]
    assert saved_step_kind(run.step_folder(3)) is None
    assert run.steps() == [4, 5]
    carry_out(workspace, plan(workspace, ["intermediate weights"]))
    assert files_in(run.step_folder(3)) == {"args.json", "samples/0.png"}


def test_exports_named_after_a_step_go_while_the_step_stays(home: Path) -> None:
    """Those of a step that is gone, or goes with them, may be its only copy."""
    workspace = Workspace(home / "data")
    run_in(home).path.rename(workspace.runs_dir / "dog")
    names = {f"dog-{step}.safetensors" for step in (1, 3, 5)} | {"dog-step-5.safetensors", "dog-step-5-2.safetensors"}
    for name in names:
        (workspace.exports_dir / name).write_bytes(b"lora")
    planned = plan(workspace, ["exports", "intermediate weights"])
    stay = names - {one.path.name for one in planned.deletions}
    assert stay == {"dog-1.safetensors", "dog-3.safetensors"}
    assert all(any(name in sentence for sentence in planned.kept) for name in stay)


def test_nothing_of_a_removed_run_is_left(home: Path) -> None:
    workspace = Workspace(home / "data")
    removed = remove_run(workspace, run_in(home))
    assert removed.left == ()
    assert not run_in(home).path.exists()


def test_a_lora_that_was_changed_on_the_disk_is_refused_by_name(home: Path) -> None:
    file = run_in(home).step_folder(5) / "zwx-dog-5.safetensors"
    contents = bytearray(file.read_bytes())
    contents[-1] ^= 1
    file.write_bytes(contents)
    where = ["--model", str(file.parent), "--prompt", "photo of zwx dog", "--num_inference_steps", "1"]
    done = command(home, "generate", *where, "--height", "32", "--width", "32", "--output_dir", str(home / "pictures"))
    assert done.returncode != 0
    assert f'"{file}" is damaged.' in done.stderr
