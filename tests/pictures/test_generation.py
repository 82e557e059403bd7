"""Pictures with their recipe, from models that are afterwards what they were."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth import rng
from dreambooth.config.generation import GenerationConfig
from dreambooth.models.base import Base, load_base
from dreambooth.pictures.generation import Picture, generate_images, save_picture
from dreambooth.pictures.samplers import scheduler_for

REQUEST = GenerationConfig(
    prompt="photo of zwx dog", negative_prompt="grey", num_images_per_prompt=3, num_inference_steps=3, seed=40,
    height=32, width=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> Base:
    return dataclasses.replace(load_base(str(tiny_base_folder)), name="tiny")


def values(pictures: Iterator[Picture] | list[Picture]) -> np.ndarray[Any, Any]:
    return np.stack([np.asarray(picture.image, dtype=int) for picture in pictures])


def changed(request: GenerationConfig, **values: Any) -> GenerationConfig:
    return dataclasses.replace(request, **values)


def test_pictures_are_those_of_the_pipeline_of_diffusers(base: Base) -> None:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler.from_config(
        base.noise_scheduler_config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    reference = StableDiffusionPipeline(
        base.vae, base.text_encoder, base.tokenizer, base.unet, scheduler, None, None, requires_safety_checker=False
    )
    reference.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn((4, 4, 4), generator=rng.generator(40 + i, "generation")) for i in range(3)])
    for scale in (7.5, 1.0):
        expected = reference(
            REQUEST.prompt, negative_prompt="grey", num_images_per_prompt=3, num_inference_steps=3, height=32, width=32,
            guidance_scale=scale, latents=noise,
        ).images  # fmt: skip
        ours = values(generate_images(base, changed(REQUEST, guidance_scale=scale)))
        assert np.abs(ours - np.stack([np.asarray(image, dtype=int) for image in expected])).max() <= 1


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_picture_is_the_same_in_any_batch(base: Base, batch_size: int) -> None:
    together = values(generate_images(base, REQUEST))
    assert np.abs(together - values(generate_images(base, REQUEST, batch_size=batch_size))).max() <= 1
    assert (together == values(generate_images(base, REQUEST))).all()
    assert np.abs(together[0] - together[1]).max() > 1


def test_the_seed_in_a_recipe_makes_that_picture_alone(base: Base) -> None:
    pictures = list(generate_images(base, REQUEST))
    assert [picture.seed for picture in pictures] == [40, 41, 42]
    alone = values(generate_images(base, changed(REQUEST, seed=42, num_images_per_prompt=1)))
    assert np.abs(alone[0] - values(pictures)[2]).max() <= 1
    chosen = list(generate_images(base, REQUEST, indices=[2, 0]))
    assert [picture.seed for picture in chosen] == [42, 40]
    assert np.abs(values(chosen) - values(pictures)[[2, 0]]).max() <= 1


def test_a_left_out_seed_is_drawn_and_recorded(base: Base) -> None:
    request = changed(REQUEST, seed=None, num_images_per_prompt=2)
    first, second = list(generate_images(base, request)), list(generate_images(base, request))
    assert first[1].seed == first[0].seed + 1
    assert first[0].seed != second[0].seed
    again = generate_images(base, changed(request, seed=first[0].seed))
    assert (values(again) == values(first)).all()


def test_streams_and_the_global_generator_are_apart(base: Base) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    generation = values(generate_images(base, REQUEST))
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.abs(generation - values(generate_images(base, REQUEST, stream="class_images"))).max() > 1


def test_sizes(base: Base) -> None:
    small = changed(REQUEST, num_images_per_prompt=1, num_inference_steps=1)
    native = base.unet.config.sample_size * 8
    for request, native_px, expected in (
        (changed(small, width=48, height=24), None, (48, 24)),
        (changed(small, width=None, height=None), None, (native, native)),
        (changed(small, width=None, height=24), 16, (16, 24)),
    ):
        (picture,) = generate_images(base, request, native_px=native_px)
        assert picture.image.size == expected
        assert f"Size: {expected[0]}x{expected[1]}," in picture.recipe


def test_the_recipe_is_in_the_png(base: Base, tmp_path: Path) -> None:
    picture = list(generate_images(base, REQUEST))[1]
    save_picture(picture, tmp_path / "out" / "1.png")
    with Image.open(tmp_path / "out" / "1.png") as image:
        assert image.info["parameters"] == (
            "photo of zwx dog\n"
            "Negative prompt: grey\n"
            "Steps: 3, Sampler: DDIM, CFG scale: 7.5, Seed: 41, Size: 32x32, Model: tiny"
        )
        assert (np.asarray(image) == np.asarray(picture.image)).all()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1.png"]


def test_recipes_in_any_script_are_kept(tmp_path: Path) -> None:
    recipe = "\u732b, caf\u00e9\nSteps: 1"
    save_picture(Picture(Image.new("RGB", (2, 2)), 1, recipe), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").info["parameters"] == recipe


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_picture(Picture(Image.new("RGB", (2, 2)), 1, ""), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_no_negative_prompt_no_line_and_no_model_no_name(base: Base) -> None:
    nameless = dataclasses.replace(base, name="")
    request = changed(REQUEST, negative_prompt="", num_images_per_prompt=1, guidance_scale=5.0)
    (picture,) = generate_images(nameless, request)
    assert picture.recipe == "photo of zwx dog\nSteps: 3, Sampler: DDIM, CFG scale: 5, Seed: 40, Size: 32x32"


# Progress and stopping -----------------------------------------------------------------------------------------------


def test_progress_counts_every_step_of_every_batch(base: Base) -> None:
    told: list[tuple[int, int]] = []
    list(generate_images(base, REQUEST, batch_size=2, on_step=lambda done, total: told.append((done, total))))
    assert told == [(done, 6) for done in range(1, 7)]


@pytest.mark.parametrize(("stop_at", "num_pictures"), [(1, 0), (2, 0), (3, 0), (4, 1), (6, 1), (8, 2), (99, 3)])
def test_stopping_ends_after_the_current_step(base: Base, stop_at: int, num_pictures: int) -> None:
    steps: list[int] = []
    pictures = list(
        generate_images(
            base, REQUEST, batch_size=1, on_step=lambda done, total: steps.append(done),
            should_stop=lambda: len(steps) >= stop_at,
        )
    )  # fmt: skip
    assert len(pictures) == num_pictures
    assert len(steps) == min(stop_at, 9)


# Models in training --------------------------------------------------------------------------------------------------


def test_models_in_training_stay_as_they_are(base: Base) -> None:
    base.unet.train()
    base.text_encoder.train()
    frozen = base.unet.conv_in.eval()
    before = {name: value.clone() for name, value in base.unet.state_dict().items()}
    modes = [module.training for module in base.unet.modules()]
    seen: list[tuple[bool, bool]] = []
    try:
        for _ in generate_images(
            base, REQUEST, batch_size=1,
            on_step=lambda done, total: seen.append((base.unet.training, torch.is_grad_enabled())),
        ):  # fmt: skip
            # Between two pictures the caller's world is whole.
            assert [module.training for module in base.unet.modules()] == modes
            assert torch.is_grad_enabled()
        assert set(seen) == {(False, False)}
        assert not frozen.training
        assert base.text_encoder.training
        assert not base.vae.training
        assert all(torch.equal(value, before[name]) for name, value in base.unet.state_dict().items())
        assert all(parameter.grad is None for parameter in base.unet.parameters())
    finally:
        base.unet.eval()
        base.text_encoder.eval()


def test_modes_come_back_when_something_fails(base: Base) -> None:
    def fail(done: int, total: int) -> None:
        raise RuntimeError("on the way")

    base.unet.train()
    try:
        with pytest.raises(RuntimeError, match="on the way"):
            list(generate_images(base, REQUEST, on_step=fail))
        assert base.unet.training
        assert torch.is_grad_enabled()
    finally:
        base.unet.eval()


def test_mixed_precision_and_half_weights_make_the_same_picture(base: Base) -> None:
    import copy

    exact = values(generate_images(base, REQUEST))
    mixed = values(generate_images(base, REQUEST, autocast_dtype=torch.bfloat16))
    halves = {name: copy.deepcopy(getattr(base, name)).to(torch.bfloat16) for name in ("unet", "text_encoder", "vae")}
    half = values(generate_images(dataclasses.replace(base, **halves), REQUEST))
    assert next(base.unet.parameters()).dtype == torch.float32
    for close in (mixed, half):
        assert np.abs(exact - close).mean() < 8


# Prompts and schedules -----------------------------------------------------------------------------------------------


def test_what_is_cut_from_a_long_prompt_is_told_once(base: Base) -> None:
    told: list[str] = []
    request = changed(REQUEST, prompt=" ".join(["zwx"] * 60 + ["meadow"] * 30))
    pictures = list(generate_images(base, request, batch_size=1, notice=told.append))
    assert len(pictures) == 3
    assert len(told) == 1
    assert re.fullmatch(r'The prompt has more than 75 tokens; not read: ".*meadow ?"', told[0])


def test_an_overflow_is_told_and_black(base: Base) -> None:
    import copy

    broken = copy.deepcopy(base.unet)
    torch.nn.init.constant_(broken.conv_out.bias, float("nan"))
    told: list[str] = []
    sick = dataclasses.replace(base, unet=broken)
    pictures = list(generate_images(sick, changed(REQUEST, num_images_per_prompt=1), notice=told.append))
    assert values(pictures).max() == 0
    assert "overflowed" in told[0]


@pytest.mark.parametrize(("num_steps", "first", "last"), [(1, 1, 1), (24, 944, 1), (500, 999, 1), (1000, 999, 0)])
def test_schedules_stay_within_the_noise_levels(num_steps: int, first: int, last: int) -> None:
    # 24 steps: 1000 // 24 = 41 apart, from 23 * 41 + 1 = 944 down to 1.
    config = {"num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": True, "_class_name": "PNDMScheduler"}
    scheduler = scheduler_for("DDIM", config, num_steps)
    assert (int(scheduler.timesteps[0]), int(scheduler.timesteps[-1])) == (first, last)
    assert not scheduler.config.clip_sample
