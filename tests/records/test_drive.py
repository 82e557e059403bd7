"""Finished work on Google Drive: copied while training goes on, found by the next machine, full or missing told."""

import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.environment import DRIVE_FOLDER, Settings, load_settings
from dreambooth.errors import DreamBoothError, RunFolderError
from dreambooth.events import Event, Notice, StatusChanged, StepLoss
from dreambooth.models.manager import ModelManager
from dreambooth.records import drive as drive_module
from dreambooth.records.drive import delete_photos, keep_folder, keep_photos, ready_drive, restore_photos
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import train
from tests.harness.trained import quick_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "MyDrive").mkdir()
    return Settings(data_dir=tmp_path / "machine", drive_dir=tmp_path / "MyDrive" / "DreamBooth")


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path, settings: Settings) -> TrainingConfig:
    folder = Workspace(settings.data_dir).datasets_dir / "dog"
    shutil.copytree(photos, folder)
    return quick_settings(
        tiny_base_folder, folder, seed=None, save_interval=1, num_crop_variants=1, save_sample_prompt="photo of dog",
        n_save_sample=1, save_infer_steps=1, lr_warmup_steps=0,
    )  # fmt: skip


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_is_on_the_drive_when_it_has_ended(config: TrainingConfig, settings: Settings) -> None:
    model = train(config, settings=settings)
    run = model.parent
    assert settings.drive_dir is not None
    kept = settings.drive_dir / "runs" / run.name
    local = listing(run)
    copied = listing(kept)
    states = {name for name in local if name.startswith(".run/state/") or name in (".run/lock", ".run/in-line")}
    assert local.keys() - states == copied.keys()
    assert {name for name in copied if copied[name] != local[name]} == set()
    assert {"1/model_index.json", "2/unet/config.json", "2/samples/0.png", "0/samples/0.png"} <= copied.keys()
    photos = listing(settings.drive_dir / "datasets" / "dog")
    assert photos == listing(Path(config.concepts[0].instance_data_dir))


def test_the_next_machine_finds_runs_and_photos(config: TrainingConfig, settings: Settings, tmp_path: Path) -> None:
    name = train(config, settings=settings).parent.name
    next_machine = Workspace(tmp_path / "next", settings.drive_dir)
    restore_photos(next_machine)
    assert listing(next_machine.datasets_dir / "dog") == listing(Path(config.concepts[0].instance_data_dir))
    jobs = Jobs(next_machine, ModelManager())
    assert [run.name for run in next_machine.runs()] == [name]
    assert [label for label, _ in jobs.models()][:2] == [
        f"{name}, step 2 (full model, SD 1.x)",
        f"{name}, step 1 (full model, SD 1.x)",
    ]
    view = jobs.view(name)
    assert (view.status, view.steps, sorted(view.samples)) == ("done", [1, 2], [0, 1, 2])
    with pytest.raises(RunFolderError, match="Google Drive only"):
        jobs.resume(name)
    # The machine's own run of that name comes first.
    shutil.copytree(tmp_path / "machine" / "runs" / name, next_machine.runs_dir / name)
    assert next_machine.run(name).path == next_machine.runs_dir / name
    assert [run.path for run in next_machine.runs()] == [next_machine.runs_dir / name]


def test_a_drive_that_fails_in_the_middle_is_told_and_the_run_goes_on(
    config: TrainingConfig, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(drive_module, "keep_folder", full)
    seen: list[Event] = []
    model = train(config, settings=settings, on_event=seen.append)
    assert (model / "model_index.json").exists()
    told = [event.text for event in seen if isinstance(event, Notice) and "Google Drive" in event.text]
    assert any(text.startswith("2 could not be copied") and "No space left" in text for text in told)


def test_a_full_drive_is_told_before_the_first_step(
    config: TrainingConfig, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive_module, "free_bytes", lambda path: 1000)
    with pytest.raises(DreamBoothError, match=r"Drive is too full: 0\.0 GB will be copied there, 0\.0 GB are free"):
        train(config, settings=settings)
    assert not any((settings.data_dir / "runs").glob("*/[0-9]*"))


def test_a_drive_that_cannot_be_written_is_told_before_anything(config: TrainingConfig, settings: Settings) -> None:
    assert settings.drive_dir is not None
    settings.drive_dir.parent.rmdir()
    settings.drive_dir.parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(DreamBoothError, match="Nothing can be written to"):
        train(config, settings=settings)
    assert not (settings.data_dir / "runs").exists()


def test_a_program_cannot_mount_the_drive_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    with pytest.raises(DreamBoothError, match=r"drive\.mount\('/content/drive'\)"):
        ready_drive(DRIVE_FOLDER)


def test_the_notebook_itself_mounts_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in of Colab's module: what it is asked, and that its folder is used afterwards."""
    mounted: list[str] = []

    def mount(place: str) -> None:
        mounted.append(place)
        Path(place, "MyDrive").mkdir(parents=True)

    stand_in = types.ModuleType("google.colab.drive")
    stand_in.mount = mount  # type: ignore[attr-defined]
    monkeypatch.setattr(os.path, "ismount", lambda place: str(place) in mounted)
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.drive", stand_in)
    monkeypatch.setattr(drive_module, "MOUNT_POINT", tmp_path / "content" / "drive")
    folder = tmp_path / "content" / "drive" / "MyDrive" / "DreamBooth"
    assert ready_drive(folder) == folder
    assert mounted == [str(tmp_path / "content" / "drive")]
    assert sorted(entry.name for entry in folder.iterdir()) == ["datasets", "exports", "runs"]
    assert list((folder / "runs").iterdir()) == []


def test_a_mount_that_colab_did_not_make_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in = types.ModuleType("google.colab.drive")
    stand_in.mount = lambda place: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setitem(sys.modules, "google.colab.drive", stand_in)
    monkeypatch.setattr(drive_module, "MOUNT_POINT", tmp_path)
    with pytest.raises(DreamBoothError, match="not mounted"):
        ready_drive(tmp_path / "MyDrive" / "DreamBooth")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("drive", ["1", "{folder}/not-mounted/DreamBooth"])
def test_a_drive_that_is_not_mounted_is_never_made_of_a_folder_of_this_machine(
    drive: str, tmp_path: Path, photos: Path
) -> None:
    """Before the first step, and with nothing left behind."""
    flags = ["--instance_data_dir", str(photos), "--instance_prompt", "x", "--output_dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path", "starter", *flags]
    env = os.environ | {"DREAMBOOTH_DRIVE": drive.format(folder=tmp_path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert ("Google Drive is not mounted." if drive == "1" else f'"{tmp_path}/not-mounted" of') in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "not-mounted").exists()
    assert not (tmp_path / "run").exists()
    assert not Path("/content/drive").exists()


@pytest.mark.parametrize("end", ["lost", "changed", "back again"])
def test_a_drive_that_is_lost_during_a_run_is_told_and_nothing_takes_its_place(
    end: str, config: TrainingConfig, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drive, away = tmp_path / "MyDrive" / "DreamBooth", tmp_path / "away"
    seen: list[Event] = []

    def watch(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepLoss) and event.step == 1 and not away.exists():
            drive.rename(away)
            if end == "changed":
                drive.mkdir()
                device = drive_module._devices[drive]
                monkeypatch.setitem(drive_module._devices, drive, device + 1)
        if end == "back again" and isinstance(event, StatusChanged) and event.status == "done":
            away.rename(drive)

    model = train(config, settings=settings, on_event=watch)
    assert (model / "model_index.json").exists()
    run = model.parent.name
    told = [event.text for event in seen if isinstance(event, Notice) and "is on this machine only" in event.text]
    if end == "back again":
        assert listing(drive / "runs" / run / "2") == listing(model)
        assert len(told) == 1
        return
    wanted = "Google Drive is no longer at" if end == "lost" else "A disk other than Google Drive is now at"
    assert [text.startswith(wanted) for text in told] == [True, True], "when it is lost, and at the end of the log"
    assert not drive.exists() or list(drive.iterdir()) == []
    # The app goes on without it.
    assert [folder.name for folder in Workspace(settings.data_dir, drive).runs()] == [run]


@pytest.mark.parametrize(
    ("text", "folder"),
    [(None, None), ("", None), ("0", None), ("no", None), ("1", DRIVE_FOLDER), ("True", DRIVE_FOLDER),
     ("/content/drive/MyDrive/mine", Path("/content/drive/MyDrive/mine"))],
)  # fmt: skip
def test_the_switch(text: str | None, folder: Path | None) -> None:
    assert load_settings(env={} if text is None else {"DREAMBOOTH_DRIVE": text}).drive_dir == folder
    assert ready_drive(None) is None


def test_deleted_photos_leave_no_copy_on_the_drive(settings: Settings, photos: Path) -> None:
    workspace = Workspace(settings.data_dir, ready_drive(settings.drive_dir))
    assert workspace.drive_dir is not None
    own, copy = workspace.datasets_dir / "cat", workspace.drive_dir / "datasets" / "cat"
    shutil.copytree(photos, own)
    keep_photos(own, copy)
    (own / "1.png").unlink()
    (own / "new.png").write_bytes(b"new")
    keep_photos(own, copy)
    assert listing(own) == listing(copy)
    delete_photos(workspace, "cat")
    assert list(copy.parent.iterdir()) == []
    delete_photos(dataclasses.replace(workspace, drive_dir=None), "cat")


def test_a_copy_appears_whole_or_not_at_all(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(source: str, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfile", half)
    with pytest.raises((OSError, shutil.Error)):
        keep_folder(photos, tmp_path / "drive" / "photos")
    assert list((tmp_path / "drive").iterdir()) == []
