"""Archives to download: all of a model and nothing hidden, the same bytes each time, opened by other software."""

import hashlib
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from dreambooth.errors import ExportError
from dreambooth.export import disk_room
from dreambooth.export.archive import zip_model, zip_samples
from dreambooth.records.workspace import RunFolder


def test_a_models_archive_is_its_folder(tiny_base_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "400"))
    (folder / "samples").mkdir()
    (folder / "samples" / "0.png").write_bytes(b"png")
    (folder / ".hidden").write_bytes(b"no")
    (folder / "link").symlink_to("/etc/passwd")
    seen: list[tuple[int, int]] = []
    path = zip_model(folder, tmp_path / "out" / "model.zip", lambda done, total: seen.append((done, total)))
    with zipfile.ZipFile(path) as opened:
        assert opened.testzip() is None
        assert {entry.compress_type for entry in opened.infolist()} == {zipfile.ZIP_STORED}
        opened.extractall(tmp_path / "back")
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {".hidden", "link"}
    assert {
        str(file.relative_to(tmp_path / "back")) for file in (tmp_path / "back").rglob("*") if file.is_file()
    } == names
    assert all((tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes() for name in names)
    assert seen[-1][0] == seen[-1][1]


def test_the_same_files_give_the_same_bytes(tiny_base_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_base_folder, tmp_path / "copy", copy_function=shutil.copyfile))
    paths = [zip_model(tiny_base_folder, tmp_path / "one.zip"), zip_model(copy, tmp_path / "two.zip")]
    assert len({hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}) == 1


def test_other_software_opens_it(tiny_base_folder: Path, tmp_path: Path) -> None:
    path = zip_model(tiny_base_folder, tmp_path / "model.zip")
    program = shutil.which("unzip")
    if program is None:
        pytest.skip("no unzip here")
    done = subprocess.run([program, "-t", str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_samples_by_step(tmp_path: Path) -> None:
    for step in (0, 10, 200):
        (tmp_path / "run" / str(step) / "samples").mkdir(parents=True)
        (tmp_path / "run" / str(step) / "samples" / "0.png").write_bytes(str(step).encode())
    with zipfile.ZipFile(zip_samples(RunFolder(tmp_path / "run"), tmp_path / "samples.zip")) as opened:
        assert opened.namelist() == ["0/0.png", "10/0.png", "200/0.png"]
    with pytest.raises(ExportError, match="no sample pictures"):
        zip_samples(RunFolder(tmp_path / "nothing"), tmp_path / "samples.zip")


def test_what_cannot_be_packed_is_told_and_leaves_nothing(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExportError, match="is not a saved step"):
        zip_model(tmp_path, tmp_path / "model.zip")
    monkeypatch.setattr(disk_room, "free_bytes", lambda path: 10)
    with pytest.raises(ExportError, match="too full"):
        zip_model(tiny_base_folder, tmp_path / "model.zip")
    assert list(tmp_path.iterdir()) == []
