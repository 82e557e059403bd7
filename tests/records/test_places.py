"""Places that cannot be used: files where folders belong, read-only disks, `~`, what is removed under a run."""

import errno
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.config import limits
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import find_photos
from dreambooth.errors import ConfigError, DreamBoothError
from dreambooth.events import Event, StepLoss
from dreambooth.runs.run import train

ROOT = Path(__file__).resolve().parents[2]
MOUNTS = Path("/proc/self/mounts")
READ_ONLY = next(
    (
        Path(line.split()[1])
        for line in (MOUNTS.read_text().splitlines() if MOUNTS.exists() else ())
        if "ro" in line.split()[3].split(",") and Path(line.split()[1]).is_dir()
    ),
    None,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a file where a folder is wanted."""
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.fixture
def commands(tiny_base_folder: Path, photos: Path) -> dict[str, list[str]]:
    """Return every command that writes where it is told, without that place."""
    concept = ["--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog"]
    base = ["--pretrained_model_name_or_path", str(tiny_base_folder)]
    return {
        "train": ["train", *base, *concept, "--resolution", "32", "--output_dir"],
        "preflight": ["preflight", *base, *concept, "--resolution", "32", "--output_dir"],
        "generate": ["generate", "--model", str(tiny_base_folder), "--prompt", "x", "--output_dir"],
        "compare": ["compare", str(tiny_base_folder), "--prompt", "x", "--output_dir"],
        "evaluate": ["evaluate", str(photos.parent), *base, "--output_dir"],
        "convert": ["convert", str(tiny_base_folder)],
        "zip": ["zip", str(tiny_base_folder)],
        "grid": ["grid", str(tiny_base_folder)],
    }


FILES = ("convert", "zip", "grid")
FOLDERS = ("train", "preflight", "generate", "compare", "evaluate")


@pytest.mark.parametrize("command", [*FOLDERS, *FILES])
def test_no_command_writes_to_a_place_that_cannot_be_written(
    command: str, commands: dict[str, list[str]], file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {file / "below" / "out.zip": f'is inside "{file}", which is a file'}
    places |= {file: "is a file"} if command in FOLDERS else {file.parent: "is a folder"}
    if READ_ONLY is not None:  # containers have such a mount, as a rule
        places[READ_ONLY / "out.safetensors"] = f'cannot be written: "{READ_ONLY}" is read-only'
    for place, sentence in places.items():
        assert main([*commands[command], str(place)]) == 1
        error = capsys.readouterr().err
        assert sentence in error, error
        assert "Traceback" not in error
        assert "full" not in error
    assert file.read_bytes() == b""


def test_a_read_only_place_is_told_of_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `access` answers for a read-only disk, to root as well."""
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path))
    assert limits.place_problem(tmp_path / "run") == (
        f'cannot be written: "{tmp_path}" is read-only, or belongs to another user.'
    )
    assert limits.place_problem(tmp_path.parent / "run") == ""


@pytest.mark.parametrize("name", ["class", "class.zip"])
def test_a_class_data_dir_that_is_a_file_is_told_of(
    name: str, commands: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).touch()
    flags = ["--class_data_dir", str(tmp_path / name), "--class_prompt", "photo of dog", "--with_prior_preservation"]
    assert main([*commands["train"], str(tmp_path / "run"), *flags]) == 1
    assert f'class_data_dir: is a file ("{tmp_path / name}"): name a folder.' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_the_system_refuses_later_is_a_sentence_too(
    commands: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert main([*commands["generate"], str(tmp_path / "link"), "--num_inference_steps", "1"]) == 1
    error = capsys.readouterr().err
    assert f'error: "{tmp_path / "link"}" cannot be used.\nFile exists.\n' in error
    assert "Traceback" not in error

    def write(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipFile, "open", write)
    number = errno.ENOSPC
    assert main([*commands["zip"], str(tmp_path / "model.zip")]) == 1
    assert "error: The disk is full.\nFree some space" in capsys.readouterr().err
    number = errno.EIO  # of an unknown place: it may be a bug, and keeps its traceback
    with pytest.raises(OSError, match="Input/output"):
        main([*commands["zip"], str(tmp_path / "model.zip")])


def test_a_tilde_is_the_home_folder_on_every_route(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "base").symlink_to(tiny_base_folder)
    command = [
        sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path=~/base",
        f"--instance_data_dir=~/{photos.name}", "--instance_prompt=photo of zwx dog", "--resolution=32",
        "--max_train_steps=1", "--train_batch_size=1", "--output_dir=~/run",
    ]  # fmt: skip
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "1" / "model_index.json").exists()
    assert not (folder / "~").exists()

    config = TrainingConfig(concepts=(Concept("x", "~/photos", class_data_dir="~/class"),), output_dir="~/other")
    assert config.output_dir == str(tmp_path / "other")
    assert config.concepts[0] == Concept("x", str(tmp_path / "photos"), None, str(tmp_path / "class"))
    assert TrainingConfig.from_json(config.to_json()) == config
    assert main(["zip", "~/run", "~/run.zip"]) == 0
    assert main(["convert", "--model_path=~/run", "--checkpoint_path=~/run.ckpt"]) == 0
    assert (tmp_path / "run.zip").is_file()
    assert (tmp_path / "run.ckpt").is_file()


def test_paths_of_python_are_taken_as_their_texts(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        concepts=(Concept("photo of zwx dog", photos),),  # type: ignore[arg-type]
        pretrained_model_name_or_path=tiny_base_folder,  # type: ignore[arg-type]
        output_dir=tmp_path / "run",  # type: ignore[arg-type]
        resolution=32,
        max_train_steps=1,
        train_batch_size=1,
    )
    assert config.concepts[0].instance_data_dir == str(photos)
    assert train(config).name == "1"


def test_links_to_nothing_and_pipes_among_photos_are_named(photos: Path) -> None:
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(photos / "pipe.png")
        with socket.socket(socket.AF_UNIX) as listener:
            os.chdir(photos)
            listener.bind("socket.webp")
            os.chdir(ROOT)
    told = {path.name: reason for path, reason in find_photos(photos).skipped}
    assert told.pop("gone.jpg") == "is a broken link"
    assert set(told.values()) <= {"is not a file but a pipe, a socket or a device"}
    assert len(find_photos(photos).photos) == 3


def test_a_run_whose_folder_is_removed_ends_with_a_sentence(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    def remove(event: Event) -> None:
        if isinstance(event, StepLoss) and event.step == 1:
            shutil.rmtree(run)

    config = TrainingConfig(
        concepts=(Concept("photo of zwx dog", str(photos)),), pretrained_model_name_or_path=str(tiny_base_folder),
        output_dir=str(run), resolution=32, max_train_steps=3, train_batch_size=1,
    )  # fmt: skip
    with pytest.raises(DreamBoothError, match=r'The folder ".*run" is gone\. It, or its disk, was removed'):
        train(config, on_event=remove)
    assert not list(run.glob("[0-9]*"))


def test_a_place_that_is_none_at_all_has_no_problem_of_its_own() -> None:
    assert limits.place_problem(Path("a" * 5000)) == ""
    with pytest.raises(ConfigError, match="output_dir"):
        TrainingConfig(output_dir="a" * 5000).checked()
