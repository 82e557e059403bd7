"""Bases from every kind of source, and what is said of the ones that cannot be used."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.errors import BaseModelError
from dreambooth.export.single_file import convert
from dreambooth.models import base as bases
from dreambooth.models import sd_file
from dreambooth.models.base import Base, load_base, read_card
from dreambooth.models.fingerprint import weights_fingerprint
from dreambooth.models.saving import write_model

PARTS = ("unet", "vae", "text_encoder")


def weights_of(base: Base) -> dict[str, torch.Tensor]:
    return {f"{part}.{name}": tensor for part in PARTS for name, tensor in getattr(base, part).state_dict().items()}


def assert_same_weights(first: Base, second: Base) -> None:
    one, other = weights_of(first), weights_of(second)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture
def tiny_is_the_starter(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Single files tell their widths, not their configuration: the starter's is taken for narrow ones."""
    monkeypatch.setattr(bases, "starter_folder", lambda: tiny_base_folder)
    monkeypatch.setattr(sd_file, "starter_folder", lambda: tiny_base_folder)


def test_a_folder_loads_in_fp32_and_evaluation_mode(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base_folder))
    half = tmp_path / "half"
    half.mkdir()
    rewritten(base, half, torch.float16)
    loaded = load_base(str(half))
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(loaded).values() if tensor.is_floating_point())
    assert not any(getattr(loaded, part).training for part in PARTS)
    assert loaded.card.native_px == 32


def rewritten(base: Base, folder: Path, dtype: torch.dtype) -> None:
    write_model(folder, base, dtype)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
@pytest.mark.usefixtures("tiny_is_the_starter")
def test_a_single_file_gives_the_same_weights(tiny_base_folder: Path, tmp_path: Path, suffix: str) -> None:
    path = convert(tiny_base_folder, tmp_path / f"model{suffix}")
    loaded = load_base(str(path))
    assert_same_weights(load_base(str(tiny_base_folder)), loaded)
    assert loaded.tokenizer("photo of zwx dog").input_ids == load_base(str(tiny_base_folder)).tokenizer(
        "photo of zwx dog"
    ).input_ids  # fmt: skip
    assert loaded.card.native_px == 32


def test_a_name_in_the_models_folder(tiny_base_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "mine")
    assert_same_weights(load_base("mine", models_dir=tmp_path), load_base(str(tiny_base_folder)))


def test_writing_leaves_the_models_alone_and_opens_with_diffusers(tiny_base_folder: Path, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors import safe_open

    base = load_base(str(tiny_base_folder))
    before = {name: tensor.clone() for name, tensor in weights_of(base).items()}
    folder = tmp_path / "written"
    folder.mkdir()
    rewritten(base, folder, torch.float16)
    after = weights_of(base)
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)

    assert [file for file in folder.glob("*/config.json") if "_name_or_path" in file.read_text()] == []
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert pipeline.safety_checker is None
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor.float(), before[f"unet.{name}"].half().float()), name
    with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as file:
        assert all(name.startswith("text_model.") for name in file.keys())  # noqa: SIM118 - no mapping
    assert len(json.loads((folder / "tokenizer" / "vocab.json").read_text())) == len(base.tokenizer)
    assert (folder / "tokenizer" / "merges.txt").read_text().startswith("#version")


def test_the_fingerprint_follows_the_weights(tiny_base_folder: Path) -> None:
    base = load_base(str(tiny_base_folder))
    first = weights_fingerprint(base.unet)
    assert weights_fingerprint(load_base(str(tiny_base_folder)).unet) == first
    with torch.no_grad():
        base.unet.conv_in.weight[0, 0, 0, 0] += 1
    assert weights_fingerprint(base.unet) != first


def test_the_seed_notebooks_revision_fp16_is_a_variant(monkeypatch: pytest.MonkeyPatch, tiny_base_folder: Path) -> None:
    asked: dict[str, Any] = {}

    def downloaded(name: str, revision: str | None, variant: str | None, token: str | None, **_: Any) -> Path:
        asked.update(name=name, revision=revision, variant=variant, token=token)
        return tiny_base_folder

    monkeypatch.setattr(bases, "downloaded_base", downloaded)
    with pytest.raises(BaseModelError):  # the stand-in folder has no fp16 files
        load_base("owner/model", revision="fp16", token="hf_x")
    assert asked == {"name": "owner/model", "revision": None, "variant": "fp16", "token": "hf_x"}


def test_cards(tiny_base_folder: Path) -> None:
    assert read_card(str(tiny_base_folder)).native_px == 32
    assert read_card("owner/unknown").native_px == 512
    assert read_card("starter").is_toy
    assert read_card("starter").recipes["full"]["resolution"] == 64


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("./nowhere", "no base model"),
        ("just-a-word", "owner/name"),
        ("owner/not-cached", "not in the local cache"),
    ],
)
def test_names_that_lead_nowhere(name: str, words: str) -> None:
    with pytest.raises(BaseModelError, match=words):
        load_base(name)


def hub_error(kind: str) -> Exception:
    import httpx
    from huggingface_hub import errors

    request = httpx.Request("GET", "https://hub.invalid")
    error: Exception = getattr(errors, kind)("said no", response=httpx.Response(404, request=request))
    return error


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "mistyped"),
        ("RevisionNotFoundError", "no revision"),
        ("HfHubHTTPError", "could not be downloaded"),
    ],
)
def test_each_refusal_of_the_hub_has_its_sentence(kind: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(BaseModelError, match=words):
        load_base("owner/model", revision="r")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conditioner.embedders.0.model.x"], "SDXL"),
        (["lora_unet_down.lora_up.weight"], "LoRA"),
        (["decoder.conv_in.weight"], "VAE alone"),
        (["something"], "not a complete model"),
        (["text_model.encoder.layers.0.self_attn.q_proj.weight"], "text encoder alone"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one part of a diffusers folder"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["emb_params"], "textual inversion"),
        (["double_blocks.0.img_attn.qkv.weight"], "later family"),
        (["model.diffusion_model.joint_blocks.0.x"], "later family"),
    ],
)
def test_files_that_are_something_else_are_named(names: list[str], words: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / "file.safetensors")
    with pytest.raises(BaseModelError, match=words):
        load_base(str(tmp_path / "file.safetensors"))


@pytest.mark.parametrize(("inputs", "words"), [(5, "depth"), (7, "upscaler"), (8, "pix2pix"), (6, "takes 6 numbers")])
def test_files_whose_unet_takes_more_are_named(inputs: int, words: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, inputs, 3, 3)}, tmp_path / "f.safetensors"
    )
    with pytest.raises(BaseModelError, match=words):
        load_base(str(tmp_path / "f.safetensors"))


def test_an_inpainting_file_and_folder_are_named(tmp_path: Path, tiny_base_folder: Path) -> None:
    from safetensors.torch import save_file

    first = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 9, 3, 3)}
    save_file(first, tmp_path / "inpainting.safetensors")
    with pytest.raises(BaseModelError, match="inpainting"):
        load_base(str(tmp_path / "inpainting.safetensors"))
    shutil.copytree(tiny_base_folder, tmp_path / "folder")
    config_path = tmp_path / "folder" / "unet" / "config.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | {"in_channels": 9}))
    with pytest.raises(BaseModelError, match="inpainting"):
        load_base(str(tmp_path / "folder"))


class Canary:
    """A pickle that would create a file when it is read by a careless loader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_ckpt_that_is_a_program_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Canary(tmp_path / "fired")}}, tmp_path / "evil.ckpt")
    with pytest.raises(BaseModelError, match="more than weights"):
        load_base(str(tmp_path / "evil.ckpt"))
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps(Canary(tmp_path / "fired")))
    with pytest.raises(BaseModelError):
        load_base(str(tmp_path / "plain.ckpt"))
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.ckpt"])
def test_a_damaged_file_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{not json")
    with pytest.raises(BaseModelError, match=name):
        load_base(str(tmp_path / name))


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="model_index.json"):
        load_base(str(tmp_path))
