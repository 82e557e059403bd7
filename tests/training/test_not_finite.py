"""Weights that are NaN or infinite are refused where they are read, by file and tensor, by every command."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import BaseModelError
from dreambooth.models.base import load_base
from dreambooth.models.weights import not_finite

FILES = {
    "unet": ("diffusion_pytorch_model.safetensors", "mid_block.resnets.0.conv1.weight"),
    "vae": ("diffusion_pytorch_model.safetensors", "decoder.conv_in.bias"),
    "text_encoder": ("model.safetensors", "text_model.final_layer_norm.weight"),
}


def damage(folder: Path, part: str, value: float = float("nan")) -> Path:
    name, tensor = FILES[part]
    weights = load_file(folder / part / name)
    weights[tensor].view(-1)[-1] = value
    save_file(weights, folder / part / name, {"format": "pt"})
    return folder / part / name


@pytest.fixture
def copied(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))


@pytest.mark.parametrize("part", FILES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_not_finite_is_refused_by_file_and_tensor(copied: Path, part: str, value: float) -> None:
    file = damage(copied, part, value)
    with pytest.raises(BaseModelError) as told:
        load_base(str(copied))
    tensor = FILES[part][1].removeprefix("text_model.")
    assert str(file) in told.value.what
    assert tensor in told.value.why


def test_a_vae_from_elsewhere_is_looked_at_too(tiny_base_folder: Path, copied: Path) -> None:
    damage(copied, "vae")
    with pytest.raises(BaseModelError, match=r"vae tensor decoder\.conv_in\.bias"):
        load_base(str(tiny_base_folder), vae=str(copied / "vae"))


def test_large_numbers_whose_sum_overflows_are_finite() -> None:
    large = torch.full((9,), 3e38)
    assert not_finite({"large": large, "half": torch.full((9,), 60000.0).half(), "ids": torch.arange(3)}) == ""
    assert not_finite({"large": large, "both": torch.tensor([float("inf"), float("-inf")])}) == "both"


def test_generate_convert_and_train_refuse_it_on_the_command_line(copied: Path, photos: Path, tmp_path: Path) -> None:
    """Before, generate left a black picture and exit code 0, and convert said that all was there and equal."""
    damage(copied, "unet")
    commands = {
        "generate": ["--model", str(copied), "--prompt", "a dog", "--output_dir", str(tmp_path / "pictures")],
        "convert": [str(copied), str(tmp_path / "model.safetensors")],
        "train": ["--pretrained_model_name_or_path", str(copied), "--instance_data_dir", str(photos),
                  "--instance_prompt", "photo of zwx dog", "--output_dir", str(tmp_path / "run"), "--resolution", "32",
                  "--max_train_steps", "1"],
    }  # fmt: skip
    for command, arguments in commands.items():
        done = subprocess.run(
            [sys.executable, "-m", "dreambooth", command, *arguments], capture_output=True, text=True, timeout=180,
            env=os.environ,
        )  # fmt: skip
        assert done.returncode != 0, command
        assert "not finite (NaN or infinity)" in done.stderr, done.stderr
        assert "conv1.weight" in done.stderr or "in_layers.2.weight" in done.stderr
        assert "too large" not in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("pictures/*.png"))
    assert not (tmp_path / "model.safetensors").exists()
