"""SDXL's family held to diffusers' own pipeline, on a narrow base with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import BaseModelError
from dreambooth.formats.layout import family_of
from dreambooth.formats.original import sdxl_names
from dreambooth.formats.other_kinds import FIRST_CONV, kind_of_file
from dreambooth.models.base import load_base
from dreambooth.models.family import PictureSize
from dreambooth.models.sdxl import SDXL_CONFIGS
from dreambooth.models.weights import read_weights
from dreambooth.pictures.generation import generate_images
from dreambooth.runs.start_notices import setting_notices
from tests.harness.tiny import tiny_sdxl_base

PROMPT = "photo of a dog"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sdxl_base(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)


def test_a_folder_is_known_for_what_it_is_and_comes_back_as_it_was_written(folder: Path) -> None:
    assert family_of(folder) == "sdxl"
    index = json.loads((folder / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True
    base = load_base(str(folder))
    assert base.tokenizer.pad_token != base.tokenizer_2.pad_token == "!"
    assert [type(one).__name__ for one in base.text_encoders()] == ["CLIPTextModel", "CLIPTextModelWithProjection"]


@pytest.mark.parametrize(("prompt", "avoid"), [(PROMPT, "a dog of"), (PROMPT, ""), ("", "")])
@pytest.mark.parametrize("zeros", [True, False])
def test_conditions_are_the_pipelines(
    tmp_path: Path, folder: Path, pipeline: Any, prompt: str, avoid: str, zeros: bool
) -> None:
    base = load_base(str(folder if zeros else tiny_sdxl_base(tmp_path, zeros_for_nothing=False)))
    assert base.family.index_options == {"force_zeros_for_empty_prompt": zeros}
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    with torch.no_grad():
        states, no_states, pooled, no_pooled = pipeline.encode_prompt(prompt, negative_prompt=avoid or None)
        inputs = base.family.text_inputs(base, [avoid, prompt], length=None, left_out=[not avoid, False])
        found = base.family.encode_text(base, inputs)
    assert torch.allclose(found.states, torch.cat([no_states, states]), atol=1e-5)
    assert torch.allclose(found.pooled, torch.cat([no_pooled, pooled]), atol=1e-5)
    assert bool(found.states[0].any()) == (bool(avoid) or not zeros)


def test_encoders_whose_weights_are_shared_give_the_same_condition(folder: Path) -> None:
    """`fully_shard` gives a model a class of another name, by which transformers knows which states to record."""
    base = load_base(str(folder))
    inputs = base.family.text_inputs(base, [PROMPT], length=None)
    with torch.no_grad():
        wanted = base.family.encode_text(base, inputs)
        for encoder in base.text_encoders():
            encoder.__class__ = type(f"FSDP{type(encoder).__name__}", (type(encoder),), {})
        found = base.family.encode_text(base, inputs)
    assert all(map(torch.equal, found.tensors(), wanted.tensors()))


def test_pictures_are_the_pipelines(folder: Path, pipeline: Any) -> None:
    """Same latents at the start, same sampler: the same latents at the end, and through the VAE."""
    from diffusers import DDIMScheduler

    from dreambooth import rng

    base = load_base(str(folder))
    request = GenerationConfig(
        prompt=PROMPT, num_images_per_prompt=1, num_inference_steps=3, seed=5, sampler="DDIM", guidance_scale=6.0,
        height=48, width=32,
    )  # fmt: skip
    (made,) = generate_images(base, request)
    noise = torch.randn(1, 4, 6, 4, generator=rng.generator(5, "generation"))
    pipeline.scheduler = DDIMScheduler.from_config(base.noise_scheduler_config)
    pipeline.register_to_config(force_zeros_for_empty_prompt=True)
    theirs = pipeline(
        PROMPT, latents=noise, num_inference_steps=3, guidance_scale=6.0, height=48, width=32, output_type="latent"
    ).images
    assert torch.allclose(made.latents, theirs[0], atol=1e-4)


def test_sizes_are_those_of_the_trained_crop_and_move_the_prediction(folder: Path) -> None:
    base = load_base(str(folder))
    whole, cut = PictureSize((32, 32), (0, 0), (32, 32)), PictureSize((683, 1024), (0, 341), (32, 32))
    assert base.family.size_ids([whole, cut]).tolist() == [[32, 32, 0, 0, 32, 32], [683, 1024, 0, 341, 32, 32]]
    inputs = base.family.text_inputs(base, [PROMPT] * 2, length=None)
    with torch.no_grad():
        condition = base.family.encode_text(base, inputs)
        import dataclasses

        condition = dataclasses.replace(condition, size_ids=base.family.size_ids([whole, cut]))
        noisy = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1)).repeat(2, 1, 1, 1)
        first, second = base.family.predict(base.unet, noisy, torch.tensor([500, 500]), condition)
    assert (first - second).abs().max() > 1e-4


def test_another_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(BaseModelError, match="two tokenizers of its own. .* Leave out tokenizer_name"):
        load_base(str(folder), tokenizer=str(folder / "tokenizer"))


def test_the_refiner_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_sdxl_base(tmp_path)
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder": [None, None], "tokenizer": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="refiner"):
        load_base(str(folder))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("text_encoder_2/config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean"),
    ],
)
def test_configurations_beyond_the_limits_are_refused(tmp_path: Path, file: str, change: Any, told: str) -> None:
    folder = tiny_sdxl_base(tmp_path)
    values = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(values | change))
    with pytest.raises(BaseModelError, match=told):
        load_base(str(folder))


def test_a_folder_without_its_second_tokenizer_is_told(tmp_path: Path) -> None:
    import shutil

    folder = tiny_sdxl_base(tmp_path)
    shutil.rmtree(folder / "tokenizer_2")
    with pytest.raises(BaseModelError, match="tokenizer_2/vocab.json"):
        load_base(str(folder))


def test_a_second_encoder_in_a_pickle_is_read_as_the_first_one_is(tmp_path: Path, folder: Path) -> None:
    """Folders of before safetensors: transformers 4 wrote `text_model.`, the projection beside it, and position_ids."""
    import shutil

    old = Path(shutil.copytree(folder, tmp_path / "old"))
    for name in ("text_encoder", "text_encoder_2"):
        (file,) = (old / name).glob("*.safetensors")
        weights = read_weights(file) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
        torch.save({key: tensor.clone() for key, tensor in weights.items()}, old / name / "pytorch_model.bin")
        file.unlink()
    for own, wanted in zip(load_base(str(old)).text_encoders(), load_base(str(folder)).text_encoders(), strict=True):
        assert own.state_dict().keys() == wanted.state_dict().keys()
        assert all(torch.equal(own.state_dict()[key], tensor) for key, tensor in wanted.state_dict().items())
    torch.save({"text_model.embeddings.position_ids": torch.arange(77)[None]}, old / "text_encoder_2/pytorch_model.bin")
    with pytest.raises(BaseModelError, match="cannot be loaded.*Missing: "):
        load_base(str(old))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"transformer_layers_per_block": [0, 2, 4]}, "a pruned relative of SDXL"),
        ({"layers_per_block": 1}, "a pruned relative of SDXL"),
        ({"mid_block_type": None}, "a pruned relative of SDXL"),
        ({"time_cond_proj_dim": 256}, "distilled to few denoising steps"),
    ],
)
def test_pruned_and_distilled_relatives_are_refused_by_their_configuration(
    tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    index = {"_class_name": "StableDiffusionXLPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    own = {name: value for name, value in SDXL_CONFIGS["unet"].items() if name != "sample_size"}
    (folder / "unet" / "config.json").write_text(json.dumps(own))
    assert family_of(folder) == "sdxl"
    (folder / "unet" / "config.json").write_text(json.dumps(own | change))
    with pytest.raises(BaseModelError, match=told):
        family_of(folder)


def test_pruned_and_distilled_relatives_are_refused_by_their_files_tensors() -> None:
    names = sdxl_names([320, 640, 1280], [0, 2, 10], [128, 256, 512, 512], (12, 32))
    whole: dict[str, tuple[int, ...] | None] = dict.fromkeys(names)
    whole[FIRST_CONV] = (320, 4, 3, 3)
    assert kind_of_file(whole) is None
    fewer = {name: shape for name, shape in whole.items() if ".transformer_blocks.9." not in name}
    for shapes, told in (
        (fewer, "a pruned relative of SDXL"),
        (whole | {"model.diffusion_model.time_embed.cond_proj.weight": (320, 256)}, "distilled to few"),
    ):
        found = kind_of_file(shapes)
        assert found is not None
        assert told in found[0]


@pytest.mark.parametrize(
    ("name", "is_distilled"),
    [
        ("stabilityai/sdxl-turbo", True), ("/models/DreamShaperXL_Turbo_v2.safetensors", True),
        ("ByteDance/SDXL-Lightning", True), ("latent-consistency/lcm-sdxl", True), ("Hyper-SDXL-8steps", True),
        ("stabilityai/stable-diffusion-xl-base-1.0", False), ("turbo/photoreal", False), ("hyper-real-xl", False),
    ],
)  # fmt: skip
def test_a_distilled_base_is_told_by_its_name_where_nothing_else_tells(name: str, is_distilled: bool) -> None:
    config = TrainingConfig(pretrained_model_name_or_path=name)
    told = setting_notices(config, None, Path("models"))
    assert [name in one and "distilled models is not supported" in one for one in told] == [True] * is_distilled


def test_a_vae_in_one_file_scales_latents_as_its_family_does() -> None:
    from dreambooth.formats.layout import SD1, SDXL
    from dreambooth.models.family import usual_configs

    factors = [usual_configs(layout)["vae"]["scaling_factor"] for layout in (SD1, SDXL)]
    assert factors == [0.18215, 0.13025]


@pytest.mark.parametrize("sampler", ["Euler", "Euler a", "DPM++ 2M Karras"])
def test_a_schedule_to_pure_noise_is_sampled_from_there(sampler: Any) -> None:
    from dreambooth.models.sd import SD15_SCHEDULER
    from dreambooth.pictures.samplers import scheduler_for

    config = SD15_SCHEDULER | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert float(scheduler_for(sampler, config, 10).sigmas[0]) > 1000


def test_pictures_of_sdxl_have_its_guidance_and_size() -> None:
    from dreambooth.config.training import SD15, SDXL_BASE
    from dreambooth.models.base import guidance_of, read_card

    assert [guidance_of(name) for name in (SD15, SDXL_BASE, "starter")] == [7.5, 6.0, 3.0]
    assert read_card(SDXL_BASE).native_px == 1024
