"""SDXL trained: both methods, both text encoders, sizes of crops, words that are left out."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dreambooth.config.recipes import SDXL
from dreambooth.errors import BaseModelError
from dreambooth.export.extraction import LoraSize, extract_lora
from dreambooth.export.saved_lora import convert_lora
from dreambooth.export.verify import convert_verified
from dreambooth.forecast.counts import adapted_modules, counts_of_shape, num_learning
from dreambooth.forecast.shape import read_shape
from dreambooth.formats.lora_keys import LoraModule, LoraTargets, lora_modules
from dreambooth.formats.sdxl_keys import from_original
from dreambooth.models.base import Base, load_base
from dreambooth.models.fingerprint import weights_fingerprint
from dreambooth.models.lora_file import read_lora
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.models.weights import file_metadata, read_weights
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.training.materials import RunContext
from dreambooth.training.preparation import class_image_folders
from tests.harness.local_hub import local_hub
from tests.harness.tiny import tiny_sdxl_base
from tests.harness.trained import Run, quick_settings

Make = Callable[..., Run]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl_base(tmp_path_factory.mktemp("sdxl"))


def test_a_lora_is_written_in_the_dialect_that_diffusers_loads_exactly(make: Make, sdxl: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    run = make(
        pretrained_model_name_or_path=str(sdxl), method="lora", train_text_encoder=True, max_train_steps=2,
        with_prior_preservation=False, pad_tokens=True, save_precision="fp32",
    )  # fmt: skip
    run.train()
    (file,) = run.folder.step_folder(2).glob("*.safetensors")
    assert file_metadata(file)["ss_base_model_version"] == "sdxl_base_v1-0"
    assert file_metadata(file)["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    pipeline = StableDiffusionXLPipeline.from_pretrained(sdxl, add_watermarker=False)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    merged = load(ModelSource(str(run.folder.step_folder(2))))
    for part in ("unet", "text_encoder", "text_encoder_2"):
        theirs = {
            name.replace(".base_layer", "").removeprefix("text_model."): weight
            for name, weight in getattr(pipeline, part).state_dict().items()
            if "lora_" not in name
        }
        for name, weight in getattr(merged, part).state_dict().items():
            assert torch.allclose(theirs[name.removeprefix("text_model.")], weight, atol=1e-6), f"{part} {name}"


def test_a_whole_run_becomes_a_lora_and_a_lora_a_checkpoint(make: Make, sdxl: Path, tmp_path: Path) -> None:
    common = {
        "pretrained_model_name_or_path": str(sdxl), "train_text_encoder": True, "max_train_steps": 2,
        "with_prior_preservation": False, "pad_tokens": True, "save_precision": "fp32",
    }  # fmt: skip
    whole = make(**common)
    whole.train()
    verdict = extract_lora(whole.folder.step_folder(2), tmp_path / "small.safetensors", size=LoraSize(rank=2))
    assert verdict.parts == ("unet", "text_encoder", "text_encoder_2")
    lora = make(**common, method="lora")
    lora.train()
    step = lora.folder.step_folder(2)
    convert_lora(step, tmp_path / "again.safetensors")
    again = read_lora(tmp_path / "again.safetensors").factors
    assert again.keys() == read_lora(next(step.glob("*.safetensors"))).factors.keys()
    merged = convert_verified(step, tmp_path / "merged.safetensors", precision="fp32")
    weights = from_original(read_weights(merged.path))["unet"]
    for name, weight in load(ModelSource(str(step))).unet.state_dict().items():
        assert torch.allclose(weights[name], weight, atol=1e-6), name


def test_layers_that_no_picture_depends_on_get_no_factors_and_older_states_and_files_are_read(
    make: Make, sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The UNet sees the first encoder's states before its last layer; earlier versions had factors there as well."""

    def older(base: Base, targets: LoraTargets, parts: Iterable[str]) -> list[LoraModule]:
        return lora_modules({part: getattr(base, part).state_dict() for part in parts}, targets)

    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": str(sdxl), "method": "lora", "train_text_encoder": True, "use_ema": True,
        "with_prior_preservation": False, "pad_tokens": True, "save_precision": "fp32",
    }  # fmt: skip
    before, now = make(**settings, max_train_steps=1), make(**settings, max_train_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr("dreambooth.training.lora.places_of", older)
        before.train_anew()
    state = before.newest_state()
    resumed = now.train_anew(state)._learner
    with monkeypatch.context() as patched:
        patched.setattr("dreambooth.training.lora.places_of", older)
        before.config = dataclasses.replace(before.config, max_train_steps=2)
        wanted = before.train_anew(state)._learner
    extra = {name for name in wanted.weights["text_encoder"] if "_layers_1_" in name}
    assert len(extra) == 2 * 6
    assert resumed.weights["text_encoder"].keys() == wanted.weights["text_encoder"].keys() - extra
    assert resumed.weights["text_encoder_2"].keys() == wanted.weights["text_encoder_2"].keys()
    for part, named in resumed.weights.items():
        for name, factor in named.items():
            assert torch.equal(factor, wanted.weights[part][name]), name
            # Of the UNet's, attention has one place in the lowest level of so small a picture.
            assert factor.any() or part == "unet", f"{name} has not learned"
    counts = counts_of_shape(read_shape(str(sdxl)))
    assert 2 * len(adapted_modules(now.config, counts)) == len(resumed.parameters)
    assert num_learning(now.config, counts) == sum(factor.numel() for factor in resumed.parameters)
    (file,) = before.folder.step_folder(1).glob("*.safetensors")
    convert_lora(file.parent, file.with_name("again.safetensors"))
    further = make(**settings, max_train_steps=1, initial_lora=str(file))
    begun = further.train_anew()._learner.weights["text_encoder"]
    assert begun.keys() == resumed.weights["text_encoder"].keys()


def test_the_first_encoders_last_layer_does_not_train_and_older_states_are_read(
    make: Make, sdxl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a full fine-tuning: earlier versions listed these weights, and no gradient ever reached them."""
    settings: dict[str, Any] = {
        "pretrained_model_name_or_path": str(sdxl), "train_text_encoder": True, "use_ema": True,
        "with_prior_preservation": False, "pad_tokens": True,
    }  # fmt: skip
    before, now = make(**settings, max_train_steps=1), make(**settings, max_train_steps=2)
    with monkeypatch.context() as patched:
        patched.setattr("dreambooth.training.full.without_last_layers", lambda names, number: names)
        before.train_anew()
    state = before.newest_state()
    resumed = now.train_anew(state)._learner
    with monkeypatch.context() as patched:
        patched.setattr("dreambooth.training.full.without_last_layers", lambda names, number: names)
        before.config = dataclasses.replace(before.config, max_train_steps=2)
        with_all = before.train_anew(state)._learner
    extra = with_all.weights["text_encoder"].keys() - resumed.weights["text_encoder"].keys()
    assert {name.removeprefix("text_model.").rsplit(".", 2)[0] for name in extra} >= {"encoder.layers.1.self_attn"}
    assert len(extra) == 16 + 2
    for part, named in resumed.weights.items():
        for name, weight in named.items():
            assert torch.equal(weight, with_all.weights[part][name]), name
    shadows = {id(one): shadow for one, shadow in zip(with_all.parameters, with_all.ema.shadow_params, strict=True)}
    wanted = [shadows[id(with_all.weights[part][name])] for part in resumed.weights for name in resumed.weights[part]]
    assert all(map(torch.equal, resumed.ema.shadow_params, wanted))
    counts = counts_of_shape(read_shape(str(sdxl)))
    assert num_learning(now.config, counts) == sum(weight.numel() for weight in resumed.parameters)


def test_a_lora_of_another_family_is_refused(make: Make, sdxl: Path, tiny_base_folder: Path) -> None:
    run = make(pretrained_model_name_or_path=str(sdxl), method="lora", max_train_steps=1, pad_tokens=True)
    run.train()
    with pytest.raises(BaseModelError, match="another kind of model"):
        load(ModelSource(str(run.folder.step_folder(1)), base=str(tiny_base_folder)))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_trains_samples_and_saves_what_can_be_loaded(make: Make, sdxl: Path, method: str) -> None:
    run = make(
        pretrained_model_name_or_path=str(sdxl), method=method, train_text_encoder=True, max_train_steps=2,
        with_prior_preservation=True, save_sample_prompt="photo of zwx dog", n_save_sample=1, pad_tokens=True,
        caption_dropout=0.5, save_precision="fp32",
    )  # fmt: skip
    trainer = run.train_anew()
    assert set(trainer._learner.weights) == {"unet", "text_encoder", "text_encoder_2"}
    folder = run.folder.step_folder(2)
    assert (folder / "samples" / "0.png").exists()
    taught, base = load(ModelSource(str(folder))), load_base(str(sdxl))
    assert taught.family.layout.family == "sdxl"
    for part in ("unet", "text_encoder", "text_encoder_2"):
        assert weights_fingerprint(getattr(taught, part)) != weights_fingerprint(getattr(base, part)), part
    assert weights_fingerprint(taught.vae) == weights_fingerprint(base.vae)
    for name, weight in run.materials.base.unet.state_dict().items() if method == "full" else ():
        assert torch.equal(taught.unet.state_dict()[name], weight)


def test_crops_bring_their_sizes_and_class_images_their_own(make: Make, sdxl: Path, photos: Path) -> None:
    from PIL import Image

    for file in photos.glob("*.png"):
        Image.radial_gradient("L").resize((96, 64)).convert("RGB").save(file)
    run = make(pretrained_model_name_or_path=str(sdxl), with_prior_preservation=True, pad_tokens=True)
    batch = run.materials.batches.batch(0, 0)
    inputs: Any = run.materials.conditions.inputs(batch.captions, batch.sizes)
    subject, of_class = inputs.size_ids.tolist()
    assert subject[:2] == [64, 96]
    assert subject[2] == 0
    assert subject[4:] == [32, 32]
    assert of_class == [32, 32, 0, 0, 32, 32]


class PretendCard(ModelManager):
    """Says that it is a card, and notes which parts it would have on it; everything stays where it is."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.stages: list[tuple[str, ...]] = []
        self.formats: dict[str, torch.dtype] = {}

    @property
    def device(self) -> Any:
        return SimpleNamespace(type="cuda")

    def place(self, module: Any, *, dtype: torch.dtype | None = None) -> None:
        raise AssertionError("all parts at once")

    def park(self, module: Any) -> None:
        pass

    def only(self, base: Base, parts: Collection[str]) -> None:
        if not self.stages:
            firsts = {"unet": base.unet.conv_in, "vae": base.vae.decoder.conv_in}
            firsts |= {name: getattr(base, name).get_input_embeddings() for name in base.family.layout.text_encoders}
            for name, module in firsts.items():
                module.register_forward_pre_hook(functools.partial(self._asked, name))
        self.stages.append(tuple(parts))
        self.formats = {name: next(module.parameters()).dtype for name, module in base.modules().items()}

    def _asked(self, name: str, *_: Any) -> None:
        assert name in self.stages[-1], f"{name} computes while it is off the card"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_class_images_on_a_card_take_each_part_in_half_precision_while_it_is_needed(
    sdxl: Path, photos: Path, tmp_path: Path, method: str, plain_kernels: None
) -> None:
    config = quick_settings(
        sdxl, photos, method=method, with_prior_preservation=True, mixed_precision="bf16", sample_batch_size=1
    )
    manager, base = PretendCard(), load_base(str(sdxl))
    before = {name: module.state_dict() for name, module in base.modules().items()}
    context = RunContext(RunFolder(tmp_path / "run"), Workspace(tmp_path / "data"), manager)
    (folder,) = class_image_folders(config, base, context)
    assert len(list(Path(str(folder)).glob("*.png"))) == 2
    assert manager.stages == [("text_encoder", "text_encoder_2"), ("unet",), ("vae",), ("unet",), ("vae",)]
    half, whole = torch.bfloat16, torch.float32
    assert manager.formats == {"unet": half, "vae": whole, "text_encoder": half, "text_encoder_2": half}
    # A LoRA's base will be in that format, and is so once; what trains in fp32 stays as it is.
    assert base.unet.dtype == (half if method == "lora" else whole)
    for part, named in before.items() if method == "full" else ():
        assert all(torch.equal(getattr(base, part).state_dict()[name], one) for name, one in named.items())


def test_a_frozen_encoder_is_asked_once_and_a_left_out_caption_is_zeros(make: Make, sdxl: Path) -> None:
    run = make(
        pretrained_model_name_or_path=str(sdxl), with_prior_preservation=False, pad_tokens=True, caption_dropout=1.0,
        center_crop=True,
    )  # fmt: skip
    batch = run.materials.batches.batch(0, 0)
    condition: Any = run.materials.conditions.inputs(batch.captions, batch.sizes)
    assert not condition.states.any()
    assert not condition.pooled.any()
    assert condition.size_ids.dtype == torch.float32


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_command_line_does_all_of_it(
    sdxl: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, method: str
) -> None:
    from dreambooth.commands.cli import main

    monkeypatch.setenv("DREAMBOOTH_HOME", str(tmp_path / "home"))
    run = tmp_path / "dog"
    words = ["--instance_data_dir", photos, "--instance_prompt", "photo of zwx dog", "--class_prompt", "photo of dog"]
    small = [
        "--pretrained_model_name_or_path", sdxl, "--method", method, "--resolution", "32", "--max_train_steps", "2",
        "--train_batch_size", "1", "--with_prior_preservation", "--num_class_images", "1", "--save_infer_steps", "2",
        "--save_sample_prompt", "photo of zwx dog", "--n_save_sample", "1", "--num_probe_images", "1", "--seed", "1",
    ]  # fmt: skip
    assert main([*map(str, ["train", *words, *small, "--output_dir", run])]) == 0
    pictures = tmp_path / "pictures"
    asked = ["--model", run, "--prompt", "photo of zwx dog", "--num_inference_steps", "2", "--unet_strength", "0.5"]
    assert main([*map(str, ["generate", *asked, "--output_dir", pictures])]) == 0
    assert any(pictures.rglob("*.png"))
    assert main(["score", str(run)]) == 0
    assert main(["convert", str(run), str(tmp_path / "model.safetensors")]) == 0
    assert main(["zip", str(run), str(tmp_path / "model.zip")]) == 0
    assert "Verified" in capsys.readouterr().out


def test_a_base_that_was_just_downloaded_is_trained_with_its_own_familys_defaults(tmp_path: Path, photos: Path) -> None:
    """By its Hub id alone nobody knows the family: its configuration is fetched before the start."""
    served = tiny_sdxl_base(tmp_path / "served")
    (served / "card.json").unlink()
    with local_hub(served) as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "DREAMBOOTH_HOME": str(tmp_path / "home"),
        }  # fmt: skip
        command = [
            sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path", "somebody/tiny",
            "--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog", "--resolution", "32",
            "--max_train_steps", "1", "--train_batch_size", "1", "--num_crop_variants", "1", "--gauge_interval", "0",
        ]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "home" / "runs").iterdir()
    config = json.loads((run / ".run" / "config.json").read_text())
    assert [name for name, value in SDXL.items() if name != "resolution" and config[name] != value] == []
