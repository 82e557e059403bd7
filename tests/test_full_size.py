"""SD 1.5's own sizes with random weights: the whole key list, both file formats, and fp16 in 2.1 GB."""

import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth.export.single_file import convert
from dreambooth.models.sd import SD15_CONFIGS, SD15_SCHEDULER
from tests.harness.original_names import original_text_names, original_unet_names, original_vae_names

pytestmark = pytest.mark.full_size


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with SD 1.5's own sizes in fp16; its tensors are filled with small random numbers."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from dreambooth.models.base import Base
    from dreambooth.models.card import BaseCard
    from dreambooth.models.saving import write_model
    from dreambooth.starter.tokens import write_tokenizer

    folder = tmp_path_factory.mktemp("full") / "base"
    write_tokenizer(folder / "tokenizer", ["photo"])
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(SD15_CONFIGS["unet"])
        vae = AutoencoderKL.from_config(SD15_CONFIGS["vae"])
        text_encoder = CLIPTextModel(CLIPTextConfig(**SD15_CONFIGS["text_encoder"]))
    generator = torch.Generator().manual_seed(0)
    for part in (unet, vae, text_encoder):
        part.half().to_empty(device="cpu")
        for tensor in part.state_dict().values():
            if tensor.is_floating_point():  # other than the next one's, so that swapped tensors show
                tensor.fill_(float(torch.rand((), generator=generator)))
                tensor.flatten()[: min(1000, tensor.numel())].uniform_(generator=generator)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    write_model(folder, Base("full", unet, text_encoder, vae, tokenizer, SD15_SCHEDULER, BaseCard()), torch.float16)
    return folder


def test_the_file_has_sd15s_tensors_and_reads_back_equal(full_size: Path, tmp_path: Path) -> None:
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file

    path = convert(full_size, tmp_path / "model.safetensors", precision="fp16")
    weights = load_file(path)
    wanted = {f"model.diffusion_model.{name}" for name in original_unet_names()}
    wanted |= {f"first_stage_model.{name}" for name in original_vae_names()}
    wanted |= {f"cond_stage_model.transformer.text_model.{name}" for name in original_text_names(12)}
    assert len(wanted) == 686 + 248 + 196 + 1
    assert weights.keys() == wanted
    assert sum(tensor.numel() for name, tensor in weights.items() if "position_ids" not in name) == (
        859_520_964 + 83_653_863 + 123_060_480  # the UNet, the VAE and the text encoder of SD 1.5
    )
    assert weights["model.diffusion_model.input_blocks.1.1.proj_in.weight"].shape == (320, 320, 1, 1)
    assert weights["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    del weights
    kinds: tuple[tuple[str, Any], ...] = (("unet", UNet2DConditionModel), ("vae", AutoencoderKL))
    for part, kind in kinds:
        options = {"config": str(full_size), "subfolder": part, "local_files_only": True, "torch_dtype": torch.float16}
        read = kind.from_single_file(str(path), **options).state_dict()
        original = load_file(full_size / part / "diffusion_pytorch_model.safetensors")
        assert read.keys() == original.keys()
        assert all(torch.equal(read[name], original[name]) for name in read)


def test_a_conversion_with_its_check_holds_less_than_a_gigabyte_of_its_own(full_size: Path, tmp_path: Path) -> None:
    """Beyond pages of files, of which a small machine gives up any."""
    from benchmarks.conversion import measured

    command = [sys.executable, "-m", "dreambooth", "convert"]
    found = measured("ours", command, full_size, tmp_path, ".safetensors", half=True)
    assert found.failed == ""
    assert found.file_bytes > 2.1e9
    assert found.peak_own_bytes < 1e9
