"""One file in the original layout: names and tensors, checked with diffusers' own reader."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.errors import ExportError
from dreambooth.export import disk_room
from dreambooth.export.single_file import convert
from dreambooth.formats import ldm
from dreambooth.models.weights import part_weights


def test_the_layout_has_every_tensor_and_integer_positions(tiny_base_folder: Path, tmp_path: Path) -> None:
    weights = load_file(convert(tiny_base_folder, tmp_path / "model.safetensors"))
    counts = [sum(name.startswith(prefix) for name in weights) for prefix in (ldm.UNET_PREFIX, ldm.VAE_PREFIX)]
    assert counts == [686, 248]
    assert sum(name.startswith(ldm.TEXT_PREFIX) for name in weights) == 4 + 16 * 2 + 1
    assert len(weights) == 686 + 248 + 37
    assert weights[ldm.POSITION_IDS].dtype == torch.int64
    assert weights[ldm.POSITION_IDS].tolist() == [list(range(77))]
    assert weights["first_stage_model.encoder.mid.attn_1.q.weight"].shape == (12, 12, 1, 1)
    landmarks = [
        "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.3.0.op.weight",
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.output_blocks.2.1.conv.weight", "model.diffusion_model.output_blocks.5.2.conv.weight",
        "model.diffusion_model.output_blocks.11.1.proj_out.weight", "model.diffusion_model.out.2.weight",
        "model.diffusion_model.time_embed.2.bias", "first_stage_model.decoder.up.3.block.0.conv1.weight",
        "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight", "first_stage_model.quant_conv.weight",
        "first_stage_model.encoder.down.0.downsample.conv.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc2.bias",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    ]  # fmt: skip
    assert [name for name in landmarks if name not in weights] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_diffusers_reads_equal_tensors_back(tiny_base_folder: Path, tmp_path: Path, suffix: str) -> None:
    from diffusers import StableDiffusionPipeline

    path = convert(tiny_base_folder, tmp_path / f"model{suffix}")
    original = StableDiffusionPipeline.from_pretrained(tiny_base_folder)
    read = StableDiffusionPipeline.from_single_file(str(path), config=str(tiny_base_folder), local_files_only=True)
    for part in ("unet", "vae", "text_encoder"):
        expected, found = getattr(original, part).state_dict(), getattr(read, part).state_dict()
        assert expected.keys() == found.keys()
        assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_half_casts_floats_and_leaves_integers(tiny_base_folder: Path, tmp_path: Path) -> None:
    weights = torch.load(convert(tiny_base_folder, tmp_path / "model.ckpt", precision="fp16"), weights_only=True)[
        "state_dict"
    ]
    assert weights.pop(ldm.POSITION_IDS).dtype == torch.int64
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


def test_names_survive_the_way_there_and_back(tiny_base_folder: Path) -> None:
    parts = [part_weights(tiny_base_folder / part) for part in ("unet", "vae", "text_encoder")]
    unet, vae, text_encoder = ldm.from_ldm(ldm.to_ldm(*parts))
    for found, expected in zip((unet, vae), parts, strict=False):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {f"text_model.{name}" for name in text_encoder} == parts[2].keys()


def test_old_names_of_the_vaes_attention(tiny_base_folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(tiny_base_folder, old)
    file = old / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for ours, theirs in ((new, before) for before, new in ldm.OLD_VAE_ATTENTION):
        weights = {name.replace(f".attentions.0.{ours}.", f".attentions.0.{theirs}."): t for name, t in weights.items()}
    assert any(".proj_attn." in name for name in weights)
    save_file(weights, file)
    expected = load_file(convert(tiny_base_folder, tmp_path / "new.safetensors"))
    found = load_file(convert(old, tmp_path / "old.safetensors"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_progress_reaches_the_end(tiny_base_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert(tiny_base_folder, tmp_path / "m.safetensors", on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (971, 971)
    assert [done for done, _ in seen] == list(range(1, 972))


def test_a_full_disk_is_told_with_numbers_and_leaves_nothing(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "free_bytes", lambda path: 10)
    with pytest.raises(ExportError, match=r"0\.1 GB and 0\.0 GB"):
        convert(tiny_base_folder, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_sd1_model_is_refused(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="lacks unet, vae, text_encoder"):
        convert(tmp_path, tmp_path / "m.safetensors")
    with pytest.raises(ExportError, match="neither"):
        convert(tiny_base_folder, tmp_path / "m.bin")
    other = tmp_path / "deeper"
    shutil.copytree(tiny_base_folder, other)
    config = other / "text_encoder" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_hidden_layers": 3}))
    with pytest.raises(ExportError, match=r"encoder\.layers\.2\."):
        convert(other, tmp_path / "m.safetensors")


def test_use_safetensors_overrules_the_name(tiny_base_folder: Path, tmp_path: Path) -> None:
    path = convert(tiny_base_folder, tmp_path / "model.ckpt", use_safetensors=True)
    assert path.name == "model.safetensors"
    assert len(load_file(path)) == 971
