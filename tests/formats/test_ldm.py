"""The original layout's names, held to a list written down from how the original model is put together."""

from pathlib import Path
from typing import Any

import pytest

from dreambooth.formats import ldm
from dreambooth.models.base import load_base
from tests.harness.original_names import original_text_names, original_unet_names, original_vae_names


@pytest.fixture(scope="module")
def parts(tiny_base_folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    base = load_base(str(tiny_base_folder))
    return base.unet.state_dict(), base.vae.state_dict(), base.text_encoder.state_dict()


def test_the_names_are_the_originals(parts: Any) -> None:
    unet, vae, text = list(original_unet_names()), list(original_vae_names()), list(original_text_names(2))
    assert (len(unet), len(vae), len(text)) == (686, 248, 4 + 16 * 2 + 1)
    wanted = [f"model.diffusion_model.{name}" for name in unet]
    wanted += [f"first_stage_model.{name}" for name in vae]
    wanted += [f"cond_stage_model.transformer.text_model.{name}" for name in text]
    assert set(ldm.to_ldm(*parts)) == set(wanted)


def test_sd15_has_1131_tensors() -> None:
    assert len(list(original_text_names(12))) == 196 + 1
    assert 686 + 248 + 196 + 1 == 1131


# Tensors -------------------------------------------------------------------------------------------------------------


def test_there_and_back_gives_the_same_tensors(parts: Any) -> None:
    import torch

    for part, returned in zip(parts, ldm.from_ldm(ldm.to_ldm(*parts)), strict=True):
        original = {name.removeprefix("text_model."): tensor for name, tensor in part.items()}
        assert returned.keys() == original.keys()
        assert all(torch.equal(returned[name], original[name]) for name in returned)


def test_position_ids_are_whole_numbers_from_0_to_76(parts: Any) -> None:
    ids = ldm.to_ldm(*parts)["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert str(ids.dtype) == "torch.int64"
    assert ids.tolist() == [list(range(77))]


def test_the_vaes_attention_is_made_of_1x1_convolutions(parts: Any) -> None:
    weights = ldm.to_ldm(*parts)
    for name in ("q", "k", "v", "proj_out"):
        assert weights[f"first_stage_model.encoder.mid.attn_1.{name}.weight"].shape == (12, 12, 1, 1)
        assert weights[f"first_stage_model.encoder.mid.attn_1.{name}.bias"].shape == (12,)
    assert weights["first_stage_model.decoder.mid.attn_1.norm.weight"].shape == (12,)


def test_the_unets_projections_keep_their_shape(parts: Any) -> None:
    weights = ldm.to_ldm(*parts)
    assert weights["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (8, 8, 1, 1)
    assert weights["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"].shape == (8, 8)


def test_the_old_and_the_new_names_of_the_vaes_attention_give_one_file(parts: Any) -> None:
    import torch

    unet, vae, text = parts
    old_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = {}
    for name, tensor in vae.items():
        for new_word, old_word in old_names.items():
            name = name.replace(new_word, old_word)
        old[name] = tensor
    assert old.keys() != vae.keys()
    first, second = ldm.to_ldm(unet, vae, text), ldm.to_ldm(unet, old, text)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_text_encoder_is_read_with_and_without_its_prefix(parts: Any) -> None:
    unet, vae, text = parts
    bare = {name.removeprefix("text_model."): tensor for name, tensor in text.items()}
    prefixed = {f"text_model.{name}": tensor for name, tensor in bare.items()}
    assert ldm.to_ldm(unet, vae, bare).keys() == ldm.to_ldm(unet, vae, prefixed).keys()


def test_a_file_with_stored_position_ids_reads_like_one_without(parts: Any) -> None:
    weights = ldm.to_ldm(*parts)
    without = {name: tensor for name, tensor in weights.items() if name != ldm.POSITION_IDS}
    assert ldm.from_ldm(weights)[2].keys() == ldm.from_ldm(without)[2].keys()


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(KeyError, match="controlnet"):
        ldm.unet_key("controlnet.conv.weight", to_original=True)
    with pytest.raises(KeyError, match="banana"):
        ldm.unet_key("down_blocks.0.resnets.0.banana.weight", to_original=True)
