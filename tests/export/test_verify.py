"""A written file is compared with its folder before it is called done, and the same model gives the same bytes."""

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import ExportError
from dreambooth.export import single_file
from dreambooth.export.single_file import Written, convert, read_model
from dreambooth.export.verify import ComparedPairs, convert_verified, verify
from dreambooth.formats.safetensors_file import Cast, write_safetensors
from dreambooth.models.weights import file_metadata, read_weights
from tests.harness.tiny import tiny_base

SUFFIXES = (".safetensors", ".ckpt")


@pytest.fixture
def taught(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """Return a folder as a run saves it: with its settings, its step, and a licence."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "run" / "400"))
    settings = {
        "concepts": [{"instance_prompt": "photo of zwx dog", "instance_data_dir": "/home/somebody/photos",
                      "class_prompt": "photo of dog", "class_data_dir": "/home/somebody/class"}],
        "pretrained_model_name_or_path": "/home/somebody/models/base", "output_dir": "/home/somebody/runs/dog",
        "pretrained_vae_name_or_path": "/home/somebody/vae", "tokenizer_name": None, "logging_dir": "logs",
        "learning_rate": 1e-6, "max_train_steps": 800, "seed": 3,
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(settings))
    card = json.loads((folder / "card.json").read_text())
    card |= {"step": 400, "licence": "creativeml-openrail-m", "source": "owner/base"}
    (folder / "card.json").write_text(json.dumps(card))
    return folder


# Verified ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("precision", [None, "fp16", "fp32"])
@pytest.mark.parametrize("is_sd2", [False, True])
def test_every_kind_of_file_is_found_equal(tmp_path: Path, suffix: str, precision: object, is_sd2: bool) -> None:
    folder = tiny_base(tmp_path / "base", is_sd2=is_sd2)
    verdict = convert_verified(folder, tmp_path / f"model{suffix}", precision=precision)  # type: ignore[arg-type]
    weights = read_weights(verdict.path)
    assert verdict.num_tensors == len(weights) == (686 + 248 + 37 if not is_sd2 else 686 + 248 + 4 + 2 * 12)
    assert verdict.num_bytes == sum(tensor.nbytes for tensor in weights.values())
    assert str(verdict) == f"Verified: all {len(weights)} tensors match the model."


def changed(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    name = "model.diffusion_model.out.2.bias"
    other = "model.diffusion_model.input_blocks.0.0.bias"
    if kind == "one number":
        weights[name] = weights[name].clone()
        weights[name][0] += 1
    elif kind == "one bit":
        weights[name] = (weights[name].view(torch.int32) ^ 1).view(torch.float32)
    elif kind == "minus zero":
        weights[other] = torch.full_like(weights[other], -0.0)
    elif kind == "missing":
        del weights[name]
    elif kind == "too many":
        weights["model.diffusion_model.extra"] = torch.zeros(1)
    elif kind == "shape":
        weights[name] = weights[name][:, None]
    elif kind == "number format":
        weights[name] = weights[name].half()
    return weights


@pytest.mark.parametrize(
    "kind", ["one number", "one bit", "minus zero", "missing", "too many", "shape", "number format"]
)
def test_a_file_that_differs_in_anything_is_refused(tiny_base_folder: Path, tmp_path: Path, kind: str) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    unet = load_file(file)
    unet["conv_in.bias"].zero_()
    save_file(unet, file)
    seen: list[Written] = []

    def check(written: Written) -> None:
        assert verify(written).num_tensors == 971
        seen.append(written)

    path = convert(folder, tmp_path / "model.safetensors", check=check)
    save_file(changed(load_file(path), kind), tmp_path / "changed.safetensors")
    with pytest.raises(ExportError, match=r"is not the folder's|Missing or not the original's"):
        verify(dataclasses.replace(seen[0], path=tmp_path / "changed.safetensors"))


def test_names_that_are_swapped_the_same_way_in_both_directions_are_found(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors alone cannot show a wrong map: they are compared through it. What it reads back is held to the folder."""
    from dreambooth.formats import ldm
    from dreambooth.models import sd

    right = ldm.from_ldm

    def wrong(weights: dict[str, torch.Tensor]) -> object:
        unet, vae, text = right(weights)
        key, value = "decoder.mid_block.attentions.0.to_k.weight", "decoder.mid_block.attentions.0.to_v.weight"
        return unet, vae | {key: vae[value], value: vae[key]}, text

    monkeypatch.setattr(sd, "from_ldm", wrong)
    with pytest.raises(ExportError, match="Read as a base"):
        convert_verified(tiny_base_folder, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_pair_is_compared_once_and_no_other_pair_takes_its_verdict() -> None:
    compared, cast = ComparedPairs(), Cast()
    one, other, written = torch.ones(9), torch.zeros(9), torch.ones(9, dtype=torch.float16)
    assert compared(one, written, cast)
    assert not compared(other, written, cast)
    assert not compared(one, torch.zeros(9, dtype=torch.float16), cast)
    one.zero_()
    assert compared(one, written, cast), "it was looked at again"


def test_what_fails_the_check_leaves_the_old_file(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"old")
    right = write_safetensors

    def lying(path: Path, weights: dict[str, torch.Tensor], *rest: object, **others: object) -> None:
        name = "first_stage_model.quant_conv.bias"
        right(path, weights | {name: weights[name] + 1}, *rest, **others)  # type: ignore[arg-type]
        right(path.with_name(".honest"), weights, *rest, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(single_file, "write_safetensors", lying)
    with pytest.raises(ExportError, match="quant_conv"):
        convert_verified(tiny_base_folder, out)
    assert out.read_bytes() == b"old"
    (tmp_path / ".honest").unlink()
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(("value", "what"), [("nan", "not finite"), ("inf", "not finite"), ("1e5", "too large")])
def test_weights_that_are_not_finite_or_become_so_are_refused_by_name(
    tiny_base_folder: Path, tmp_path: Path, value: str, what: str
) -> None:
    """1e5 is a number in fp32 and none in fp16; no tokenizer is needed to tell."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    shutil.rmtree(folder / "tokenizer")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["quant_conv.bias"][3] = float(value)
    save_file(weights, file)
    with pytest.raises(ExportError, match=rf"first_stage_model\.quant_conv\.bias.*{what}|{what}.*quant_conv\.bias"):
        convert_verified(folder, tmp_path / "model.safetensors", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    if what == "too large":
        assert convert_verified(folder, tmp_path / "model.safetensors", precision="fp32").num_tensors == 971


# The same bytes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_same_step_gives_the_same_bytes_whatever_it_is_called(taught: Path, tmp_path: Path, suffix: str) -> None:
    """In another process, under another name, from another place, with other dates on the files."""
    first = convert(taught, tmp_path / f"one{suffix}", precision="fp16")
    moved = Path(shutil.copytree(taught, tmp_path / "elsewhere" / "my model", copy_function=shutil.copyfile))
    for file in moved.rglob("*"):
        os.utime(file, (1, 1))
    second = tmp_path / f"quite another name{suffix}"
    code = "import sys; from pathlib import Path; from dreambooth.export.single_file import convert\n"
    code += "convert(Path(sys.argv[1]), Path(sys.argv[2]), precision='fp16')"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", code, str(moved), str(second)], check=True, env=environment, timeout=120)
    hashes = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)}
    assert len(hashes) == 1


def test_the_librarys_own_file_has_the_same_tensors_and_ours_is_aligned(tiny_base_folder: Path, tmp_path: Path) -> None:
    weights = read_model(tiny_base_folder).weights
    write_safetensors(tmp_path / "ours.safetensors", weights, {"b": "ü\n", "a": '"'})
    ours = load_file(tmp_path / "ours.safetensors")
    assert file_metadata(tmp_path / "ours.safetensors") == {"a": '"', "b": "ü\n"}
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], weights[name]) and ours[name].dtype == weights[name].dtype for name in ours)
    raw = (tmp_path / "ours.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    widths = {"I64": 8, "F32": 4}
    assert length % 8 == 0
    assert all(
        (8 + length + about["data_offsets"][0]) % widths[about["dtype"]] == 0
        for name, about in header.items()
        if name != "__metadata__"
    )


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_every_number_format_is_written_as_the_library_reads_it(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {"x": torch.arange(6).reshape(2, 3).to(dtype), "scalar": torch.ones((), dtype=dtype),
               "none": torch.zeros(0, 3, dtype=dtype), "turned": torch.arange(6).reshape(2, 3).to(dtype).T}  # fmt: skip
    write_safetensors(tmp_path / "x.safetensors", weights, {})
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], weights[name]) and read[name].dtype == dtype for name in weights)


# What the file says --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_file_carries_the_recipe_and_no_path(taught: Path, tmp_path: Path, suffix: str) -> None:
    path = convert(taught, tmp_path / f"model{suffix}")
    metadata = torch.load(path, weights_only=True)["metadata"] if suffix == ".ckpt" else file_metadata(path)
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1"
    assert metadata["modelspec.title"] == "photo of zwx dog, step 400"
    assert metadata["modelspec.resolution"] == "32x32"
    assert metadata["modelspec.license"] == "creativeml-openrail-m"
    recipe = json.loads(metadata["dreambooth.recipe"])
    assert recipe["concepts"] == [{"instance_prompt": "photo of zwx dog", "class_prompt": "photo of dog"}]
    assert recipe["pretrained_model_name_or_path"] == "owner/base"
    assert (recipe["step"], recipe["seed"], recipe["learning_rate"]) == (400, 3, 1e-6)
    assert b"somebody" not in path.read_bytes()
    assert str(tmp_path).encode() not in path.read_bytes()


def test_a_v_prediction_sd2_says_so(tmp_path: Path) -> None:
    folder = tiny_base(tmp_path / "base", is_sd2=True, prediction_type="v_prediction")
    metadata = file_metadata(convert(folder, tmp_path / "model.safetensors"))
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert metadata["modelspec.prediction_type"] == "v"
    assert "dreambooth.recipe" not in metadata


def test_damaged_records_beside_the_weights_only_shorten_the_header(taught: Path, tmp_path: Path) -> None:
    (taught / "args.json").write_text("{")
    (taught / "card.json").write_text("[]")
    metadata = file_metadata(convert(taught, tmp_path / "model.safetensors"))
    assert metadata["modelspec.title"] == "Stable Diffusion"
