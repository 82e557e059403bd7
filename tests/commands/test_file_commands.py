"""The commands about files, as a person types them: what they print, write and refuse."""

import gc
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.durable import write_json
from dreambooth.models.weights import read_weights
from dreambooth.records.workspace import RunFolder


@pytest.fixture
def run(tiny_base_folder: Path, own_home: Path) -> RunFolder:
    """Return a run with two saved steps in the data folder."""
    run = RunFolder(own_home / "runs" / "dog")
    write_json(run.config_path, {})
    for step in (9, 10):
        shutil.copytree(tiny_base_folder, run.step_folder(step))
        (run.step_folder(step) / "samples").mkdir()
        (run.step_folder(step) / "samples" / "0.png").write_bytes(b"\x89PNG")
        (run.step_folder(step) / "args.json").write_text("{}")
    return run


def test_convert_says_what_it_compared(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.safetensors"
    before = gc.isenabled(), sys.getswitchinterval()
    assert main(["convert", str(run.path), str(out), "--precision", "fp16"]) == 0
    assert (gc.isenabled(), sys.getswitchinterval()) == before, "what is set for the command stays set"
    path, verdict = capsys.readouterr().out.splitlines()
    assert path == str(out)
    assert verdict == "Verified: all 971 tensors match the model."
    assert main(["convert", str(run.path), str(tmp_path / "wide.ckpt"), "--precision", "fp32"]) == 0
    assert {str(one.dtype) for one in read_weights(tmp_path / "wide.ckpt").values()} == {"torch.float32", "torch.int64"}
    capsys.readouterr()
    assert main(["convert", str(run.path), str(out), "--half", "--precision", "fp32"]) == 1
    assert "half: means fp16, and precision says fp32" in capsys.readouterr().err


def test_clean_tells_first_and_deletes_with_yes(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clean"]) == 0
    told = capsys.readouterr().out
    assert "saved model: dog, step 9 (full model, SD 1.x)  [intermediate weights]" in told
    assert str(run.step_folder(9) / "unet" / "diffusion_pytorch_model.safetensors") in told
    assert "Nothing was deleted; --yes deletes exactly these files." in told
    assert run.steps() == [9, 10]
    assert main(["clean", "--yes"]) == 0
    assert "MB  freed." in capsys.readouterr().out
    assert run.steps() == [10]
    assert (run.step_folder(9) / "samples" / "0.png").exists()


def test_clean_of_one_run_leaves_the_data_folder(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run.path, tmp_path / "elsewhere"))
    assert main(["clean", str(other), "--what", "intermediate weights", "--yes"]) == 0
    assert RunFolder(other).steps() == [10]
    assert run.steps() == [9, 10]
    assert main(["clean", str(tmp_path / "nothing"), "--yes"]) == 1
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["clean", "--what", "everything"])


def test_zip_and_grid(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zip", str(run.path), str(tmp_path / "model.zip")]) == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert "unet/config.json" in archive.namelist()
    assert main(["zip", str(run.path), str(tmp_path / "samples.zip"), "--samples"]) == 0
    with zipfile.ZipFile(tmp_path / "samples.zip") as archive:
        assert archive.namelist() == ["9/0.png", "10/0.png"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "model.zip"), str(tmp_path / "samples.zip")]


def test_push_needs_a_token_before_anything(
    run: RunFolder, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run.path), "ann/dog"]) == 1
    assert "No Hub token is set" in capsys.readouterr().err
    flags = ["--instance_data_dir", str(photos), "--instance_prompt", "photo of dog"]
    out = tmp_path / "new"
    assert main(["train", *flags, "--output_dir", str(out), "--push_to_hub"]) == 1
    assert "push_to_hub: needs a token" in capsys.readouterr().err
    assert main(["train", *flags, "--output_dir", str(out), "--hub_model_id", "ann/dog"]) == 1
    assert "hub_model_id: has no effect without" in capsys.readouterr().err
    assert not out.exists()
