"""The weights of a saved step have hashes: a bit that turns on the disk is refused by the file's name."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth.errors import BaseModelError, DreamBoothError
from dreambooth.export.archive import zip_model
from dreambooth.export.verify import convert_verified
from dreambooth.models.base import load_base
from dreambooth.models.strength import Strength
from dreambooth.records.workspace import RunFolder

FILES = {
    "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that the command line made, with two saved steps."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("trained")
    (folder / "photos").mkdir()
    Image.linear_gradient("L").convert("RGB").save(folder / "photos" / "1.png")
    command = [
        sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path", str(tiny_base_folder),
        "--instance_data_dir", str(folder / "photos"), "--instance_prompt", "photo of zwx dog", "--output_dir",
        str(folder / "run"), "--resolution", "32", "--max_train_steps", "2", "--save_interval", "1",
        "--save_min_steps", "0", "--learning_rate", "1e-3",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(trained, tmp_path / "run")))


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_every_save_has_its_hashes_and_the_step_folder_is_as_before(run: RunFolder) -> None:
    assert run.steps() == [1, 2]
    for step in run.steps():
        known = json.loads(run.hashes_path(step).read_text())
        assert known.keys() == {f"{part}/{name}" for part, name in FILES.items()}
        for name, value in known.items():
            assert value == hashlib.sha256((run.step_folder(step) / name).read_bytes()).hexdigest()
    assert not list(run.step_folder(2).rglob("*hash*"))


WAYS: dict[str, Callable[[Path, Path], object]] = {
    "load": lambda folder, out: load_base(str(folder)),
    "convert": lambda folder, out: convert_verified(folder, out / "model.safetensors", precision="fp16"),
    "weaker": lambda folder, out: convert_verified(folder, out / "weak.ckpt", strength=Strength(0.5, 0.5)),
    "zip": lambda folder, out: zip_model(folder, out / "model.zip"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", FILES)
def test_a_flipped_bit_is_refused_by_the_files_name(run: RunFolder, tmp_path: Path, way: str, part: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    file = run.step_folder(2) / part / FILES[part]
    flip_a_bit(file)
    with pytest.raises(DreamBoothError) as told:
        WAYS[way](run.step_folder(2), out)
    assert str(file) in told.value.what
    assert list(out.iterdir()) == []
    WAYS[way](run.step_folder(1), out)


def test_the_command_line_says_so_for_a_run_by_name(run: RunFolder, tmp_path: Path) -> None:
    flip_a_bit(run.step_folder(2) / "unet" / FILES["unet"])
    command = [sys.executable, "-m", "dreambooth", "generate", "--model", str(run.path), "--prompt", "a dog"]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "pictures")], capture_output=True, text=True, timeout=180
    )
    assert done.returncode != 0
    assert f'{FILES["unet"]}" is damaged.' in done.stderr
    assert "Its contents differ from what was saved" in done.stderr
    assert "Traceback" not in done.stderr


def test_old_runs_copies_and_damaged_records_are_taken_as_they_are(run: RunFolder, tmp_path: Path) -> None:
    flip_a_bit(run.step_folder(1) / "unet" / FILES["unet"])
    run.hashes_path(1).write_text("[" * 100_000)
    load_base(str(run.step_folder(1)))
    shutil.rmtree(run.records / "hashes")
    load_base(str(run.step_folder(1)))
    flip_a_bit(run.step_folder(2) / "unet" / FILES["unet"])
    load_base(str(shutil.copytree(run.step_folder(2), tmp_path / "elsewhere")))


def test_a_damaged_header_is_told_as_damage(run: RunFolder) -> None:
    file = run.step_folder(2) / "unet" / FILES["unet"]
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    with pytest.raises(BaseModelError, match="differ from what was saved"):
        load_base(str(run.step_folder(2)))
