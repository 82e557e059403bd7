"""SDXL in one file: converted, read again here and by diffusers' own reader."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dreambooth.errors import BaseModelError
from dreambooth.export.verify import convert_verified
from dreambooth.formats.layout import family_of
from dreambooth.models import base as base_module
from dreambooth.models.base import load_base
from dreambooth.models.weights import file_metadata, read_weights
from tests.harness.tiny import tiny_sdxl_base

PROMPT = "photo of a dog"


@pytest.fixture(autouse=True)
def _its_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file holds no tokenizer: the narrow base's stands where the starter's would."""
    monkeypatch.setattr(base_module, "starter_folder", lambda: folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl_base(tmp_path_factory.mktemp("sdxl"))


def condition(base: Any) -> Any:
    with torch.no_grad():
        return base.family.encode_text(base, base.family.text_inputs(base, [PROMPT], length=None))


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_converted_folder_is_read_as_the_same_base(folder: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "dreambooth", "convert", str(folder), str(tmp_path / name), "--precision", "fp32"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "tensors match the model" in done.stdout
    assert family_of(tmp_path / name) == "sdxl"
    written, base = load_base(str(tmp_path / name)), load_base(str(folder))
    for part, module in base.modules().items():
        theirs = {key.removeprefix("text_model."): one for key, one in getattr(written, part).state_dict().items()}
        for key, tensor in module.state_dict().items():
            assert torch.equal(theirs[key.removeprefix("text_model.")], tensor), key
    assert written.tokenizer_2.pad_token == "!"
    assert written.unet.config.addition_time_embed_dim == base.unet.config.addition_time_embed_dim
    for own, wanted in zip(condition(written).tensors(), condition(base).tensors(), strict=True):
        assert torch.allclose(own, wanted, atol=1e-6)


def test_diffusers_own_reader_gives_the_same_weights_and_text_embeds(folder: Path, tmp_path: Path) -> None:
    """A transposed projection passes every check of shapes: the vector of a prompt does not."""
    from diffusers import StableDiffusionXLPipeline

    file = convert_verified(folder, tmp_path / "model.safetensors", precision="fp32").path
    # The reader asks the Hub for configurations by the kind of the file: here the folder has them.
    pipeline = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, add_watermarker=False
    )
    base = load_base(str(folder))
    for part, module in base.modules().items():
        theirs = getattr(pipeline, part).state_dict()
        assert theirs.keys() == module.state_dict().keys()
        assert all(torch.equal(theirs[key], tensor) for key, tensor in module.state_dict().items()), part
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    found = condition(base)
    assert torch.allclose(pooled, found.pooled, atol=1e-6)
    assert torch.allclose(states, found.states, atol=1e-6)


def test_a_model_of_v_is_marked_and_recognised(tmp_path: Path) -> None:
    folder = tiny_sdxl_base(tmp_path / "base", prediction_type="v_prediction")
    file = convert_verified(folder, tmp_path / "model.safetensors").path
    weights = read_weights(file)
    assert weights["v_pred"].shape == (0,)
    assert "ztsnr" not in weights
    assert load_base(str(file)).noise_scheduler_config["prediction_type"] == "v_prediction"
    header = file_metadata(file)
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert header["modelspec.prediction_type"] == "v"


def test_a_base_that_is_loaded_in_half_precision_is_known_as_in_fp32(folder: Path, tmp_path: Path) -> None:
    """From a folder in fp32, one in fp16 and a file in fp16 that does not say what it predicts, which its UNet is
    asked.
    """
    from dreambooth.models.saving import write_model

    write_model(tmp_path / "fp16", load_base(str(folder)), torch.float16)
    file = tmp_path / "plain.safetensors"
    save_file(read_weights(convert_verified(folder, tmp_path / "model.safetensors", precision="fp16").path), file)
    for source, dtype in ((folder, torch.bfloat16), (tmp_path / "fp16", torch.float16), (file, torch.float16)):
        whole, half = load_base(str(source)), load_base(str(source), dtype=dtype)
        assert half.fingerprint == whole.fingerprint
        assert half.fingerprint_of("vae") == whole.fingerprint_of("vae")
        assert half.noise_scheduler_config == whole.noise_scheduler_config
        for part, module in half.modules().items():
            wanted = getattr(whole, part).to(torch.float32 if part == "vae" else dtype).state_dict()
            own = module.state_dict()
            assert own.keys() == wanted.keys()
            assert all(own[name].dtype == one.dtype and torch.equal(own[name], one) for name, one in wanted.items())


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_what_no_words_are_comes_back_from_a_file(tmp_path: Path, name: str) -> None:
    """Files of other tools do not say it, and are taken as diffusers takes them."""
    folder = tiny_sdxl_base(tmp_path / "base", zeros_for_nothing=False)
    file = convert_verified(folder, tmp_path / name).path
    assert file_metadata(file)["dreambooth.force_zeros_for_empty_prompt"] == "false"
    assert load_base(str(file)).family.index_options == {"force_zeros_for_empty_prompt": False}
    save_file(read_weights(file), tmp_path / "plain.safetensors")
    assert load_base(str(tmp_path / "plain.safetensors")).family.index_options["force_zeros_for_empty_prompt"] is True


def test_the_refiners_file_is_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "refiner.safetensors"
    names = ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.0.model.ln_final.weight")
    save_file({name: torch.zeros(8, 4, 3, 3) for name in names}, file)
    with pytest.raises(BaseModelError, match="the refiner of SDXL"):
        load_base(str(file))
