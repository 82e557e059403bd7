"""Single files as they are found: old and new names, EMA alone, half precision, SD 2.x; each gives the same base."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import BaseModelError
from dreambooth.export.single_file import convert
from dreambooth.formats.original import UNET, unet_names
from dreambooth.models import base as base_module
from dreambooth.models import sd_file
from dreambooth.models.base import Base, load_base
from tests.harness.tiny import tiny_base

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sd2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("sd2") / "base", is_sd2=True, seed=3, prediction_type="v_prediction")


@pytest.fixture(autouse=True)
def tiny_starter(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tiny base in the starter's place, whose configuration narrow single files are read by."""
    for module in (base_module, sd_file):
        monkeypatch.setattr(module, "starter_folder", lambda: tiny_base_folder)


def same_parts(one: Base, other: Base) -> bool:
    parts = ("unet", "text_encoder", "vae")
    pairs = [(getattr(one, part).state_dict(), getattr(other, part).state_dict()) for part in parts]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


def rewritten(folder: Path, tmp_path: Path, change: Any) -> Path:
    weights = load_file(convert(folder, tmp_path / "whole.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in change(weights).items()}, tmp_path / "changed.safetensors")
    return tmp_path / "changed.safetensors"


def flat_text_names(weights: Weights) -> Weights:
    return {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in weights.items()}


def no_position_ids(weights: Weights) -> Weights:
    return {name: tensor for name, tensor in weights.items() if not name.endswith("position_ids")}


def float_position_ids(weights: Weights) -> Weights:
    return {name: tensor.float() for name, tensor in weights.items()}


def only_averages(weights: Weights) -> Weights:
    """Put the UNet where a training keeps its moving average: under its name without the dots."""
    result = {name: tensor for name, tensor in weights.items() if not name.startswith(UNET)}
    for name in unet_names((8, 16, 24, 24)):
        result["model_ema.diffusion_model" + name.replace(".", "")] = weights[UNET + name]
    return result | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}


def averages_beside(weights: Weights) -> Weights:
    other = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    return only_averages(other) | weights


def training_leftovers(weights: Weights) -> Weights:
    loss = {"first_stage_model.loss.logvar": torch.ones(1)}
    return weights | loss | {name: torch.ones(1000) for name in ("betas", "alphas_cumprod")}


def linear_vae_attention(weights: Weights) -> Weights:
    return {
        name: tensor[:, :, 0, 0] if ".attn_1." in name and tensor.ndim == 4 else tensor
        for name, tensor in weights.items()
    }


@pytest.mark.parametrize(
    "change",
    [
        flat_text_names, no_position_ids, float_position_ids, only_averages, averages_beside, training_leftovers,
        linear_vae_attention,
    ],
)  # fmt: skip
def test_files_of_every_age_give_the_same_base(tiny_base_folder: Path, tmp_path: Path, change: Any) -> None:
    read = load_base(str(rewritten(tiny_base_folder, tmp_path, change)))
    assert same_parts(read, load_base(str(tiny_base_folder)))
    assert len(read.tokenizer) == len(load_base(str(tiny_base_folder)).tokenizer)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_checkpoint_is_read_wrapped_or_not_and_in_torchs_old_format(
    tiny_base_folder: Path, tmp_path: Path, wrapped: bool
) -> None:
    weights = load_file(convert(tiny_base_folder, tmp_path / "whole.safetensors"))
    content = {"state_dict": weights, "global_step": 7, "epoch": 1} if wrapped else weights
    for old in (True, False):
        torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=not old)
        assert same_parts(load_base(str(tmp_path / "model.ckpt")), load_base(str(tiny_base_folder)))


def test_a_half_precision_file_is_read_in_fp32(tiny_base_folder: Path, tmp_path: Path) -> None:
    read = load_base(str(convert(tiny_base_folder, tmp_path / "half.safetensors", precision="fp16")))
    whole = load_base(str(tiny_base_folder))
    assert {parameter.dtype for parameter in read.unet.parameters()} == {torch.float32}
    assert torch.equal(read.unet.conv_in.weight, whole.unet.conv_in.weight.half().float())


# SD 2.x --------------------------------------------------------------------------------------------------------------


def test_an_sd2_file_gives_the_folder_back(sd2_folder: Path, tmp_path: Path) -> None:
    path = convert(sd2_folder, tmp_path / "sd2.safetensors")
    names = load_file(path).keys()
    assert "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight" in names
    assert "cond_stage_model.model.positional_embedding" in names
    assert not [name for name in names if name.startswith("cond_stage_model.transformer.")]
    read, folder = load_base(str(path)), load_base(str(sd2_folder))
    assert same_parts(read, folder)
    assert read.text_encoder.config.hidden_act == "gelu"
    assert read.unet.config.use_linear_projection
    assert read.noise_scheduler_config["prediction_type"] == "v_prediction"
    assert read.card.native_px == 32


def test_an_original_sd2_file_has_more_than_is_used(sd2_folder: Path, tmp_path: Path) -> None:
    """The original has 24 layers, of which the last is never used, and open_clip's own projection and scale."""

    def as_the_original(weights: Weights) -> Weights:
        prefix = "cond_stage_model.model."
        first = {name: tensor for name, tensor in weights.items() if ".resblocks.0." in name}
        more = {
            name.replace(".resblocks.0.", f".resblocks.{layer}."): tensor.clone()
            for name, tensor in first.items()
            for layer in range(2, 24)
        }
        return weights | more | {f"{prefix}text_projection": torch.ones(16, 16), f"{prefix}logit_scale": torch.ones(())}

    read = load_base(str(rewritten(sd2_folder, tmp_path, as_the_original)))
    assert read.text_encoder.config.num_hidden_layers == 23
    assert same_parts(
        dataclasses.replace(read, text_encoder=read.vae),
        dataclasses.replace(load_base(str(sd2_folder)), text_encoder=load_base(str(sd2_folder)).vae),
    )


@pytest.mark.parametrize(("answer", "kind"), [("noise", "epsilon"), ("nothing of it", "v_prediction")])
def test_an_sd2_file_that_does_not_say_is_asked_what_it_predicts(
    sd2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, kind: str
) -> None:
    from diffusers import UNet2DConditionModel

    path = rewritten(sd2_folder, tmp_path, lambda weights: weights)

    def forward(self: object, noisy: torch.Tensor, *rest: object) -> object:
        return SimpleNamespace(sample=noisy if answer == "noise" else noisy.flip(3))

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward)
    read = load_base(str(path))
    assert read.noise_scheduler_config["prediction_type"] == kind
    assert read.card.native_px == (32 if kind == "epsilon" else 768)


def test_diffusers_reads_our_sd2_file(sd2_folder: Path, tmp_path: Path) -> None:
    """Its own reader takes the open-clip layout of a UNet of that kind for SD 2.x."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    path = convert(sd2_folder, tmp_path / "sd2.safetensors")
    kinds: tuple[tuple[str, Any], ...] = (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    for part, kind in kinds:
        read = kind.from_single_file(str(path), config=str(sd2_folder), subfolder=part, local_files_only=True)
        given = kind.from_pretrained(sd2_folder / part)
        assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in given.state_dict().items())


def test_an_sd2_folder_is_trained_from_its_file(sd2_folder: Path, tmp_path: Path, photos: Path) -> None:
    from dreambooth import Concept, GenerationConfig, TrainingConfig, train
    from dreambooth.pictures.painter import generate

    config = TrainingConfig(
        concepts=(Concept(instance_prompt="photo of dog", instance_data_dir=str(photos)),),
        pretrained_model_name_or_path=str(convert(sd2_folder, tmp_path / "sd2.safetensors")), resolution=32,
        output_dir=str(tmp_path / "run"), max_train_steps=2, train_text_encoder=True, num_crop_variants=1,
        train_batch_size=1, learning_rate=1e-3, lr_warmup_steps=0,
    )  # fmt: skip
    folder = train(config)
    again = load_base(str(convert(folder, tmp_path / "taught.safetensors")))
    assert again.noise_scheduler_config["prediction_type"] == "v_prediction"
    assert not same_parts(again, load_base(str(sd2_folder)))
    request = GenerationConfig(prompt="photo of dog", num_images_per_prompt=1, num_inference_steps=2)
    assert len(generate(tmp_path / "taught.safetensors", request, tmp_path / "pictures")) == 1


# What is missing -----------------------------------------------------------------------------------------------------


def test_the_parts_of_a_folder_may_come_in_shards_or_variants(tiny_base_folder: Path, tmp_path: Path) -> None:
    from huggingface_hub import save_torch_state_dict

    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "folder"))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    file.unlink()
    save_torch_state_dict(
        weights, folder / "unet", filename_pattern="diffusion_pytorch_model{suffix}.safetensors", max_shard_size=200_000
    )
    assert len(list((folder / "unet").glob("*-of-*.safetensors"))) > 1
    text = folder / "text_encoder" / "model.safetensors"
    text.rename(text.with_name("model.fp16.safetensors"))
    whole = convert(tiny_base_folder, tmp_path / "whole.safetensors")
    assert convert(folder, tmp_path / "pieces.safetensors").read_bytes() == whole.read_bytes()


def test_a_file_of_averages_that_lacks_one_is_told(tiny_base_folder: Path, tmp_path: Path) -> None:
    def broken(weights: Weights) -> Weights:
        averages = only_averages(weights)
        del averages["model_ema.diffusion_modelout2weight"]
        return averages

    with pytest.raises(BaseModelError, match="not a complete Stable Diffusion model"):
        load_base(str(rewritten(tiny_base_folder, tmp_path, broken)))
