"""Converting what is damaged, and writes that fail."""

import shutil
from pathlib import Path

import pytest

from dreambooth.errors import ExportError
from dreambooth.export import single_file
from dreambooth.export.single_file import convert


@pytest.fixture
def copied(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


def test_a_write_that_fails_leaves_the_old_file(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *arguments: object, **others: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    out = tmp_path / "model.safetensors"
    out.write_bytes(b"old")
    monkeypatch.setattr(single_file, "write_safetensors", fail)
    with pytest.raises(OSError, match="no space"):
        convert(tiny_base_folder, out)
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_an_existing_file_is_replaced_and_nothing_else_is_left(tiny_base_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "exports" / "model.safetensors"
    out.parent.mkdir()
    out.write_bytes(b"old")
    convert(tiny_base_folder, out)
    assert out.stat().st_size > 1000
    assert [file.name for file in out.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_half_is_the_full_files_floats_rounded(tiny_base_folder: Path, tmp_path: Path, suffix: str) -> None:
    import torch
    from safetensors.torch import load_file

    full = load_file(convert(tiny_base_folder, tmp_path / "full.safetensors"))
    path = convert(tiny_base_folder, tmp_path / f"half{suffix}", precision="fp16")
    half = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)["state_dict"]
    assert half.keys() == full.keys()
    whole = [name for name, tensor in half.items() if tensor.dtype == torch.int64]
    assert whole == ["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert all(torch.equal(half[name], full[name].half()) for name in full if name not in whole)


def test_a_part_without_weights_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ExportError, match="vae has no weights"):
        convert(copied, tmp_path / "model.safetensors")


def test_damaged_weights_are_refused(copied: Path, tmp_path: Path) -> None:
    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ExportError, match="cannot be read"):
        convert(copied, tmp_path / "model.safetensors")


def test_a_damaged_config_is_refused(copied: Path, tmp_path: Path) -> None:
    (copied / "unet" / "config.json").write_text("{")
    with pytest.raises(ExportError, match=r"unet/config\.json"):
        convert(copied, tmp_path / "model.safetensors")


def test_a_model_with_other_tensors_is_refused(copied: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = copied / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"add_embedding.linear_1.weight": torch.zeros(2)}, file)
    with pytest.raises(ExportError, match="add_embedding"):
        convert(copied, tmp_path / "model.safetensors")
