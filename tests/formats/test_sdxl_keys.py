"""SDXL's original layout: held to names written down apart, to diffusers' own reader, and to a prompt's projection."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bases import random_base
from dreambooth.formats import sdxl_keys
from dreambooth.formats.original import sdxl_names
from dreambooth.models.base import load_base


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_base(str(random_base(tmp_path_factory.mktemp("sdxl"), "sdxl_narrow")))


def parts_of(base: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {name: module.state_dict() for name, module in base.modules().items()}


def test_the_narrow_base_has_every_name_of_sdxls_in_25_million_weights(base: Any) -> None:
    counts = {name: len(module.state_dict()) for name, module in base.modules().items()}
    assert counts == {"unet": 1680, "vae": 248, "text_encoder": 196, "text_encoder_2": 517}
    num_weights = sum(parameter.numel() for module in base.modules().values() for parameter in module.parameters())
    assert 24e6 < num_weights < 27e6


def test_the_names_are_the_originals(base: Any) -> None:
    wanted = sdxl_names((32, 64, 128), (0, 2, 10), (16, 32, 64, 64), (12, 32))
    assert set(sdxl_keys.to_original(parts_of(base))) == wanted
    counts = {
        prefix: sum(name.startswith(prefix) for name in wanted)
        for prefix in (
            "model.diffusion_model.",
            "first_stage_model.",
            "conditioner.embedders.0.",
            "conditioner.embedders.1.",
        )
    }
    # Queries, keys and values are one matrix in open_clip: 4 tensors fewer a layer, and one more, logit_scale.
    assert list(counts.values()) == [1680, 248, 196 + 1, 517 - 4 * 32 + 1]
    assert "model.diffusion_model.output_blocks.2.2.conv.weight" in wanted
    assert "model.diffusion_model.label_emb.0.0.weight" in wanted


def test_there_and_back_gives_the_same_tensors(base: Any) -> None:
    parts = parts_of(base)
    returned = sdxl_keys.from_original(sdxl_keys.to_original(parts))
    for part, tensors in parts.items():
        wanted = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
        assert returned[part].keys() == wanted.keys()
        assert all(torch.equal(returned[part][name], wanted[name]) for name in wanted), part


def test_the_projection_is_transposed_as_diffusers_reads_it(base: Any) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    original = sdxl_keys.to_original(parts_of(base))
    theirs = convert_open_clip_checkpoint(base.text_encoder_2, dict(original), prefix="conditioner.embedders.1.model.")
    own = base.text_encoder_2.state_dict()
    assert torch.equal(theirs["text_projection.weight"], own["text_projection.weight"])
    assert not torch.equal(original["conditioner.embedders.1.model.text_projection"], own["text_projection.weight"])
    for name, tensor in own.items():
        assert torch.equal(theirs[name], tensor), name


def test_diffusers_reads_unet_and_vae_alike(base: Any, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    original = sdxl_keys.to_original(parts_of(base))
    for convert, module in ((convert_ldm_unet_checkpoint, base.unet), (convert_ldm_vae_checkpoint, base.vae)):
        theirs = convert(dict(original), dict(module.config))
        own = module.state_dict()
        assert theirs.keys() == own.keys()
        assert all(torch.equal(theirs[name].reshape(own[name].shape), own[name]) for name in own)


def test_loras_have_the_originals_block_names_and_are_read_back(base: Any) -> None:
    from dreambooth.formats.layout import SDXL
    from dreambooth.formats.lora_keys import UP, lora_key, lora_modules

    parts = {name: tensors for name, tensors in parts_of(base).items() if name != "vae"}
    modules = lora_modules(parts, "linear")
    counts = [sum(module.part == part for module in modules) for part in ("unet", "text_encoder", "text_encoder_2")]
    assert counts == [722, 72, 192]
    names = {module.name: SDXL.lora_name(module.name) for module in lora_modules(parts, "all")}
    assert len(set(names.values())) == len(names)
    wanted = {name.rpartition(".")[0] for name in sdxl_names((8, 16, 24), (0, 2, 10), (4, 8, 12, 12), (12, 32))}
    originals = {name.removeprefix("model.diffusion_model.").replace(".", "_") for name in wanted}
    for name, in_file in names.items():
        key = lora_key(in_file + UP)
        assert key is not None
        assert key.name == name
        if in_file.startswith("lora_unet_"):
            assert in_file.removeprefix("lora_unet_") in originals
        else:
            assert in_file.startswith(("lora_te1_text_model_", "lora_te2_text_model_"))
