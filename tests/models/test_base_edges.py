"""Bases at the edges: VAEs from elsewhere, files that lack a part, whole numbers, weights of another format."""

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth.errors import BaseModelError
from dreambooth.export.single_file import convert
from dreambooth.models import base as base_module
from dreambooth.models import sd_file
from dreambooth.models.base import load_base, read_card
from dreambooth.models.card import BaseCard
from dreambooth.models.saving import write_model
from tests.harness.tiny import tiny_base

PARTS = ("unet", "text_encoder", "vae")


def write(folder: Path, base: Any, dtype: Any, card: BaseCard | None = None) -> Path:
    folder.mkdir()
    write_model(folder, base, dtype, card)
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_base_folder: Path) -> Any:
    return load_base(str(tiny_base_folder))


@pytest.fixture
def copied(tiny_base_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base_folder, tmp_path / "copy"))


@pytest.fixture
def tiny_starter(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the tiny base in the starter's place, whose configuration narrow single files are read by."""
    monkeypatch.setattr(base_module, "starter_folder", lambda: tiny_base_folder)
    monkeypatch.setattr(sd_file, "starter_folder", lambda: tiny_base_folder)
    return tiny_base_folder


def test_v_prediction_comes_from_the_scheduler(tmp_path: Path) -> None:
    loaded = load_base(str(tiny_base(tmp_path / "v", prediction_type="v_prediction")))
    assert loaded.noise_scheduler_config["prediction_type"] == "v_prediction"


# Another VAE ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("other") / "base", seed=1)


def assert_vae_is_taken(base: Path, source: Path, other: Path) -> None:
    import torch
    from safetensors.torch import load_file

    wanted = load_file(other / "vae" / "diffusion_pytorch_model.safetensors")
    own = load_file(base / "vae" / "diffusion_pytorch_model.safetensors")
    vae = load_base(str(base), vae=str(source)).vae
    assert not vae.training
    assert not torch.equal(wanted["encoder.conv_in.weight"], own["encoder.conv_in.weight"])
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_a_vae_from_a_folder(tiny_base_folder: Path, other_base: Path, subfolder: str) -> None:
    assert_vae_is_taken(tiny_base_folder, other_base / subfolder, other_base)


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_a_vae_from_a_file(tiny_starter: Path, other_base: Path, tmp_path: Path, prefix: str) -> None:
    from safetensors.torch import load_file, save_file

    path = convert(other_base, tmp_path / "model.safetensors")
    name_of_vae = "first_stage_model."
    weights = {name: tensor for name, tensor in load_file(path).items() if name.startswith(name_of_vae)}
    save_file({prefix + name.removeprefix(name_of_vae): tensor for name, tensor in weights.items()}, path)
    assert_vae_is_taken(tiny_starter, path, other_base)


def test_a_file_that_is_no_vae(tiny_base_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"something": torch.zeros(1)}, tmp_path / "not.safetensors")
    with pytest.raises(BaseModelError, match=r"not\.safetensors holds no VAE of Stable Diffusion"):
        load_base(str(tiny_base_folder), vae=str(tmp_path / "not.safetensors"))


def test_a_folder_that_is_no_vae(tiny_base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="The VAE .* cannot be loaded"):
        load_base(str(tiny_base_folder), vae=str(tmp_path))


def test_a_base_without_a_vae_is_trained_with_one_from_elsewhere(
    copied: Path, other_base: Path, photos: Path, tmp_path: Path
) -> None:
    """By the command line, to a saved step that converts; without the flag it is said what is missing."""
    from safetensors.torch import load_file

    shutil.rmtree(copied / "vae")
    command = [
        sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path", str(copied),
        "--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog", "--output_dir",
        str(tmp_path / "run"), "--resolution", "32", "--max_train_steps", "1", "--learning_rate", "1e-3",
    ]  # fmt: skip
    refused = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert refused.returncode != 0
    assert "It lacks vae/config.json" in refused.stderr
    command += ["--pretrained_vae_name_or_path", str(other_base)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    written = load_file(convert(tmp_path / "run" / "1", tmp_path / "model.safetensors", precision="fp16"))
    wanted = load_file(other_base / "vae" / "diffusion_pytorch_model.safetensors")["decoder.conv_in.weight"]
    assert (written["first_stage_model.decoder.conv_in.weight"] == wanted.half()).all()


# What is harmless ----------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    import torch

    pairs = [(getattr(one, part).state_dict(), getattr(other, part).state_dict()) for part in PARTS]
    return all(a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)


@pytest.mark.parametrize("is_pickled", [False, True])
def test_a_folder_that_has_fp16_alone_loads_and_converts(
    copied: Path, tiny: Any, tmp_path: Path, is_pickled: bool
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    for part in PARTS:
        (file,) = (copied / part).glob("*.safetensors")
        weights = {name: tensor.half() for name, tensor in load_file(file).items()}
        if is_pickled:
            old_stem = "pytorch_model" if part == "text_encoder" else file.stem
            torch.save(weights, file.with_name(f"{old_stem}.fp16.bin"))
        else:
            save_file(weights, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        file.unlink()
    loaded = load_base(str(copied))
    assert loaded.unet.dtype == torch.float32
    assert torch.equal(loaded.unet.conv_in.weight, tiny.unet.conv_in.weight.half().float())
    written = load_file(convert(copied, tmp_path / "model.safetensors"))
    assert torch.equal(written["model.diffusion_model.input_blocks.0.0.weight"], tiny.unet.conv_in.weight.half())


def test_a_text_encoder_with_projection_loads_and_converts(
    copied: Path, tiny: Any, tiny_starter: Path, tmp_path: Path
) -> None:
    """Of transformers' own class, whose projection no picture depends on; and with the scale beside it."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    whole = convert(tiny_starter, tmp_path / "whole.safetensors").read_bytes()
    model = CLIPTextModelWithProjection(CLIPTextConfig.from_pretrained(copied / "text_encoder"))
    inner = {name.removeprefix("text_model."): tensor for name, tensor in tiny.text_encoder.state_dict().items()}
    model.text_model.load_state_dict(inner)
    shutil.rmtree(copied / "text_encoder")
    model.save_pretrained(copied / "text_encoder")
    file = copied / "text_encoder" / "model.safetensors"
    assert "text_projection.weight" in load_file(file)
    assert same(load_base(str(copied)), tiny)
    assert convert(copied, tmp_path / "model.safetensors").read_bytes() == whole
    save_file(load_file(file) | {"logit_scale": torch.ones(())}, file, {"format": "pt"})
    assert same(load_base(str(copied)), tiny)
    assert convert(copied, tmp_path / "model.safetensors").read_bytes() == whole
    torch.save(load_file(file), copied / "text_encoder" / "pytorch_model.bin")
    file.unlink()
    assert same(load_base(str(copied)), tiny)


def test_a_file_with_clips_projection_and_scale_loads(tiny: Any, tiny_starter: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = convert(tiny_starter, tmp_path / "model.safetensors")
    more = {
        "cond_stage_model.transformer.text_projection.weight": torch.ones(16, 16),
        "cond_stage_model.transformer.logit_scale": torch.ones(()), "cond_stage_model.logit_scale": torch.ones(()),
    }  # fmt: skip
    save_file(load_file(path) | more, path)
    assert same(load_base(str(path)), tiny)


# What is something else, or broken -----------------------------------------------------------------------------------


def test_a_name_the_hub_could_not_have() -> None:
    with pytest.raises(BaseModelError, match="There is no base model.*Hub id|nor a valid Hub id"):
        load_base("my model/v 1")


@pytest.mark.parametrize(
    ("index", "unet", "kind"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, {}, "a StableDiffusionXLPipeline whose UNet is of another kind"),
        ({}, {"addition_embed_type": "text_time"}, "a StableDiffusionPipeline whose UNet is of another kind"),
        ({"_class_name": "KandinskyPipeline"}, {}, "a KandinskyPipeline"),
    ],
)
def test_another_kind_of_folder_is_named(copied: Path, index: Any, unet: Any, kind: str) -> None:
    for file, values in ((copied / "model_index.json", index), (copied / "unet" / "config.json", unet)):
        file.write_text(json.dumps(json.loads(file.read_text()) | values))
    with pytest.raises(BaseModelError, match=f"copy is {kind}"):
        load_base(str(copied))


def test_damaged_weights_are_told(copied: Path) -> None:
    file = copied / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(str(copied))


def test_a_missing_part_is_told(copied: Path) -> None:
    shutil.rmtree(copied / "text_encoder")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(str(copied))


@pytest.mark.parametrize("gone", ["first_stage_model.", "cond_stage_model.", "model.diffusion_model.out.2.weight"])
def test_a_file_that_lacks_a_part_is_told(tiny_starter: Path, tmp_path: Path, gone: str) -> None:
    from safetensors.torch import load_file, save_file

    path = convert(tiny_starter, tmp_path / "file.safetensors")
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(gone)}, path)
    with pytest.raises(BaseModelError, match=r"not a complete Stable Diffusion model"):
        load_base(str(path))


def test_a_web_page_named_ckpt_is_not_called_a_program(tmp_path: Path) -> None:
    (tmp_path / "page.ckpt").write_text("<html>Please sign in</html>")
    with pytest.raises(BaseModelError, match="is a web page") as told:
        load_base(str(tmp_path / "page.ckpt"))
    assert "weights_only" not in str(told.value)  # torch's message would advise to load it all the same


class Program:
    def __reduce__(self) -> Any:
        return (print, ("a program ran",))


def test_a_ckpt_with_a_program_names_what_it_would_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save({"state_dict": {}, "extra": Program()}, tmp_path / "program.ckpt")
    with pytest.raises(BaseModelError, match=r"holds more than weights\. It would run \S*print") as told:
        load_base(str(tmp_path / "program.ckpt"))
    assert "weights_only" not in str(told.value)
    assert "a program ran" not in capsys.readouterr().out


def test_an_unknown_width_is_told(tiny_base_folder: Path, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = convert(tiny_base_folder, copied.parent / "narrow.safetensors")
    config = copied / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"block_out_channels": [16, 32, 48, 48]}))
    monkeypatch.setattr(base_module, "starter_folder", lambda: copied)
    monkeypatch.setattr(sd_file, "starter_folder", lambda: copied)
    with pytest.raises(BaseModelError, match=r"unet is \[8, 16, 24, 24\] wide.*SD 1\.x is \[320"):
        load_base(str(path))


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype_name", ["float16", "float32", "bfloat16"])
def test_a_written_folder_has_every_tensor_in_the_format_asked_for(tiny: Any, tmp_path: Path, dtype_name: str) -> None:
    import torch
    from safetensors.torch import load_file

    dtype = getattr(torch, dtype_name)
    folder = write(tmp_path / "model", tiny, dtype)
    for part, stem, prefix in (
        ("unet", "diffusion_pytorch_model", ""),
        ("vae", "diffusion_pytorch_model", ""),
        ("text_encoder", "model", "text_model."),
    ):
        given = {prefix + name.removeprefix(prefix): t for name, t in getattr(tiny, part).state_dict().items()}
        read = load_file(folder / part / f"{stem}.safetensors")
        assert read.keys() == given.keys()
        assert all(read[name].dtype == dtype and torch.equal(read[name], given[name].to(dtype)) for name in read)


def test_a_model_loaded_from_a_file_is_written_like_any(tiny: Any, tiny_starter: Path, tmp_path: Path) -> None:
    import torch

    loaded = load_base(str(convert(tiny_starter, tmp_path / "old.ckpt")))
    again = load_base(str(write(tmp_path / "model", loaded, torch.float32)))
    for part in PARTS:
        read, given = getattr(again, part).state_dict(), getattr(tiny, part).state_dict()
        assert read.keys() == given.keys()
        assert all(torch.equal(read[name], given[name]) for name in read)


def test_whole_numbers_stay_whole(tiny: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = copy.copy(tiny)
    base.unet = copy.deepcopy(tiny.unet)
    base.unet.register_buffer("counts", torch.arange(3))
    weights = load_file(write(tmp_path / "model", base, torch.float16) / "unet" / "diffusion_pytorch_model.safetensors")
    assert weights["counts"].dtype == torch.int64
    assert weights["conv_in.weight"].dtype == torch.float16


def test_any_identifier_reads_the_same_after_writing(tiny: Any, tmp_path: Path) -> None:
    import torch

    folder = write(tmp_path / "model", tiny, torch.float16)
    assert json.loads((folder / "tokenizer" / "vocab.json").read_text("utf-8")) == tiny.tokenizer.get_vocab()
    again = load_base(str(folder)).tokenizer
    for words in ("photo of zwx dog", "jennaor", "\u72ac \u00e9t\u00e9!"):
        assert again(words).input_ids == tiny.tokenizer(words).input_ids


def test_the_card_goes_with_the_model(tiny: Any, tmp_path: Path) -> None:
    import torch

    card = BaseCard(native_px=32, is_toy=True, notice="A toy.", recipes={"full": {"learning_rate": 1e-3}})
    folder = write(tmp_path / "model", tiny, torch.float16, card)
    assert read_card(str(folder)) == card
    assert load_base(str(folder)).card == card
