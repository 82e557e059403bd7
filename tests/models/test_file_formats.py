"""A file or folder that holds no weights, or not whole ones, is named for what it is, with what to do."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import BaseModelError
from dreambooth.export.single_file import convert
from dreambooth.models import base as base_module
from dreambooth.models import sd_file
from dreambooth.models.base import load_base

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a21" * 10 + b"0000\nsize 4265146304\n"
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:\x90\x01\n"
EVERY_NAME = ("model.safetensors", "model.ckpt", "model.bin", "model.pt")


@pytest.fixture
def whole(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a single file of the tiny base, which stands in the starter's place."""
    for module in (base_module, sd_file):
        monkeypatch.setattr(module, "starter_folder", lambda: tiny_base_folder)
    return convert(tiny_base_folder, tmp_path / "whole.safetensors")


@pytest.mark.parametrize(("content", "words"), [
    (POINTER, "is a Git LFS pointer.*git lfs pull"),
    (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page.*Download the file itself"),
    (b"\xef\xbb\xbf \n<HTML>", "is a web page"),
    (b"GGUF\x03\x00\x00\x00" + bytes(200), "is a GGUF file.*cannot be trained"),
    (ONNX + bytes(300), "is an ONNX model"),
])  # fmt: skip
@pytest.mark.parametrize("name", EVERY_NAME)
def test_what_is_no_file_of_weights_is_named_under_every_suffix(
    tmp_path: Path, content: bytes, words: str, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BaseModelError, match=words) as told:
        load_base(str(tmp_path / name))
    assert name in told.value.what
    assert "would run" not in str(told.value)


def embeddings() -> dict[str, Any]:
    """Return textual inversions as A1111 and diffusers write them."""
    vector = torch.zeros(2, 768)
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vector)})
    return {
        "a1111": {"string_to_token": {"*": 265}, "string_to_param": {"*": vector}, "name": "cat"},
        "old": {"string_to_token": {"*": 265}, "string_to_param": parameters, "name": "cat"},
        "diffusers": {"<cat-toy>": vector[0]},
    }


@pytest.mark.parametrize("kind", embeddings())
def test_a_textual_inversion_is_named(tmp_path: Path, kind: str) -> None:
    torch.save(embeddings()[kind], tmp_path / "cat.pt")
    with pytest.raises(BaseModelError, match="is an embedding .textual inversion"):
        load_base(str(tmp_path / "cat.pt"))


def test_a_renamed_file_is_told_its_right_name(whole: Path, tmp_path: Path) -> None:
    checkpoint = convert(base_module.starter_folder(), tmp_path / "other.ckpt")
    shutil.copy(whole, tmp_path / "a.ckpt")
    shutil.copy(checkpoint, tmp_path / "b.safetensors")
    with pytest.raises(BaseModelError, match=r'a \.safetensors file under another name.*Rename it to "a\.safetensors"'):
        load_base(str(tmp_path / "a.ckpt"))
    with pytest.raises(BaseModelError, match=r'a \.ckpt file under another name.*Rename it to "b\.ckpt"'):
        load_base(str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(("wrap", "words"), [
    (lambda weights: {"state_dict": {}}, "`state_dict` holds no tensors"),
    (lambda weights: {"state_dict": {"unet": weights}}, 'deeper, under "unet".*state_dict"\\]\\["unet"'),
    (lambda weights: {"model": weights, "epoch": 3}, 'deeper, under "model".*\\["model"\\]'),
    (lambda weights: {}, "no tensors by name"),
])  # fmt: skip
def test_a_nested_or_empty_state_dict_is_told(
    tmp_path: Path, wrap: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    torch.save(wrap({"a.weight": torch.zeros(3)}), tmp_path / "model.ckpt")
    with pytest.raises(BaseModelError, match=f"not a complete model.*{words}"):
        load_base(str(tmp_path / "model.ckpt"))


def test_bytes_too_many_or_too_few_are_counted(whole: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    content = whole.read_bytes()
    whole.write_bytes(content + b"\n\n\n")
    with pytest.raises(BaseModelError, match="3 bytes behind its last tensor"):
        load_base(str(whole))
    whole.write_bytes(content[:-1000])
    with pytest.raises(BaseModelError, match="ends 1,000 bytes early"):
        load_base(str(whole))
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "folder"))
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(BaseModelError, match="ends 7 bytes early"):
        load_base(str(folder))


def test_which_tensors_are_missing_unknown_or_misshapen(whole: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    weights = load_file(whole)
    prefix = "model.diffusion_model.out.2"
    del weights[f"{prefix}.bias"]
    weights |= {f"{prefix}.weight": torch.zeros(3), "model.diffusion_model.out.0.strange": torch.zeros(1)}
    save_file(weights, whole)
    with pytest.raises(BaseModelError, match=r"Missing: conv_out\.bias; Unknown: conv_norm_out\.strange; Other shapes: "
                       r"conv_out\.weight is 3 instead of 4 x 8 x 3 x 3"):  # fmt: skip
        load_base(str(whole))
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "folder"))
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    del weights["text_model.final_layer_norm.bias"]
    save_file(weights | {"text_model.final_layer_norm.weight": torch.zeros(3)}, file, {"format": "pt"})
    with pytest.raises(BaseModelError, match=r"text_encoder is not whole.*lacks \S*final_layer_norm\.bias.*"
                       r"final_layer_norm\.weight is \[3\] instead of \[16\]"):  # fmt: skip
        load_base(str(folder))


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_cloned_folder_of_pointers_is_named(tiny_base_folder: Path, tmp_path: Path) -> None:
    for name in ("unet/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"):
        folder = Path(shutil.copytree(tiny_base_folder, tmp_path / name.partition("/")[0]))
        (folder / name).write_bytes(POINTER)
        with pytest.raises(BaseModelError, match="is a Git LFS pointer"):
            load_base(str(folder))


def test_a_folder_around_a_model_is_told_what_to_name(whole: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--owner--model"
    (cache / "refs").mkdir(parents=True)
    shutil.copytree(tiny_base_folder, cache / "snapshots" / "0123abc")
    with pytest.raises(BaseModelError, match='cache of the Hub repository "owner/model".*snapshots/0123abc'):
        load_base(str(cache))
    with pytest.raises(BaseModelError, match='cache of the Hub.*for example "owner/model"'):
        load_base(str(tmp_path / "hub"))
    (tmp_path / "one").mkdir()
    shutil.move(whole, tmp_path / "one" / "model.safetensors")
    with pytest.raises(BaseModelError, match=r'holds one file, "model\.safetensors"'):
        load_base(str(tmp_path / "one"))
    with pytest.raises(BaseModelError, match="one part of a diffusers model"):
        load_base(str(tiny_base_folder / "unet"))
    onnx = Path(shutil.copytree(tiny_base_folder, tmp_path / "onnx"))
    (onnx / "model_index.json").write_text(json.dumps({"_class_name": "OnnxStableDiffusionPipeline"}))
    with pytest.raises(BaseModelError, match="is an ONNX model"):
        load_base(str(onnx))


def test_the_command_line_names_a_pointer_and_no_program(tmp_path: Path) -> None:
    """It was called malware before: 'It would run ...'."""
    (tmp_path / "model.ckpt").write_bytes(POINTER)
    command = [sys.executable, "-m", "dreambooth", "generate", "--model", str(tmp_path / "model.ckpt"), "--prompt", "x"]
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], capture_output=True, text=True, timeout=180
    )
    assert done.returncode != 0
    assert '"model.ckpt" is a Git LFS pointer.' in done.stderr
    assert "Traceback" not in done.stderr
