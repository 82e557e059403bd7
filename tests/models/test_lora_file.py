"""LoRA files of every dialect give the same factors; what is no such LoRA is refused by what it is."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.errors import BaseModelError
from dreambooth.formats.lora_keys import LoraModule, lora_modules
from dreambooth.models.adapter import fitted, module_of
from dreambooth.models.base import Base, load_base
from dreambooth.models.lora_file import read_lora
from dreambooth.models.low_rank import Factors
from tests.harness.lora_files import Tensors, dotted, kohya, layers_of, random_factors, written


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> Base:
    return load_base(str(tiny_base_folder))


def attention(base: Base) -> list[LoraModule]:
    return lora_modules({part: getattr(base, part).state_dict() for part in ("unet", "text_encoder")}, "attention")


def renamed(tensors: Tensors, old: str, new: str) -> Tensors:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


def refuse_differences(found: Mapping[str, Factors], wanted: Mapping[str, torch.Tensor]) -> None:
    """Fail where the factors are not those of these changes."""
    assert found.keys() == wanted.keys()
    wrong = [name for name, change in wanted.items() if not torch.allclose(found[name].product(), change, atol=1e-6)]
    assert wrong == []


def test_every_layer_of_a_base_has_a_name_and_a_place(base: Base, tmp_path: Path) -> None:
    """Of LyCORIS's preset `full` as well: the first and last convolution and the time embedding."""
    modules = layers_of(base)
    assert {f"lora_unet_{name}" for name in ("conv_in", "conv_out", "time_embedding_linear_1")} < {
        module.name for module in modules
    }
    factors = random_factors(base, modules, lambda number: 1 + number % 3)
    path = written(tmp_path / "full.safetensors", kohya(factors))
    fit = fitted(base, read_lora(path).factors)
    assert (len(fit.modules), fit.missing, fit.misshapen) == (len(modules), (), ())
    assert {one.place.name: one.place for one in fit.modules} == {module.name: module for module in modules}


@pytest.mark.parametrize("alphas", ["none", "one", "mixed"])
def test_alpha_and_rank_of_each_module_count(base: Base, tmp_path: Path, alphas: str) -> None:
    factors = random_factors(base, layers_of(base), lambda number: 1 + number % 4)
    scales = {"none": lambda rank: 1.0, "one": lambda rank: 3.0 / rank, "mixed": lambda rank: 0.5 + rank}[alphas]
    ranks = {name: len(one.down) for name, one in factors.items()}
    told = None if alphas == "none" else {name: scales(rank) * rank for name, rank in ranks.items()}
    lora = read_lora(written(tmp_path / "a.safetensors", kohya(factors, told)))
    refuse_differences(lora.factors, {name: scales(ranks[name]) * one.product() for name, one in factors.items()})
    assert lora.alphas == (told or dict.fromkeys(factors))
    assert (lora.rank, lora.dialects) == (4, ("kohya",))


DIALECTS: dict[str, Callable[[list[LoraModule], dict[str, Factors]], Tensors]] = {
    "kohya on newer transformers": lambda modules, factors: renamed(kohya(factors), "lora_te_text_model_", "lora_te_"),
    "diffusers to kohya": lambda modules, factors: renamed(kohya(factors), "lora_te_text_model_", "lora_te1_"),
    "peft": lambda modules, factors: dotted(modules, factors, (".lora_A.weight", ".lora_B.weight")),
    "peft, an adapter's name": lambda modules, factors: dotted(
        modules, factors, (".lora_A.default.weight", ".lora_B.default.weight")
    ),
    "peft, older transformers": lambda modules, factors: renamed(
        dotted(modules, factors, (".lora_A.weight", ".lora_B.weight")), "text_encoder.", "text_encoder.text_model."
    ),
    "diffusers before peft": lambda modules, factors: dotted(
        modules, factors, (".lora.down.weight", ".lora.up.weight")
    ),
    "diffusers' text encoder before peft": lambda modules, factors: dotted(
        modules, factors, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
    ),
    "attention processors": lambda modules, factors: {
        re.sub(r"\.(to|q|k|v|out)_(q|k|v|out|proj)(\.0)?_lora", _of_processor, name): tensor
        for name, tensor in dotted(modules, factors, ("_lora.down.weight", "_lora.up.weight")).items()
    },
}


def _of_processor(match: re.Match[str]) -> str:
    """Return the layer's name in a processor: `to_q` of `q_proj` and of `to_q`."""
    return f".processor.to_{match[2]}_lora" if match[1] == "to" else f".to_{match[1]}_lora"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_the_same_factors(base: Base, tmp_path: Path, dialect: str) -> None:
    modules = attention(base)
    factors = random_factors(base, modules)
    tensors = DIALECTS[dialect](modules, factors)
    assert tensors.keys() != kohya(factors).keys()
    found = read_lora(written(tmp_path / "a.safetensors", tensors))
    refuse_differences(found.factors, {name: one.product() for name, one in factors.items()})


def test_the_names_of_the_first_loras_are_those_that_diffusers_wrote(base: Base, tmp_path: Path) -> None:
    """Written down here by themselves: the names above are made from ours."""
    width = base.unet.config.block_out_channels[0]
    down, up = torch.ones(1, width), torch.ones(width, 1)
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor"
    names = [f"{block}.to_q_lora", f"{block}.to_out_lora"]
    tensors = {f"{name}.{end}.weight": {"down": down, "up": up}[end] for name in names for end in ("down", "up")}
    torch.save(tensors, tmp_path / "pytorch_lora_weights.bin")
    found = read_lora(tmp_path / "pytorch_lora_weights.bin")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1"
    assert [*found.factors] == [f"{module}_to_out_0", f"{module}_to_q"]
    assert len(fitted(base, found.factors).modules) == 2


def test_lycoris_convolutions_in_three_steps(base: Base, tmp_path: Path) -> None:
    """The change is that of the three convolutions one after the other."""
    (module,) = [one for one in layers_of(base) if one.name == "lora_unet_up_blocks_1_resnets_0_conv1"]
    layer = module_of(base, module)
    num_out, num_in = layer.weight.shape[:2]
    generator = torch.Generator().manual_seed(3)
    down, mid, up = (
        torch.randn(shape, generator=generator) for shape in ((3, num_in, 1, 1), (3, 3, 3, 3), (num_out, 3, 1, 1))
    )
    tensors = {f"{module.name}.lora_{name}.weight": one for name, one in (("down", down), ("mid", mid), ("up", up))}
    found = read_lora(written(tmp_path / "a.safetensors", tensors | {f"{module.name}.alpha": torch.tensor(1.5)}))
    x = torch.randn(1, num_in, 4, 4, generator=generator)
    conv2d = torch.nn.functional.conv2d
    wanted = 0.5 * conv2d(conv2d(conv2d(x, down), mid, padding=1), up)
    (one,) = fitted(base, found.factors).modules
    assert torch.allclose(conv2d(x, one.factors.product(), padding=1), wanted, atol=1e-4)


def test_a_projection_may_be_linear_or_a_convolution_of_one_pixel(base: Base, tmp_path: Path) -> None:
    modules = [one for one in layers_of(base) if one.name.endswith("_proj_in")]
    factors = random_factors(base, modules)
    flat = {name: Factors(one.up.flatten(1), one.down.flatten(1)) for name, one in factors.items()}
    fit = fitted(base, read_lora(written(tmp_path / "a.safetensors", kohya(flat))).factors)
    assert len(fit.modules) == len(modules)
    refuse_differences({one.place.name: one.factors for one in fit.modules},
                       {name: one.product() for name, one in factors.items()})  # fmt: skip


LINEAR = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
DOTTED = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def pair(name: str, num_in: int = 768) -> Tensors:
    return {f"{name}.lora_down.weight": torch.ones(2, num_in), f"{name}.lora_up.weight": torch.ones(320, 2)}


ONE = torch.ones(2, 2)
REFUSED: dict[str, tuple[Tensors, str]] = {
    "LoHa": ({f"{LINEAR}.hada_w1_a": ONE}, "is a LoHa"),
    "LoKr": ({f"{LINEAR}.lokr_w1": ONE, f"{LINEAR}.alpha": torch.tensor(1.0)}, "is a LoKr"),
    "DoRA": (pair(LINEAR) | {f"{LINEAR}.dora_scale": ONE}, "is a DoRA"),
    "peft's DoRA": (pair(LINEAR) | {f"{DOTTED}.lora_magnitude_vector": ONE}, "is a DoRA"),
    "OFT": ({"oft_unet_mid_block_attentions_0.oft_blocks": ONE}, "is an OFT"),
    "diff": (pair(LINEAR) | {f"{LINEAR}.diff_b": ONE}, "whole differences of weights"),
    "norms": (pair(LINEAR) | {"lora_unet_mid_block_resnets_0_norm1.w_norm": ONE}, "also changes norms"),
    "GLoRA": ({f"{LINEAR}.{one}.weight": ONE for one in ("a1", "a2", "b1", "b2")}, "is a GLoRA"),
    "biases": (pair(LINEAR) | {f"{DOTTED}.lora_B.bias": ONE}, "is a LoRA with biases"),
    "FLUX": (pair("lora_unet_double_blocks_0_img_attn_proj"), "is a LoRA for a later family"),
    "SD 3": ({"transformer.transformer_blocks.0.attn.to_k.lora_A.weight": ONE}, "is a LoRA for a later family"),
    "an embedding": ({"emb_params": torch.ones(4, 768)}, r"is not a LoRA. It is an embedding \(textual inversion\)"),
    "a whole model": (
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(320, 4, 3, 3)}, "not a LoRA. It is a whole model"
    ),
    "a VAE": ({"decoder.conv_in.weight": ONE}, "is not a LoRA. It is a VAE alone"),
    "something": ({"a.b": ONE}, "is not a LoRA"),
    "an unknown dialect": ({f"{LINEAR}.lora_left.weight": ONE}, "a kind of LoRA that cannot be read here. Not known"),
    "one factor": ({f"{LINEAR}.lora_down.weight": ONE}, "damaged. lora_unet_mid.* has one of two factors"),
    "other ranks": ({f"{LINEAR}.lora_down.weight": ONE, f"{LINEAR}.lora_up.weight": torch.ones(4, 3)}, "do not fit"),
    "NaN": (pair(LINEAR) | {f"{LINEAR}.lora_up.weight": torch.full((320, 2), torch.nan)}, "not finite"),
    "infinite alpha": (pair(LINEAR) | {f"{LINEAR}.alpha": torch.tensor(torch.inf)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_lora_is_refused_by_what_it_is(name: str, tmp_path: Path) -> None:
    tensors, told = REFUSED[name]
    with pytest.raises(BaseModelError, match=told) as refused:
        read_lora(written(tmp_path / "a.safetensors", tensors))
    assert str(refused.value).count(". ") <= 2, "three sentences at most"
    assert '"a.safetensors"' in str(refused.value)


def test_an_embedding_inside_is_told_as_not_used(tmp_path: Path) -> None:
    lora = read_lora(written(tmp_path / "a.safetensors", pair(LINEAR) | {"bundle_emb.zwx.string_to_param.*": ONE}))
    assert lora.not_used == ("bundle_emb.zwx.string_to_param.*",)
    assert [*lora.factors] == [LINEAR]


@pytest.mark.parametrize(
    ("num_in", "metadata", "family"),
    [(768, {"ss_base_model_version": "sdxl_base_v1-0"}, "SD 1.x"), (1024, {}, "SD 2.x"), (2048, {}, "SDXL"),
     (64, {"ss_base_model_version": "sd_v1"}, "SD 1.x"), (64, {"modelspec.architecture": "stable-diffusion-v2-768-v"},
     "SD 2.x"), (64, {}, "")],
)  # fmt: skip
def test_shapes_tell_the_family_and_the_header_where_they_do_not(
    tmp_path: Path, num_in: int, metadata: dict[str, str], family: str
) -> None:
    lora = read_lora(written(tmp_path / "a.safetensors", pair(LINEAR, num_in), metadata))
    assert (lora.family, lora.text_width) == (family, num_in)


# Files of diffusers and peft themselves ------------------------------------------------------------------------------


def trained_by_peft(base: Base, **settings: Any) -> tuple[Any, Any]:
    """Return copies of UNet and text encoder with peft's adapters, of random numbers."""
    import copy

    from peft import LoraConfig

    generator = torch.Generator().manual_seed(9)
    parts = []
    for part, targets in (("unet", ["to_q", "to_out.0", "ff.net.2", "conv1", "proj_in"]),
                          ("text_encoder", ["q_proj", "fc1"])):  # fmt: skip
        module = copy.deepcopy(getattr(base, part))
        module.add_adapter(LoraConfig(target_modules=targets, **settings))
        for name, weights in module.named_parameters():
            if "lora_" in name:
                weights.data = 0.1 * torch.randn(weights.shape, generator=generator)
        parts.append(module)
    return parts[0], parts[1]


def changes_of(**parts: Any) -> dict[str, torch.Tensor]:
    """Return what peft adds to each weight, by kohya's names."""
    from dreambooth.formats.lora_keys import lora_module

    return {
        lora_module(part, f"{path}.weight").name: layer.get_delta_weight("default").detach()
        for part, module in parts.items()
        for path, layer in module.named_modules()
        if hasattr(layer, "get_delta_weight")
    }


@pytest.mark.parametrize(
    "settings",
    [{"r": 4, "lora_alpha": 8}, {"r": 4, "lora_alpha": 2, "use_rslora": True},
     {"r": 2, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1, "fc1": 3}, "rank_pattern": {"to_q": 3}}],
    ids=["alpha", "rslora", "patterns"],
)  # fmt: skip
def test_what_diffusers_saves_is_read_as_peft_applies_it(base: Base, tmp_path: Path, settings: dict[str, Any]) -> None:
    from diffusers import StableDiffusionPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import get_peft_model_state_dict

    unet, text_encoder = trained_by_peft(base, **settings)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(unet),
        text_encoder_lora_layers=get_peft_model_state_dict(text_encoder),
        **_collate_lora_metadata({"unet": unet, "text_encoder": text_encoder}),
    )  # fmt: skip
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert lora.dialects == ("diffusers",)
    refuse_differences(lora.factors, changes_of(unet=unet, text_encoder=text_encoder))


def test_what_peft_saves_needs_its_settings_beside_it(base: Base, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base.unet, LoraConfig(r=2, lora_alpha=6, target_modules=["to_q"], init_lora_weights=False))
    wanted = changes_of(unet=model.base_model.model)
    model.save_pretrained(tmp_path)
    model.unload()
    file = tmp_path / "adapter_model.safetensors"
    lora = read_lora(file)
    refuse_differences(lora.factors, wanted)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(BaseModelError, match=r"scale of the LoRA .* is not known"):
        read_lora(file)
