"""Every sampler makes what diffusers makes with it, and each picture from its own seed alone."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dreambooth import rng
from dreambooth.config.generation import SAMPLERS, GenerationConfig, Sampler
from dreambooth.models.base import Base, load_base
from dreambooth.pictures.generation import generate_images
from dreambooth.pictures.samplers import scheduler_for

REQUEST = GenerationConfig(
    prompt="photo of zwx dog", negative_prompt="grey", num_images_per_prompt=2, num_inference_steps=4, seed=7,
    height=32, width=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> Base:
    return dataclasses.replace(load_base(str(tiny_base_folder)), name="tiny")


def made(base: Base, sampler: Sampler, **changes: Any) -> np.ndarray[Any, Any]:
    request = dataclasses.replace(REQUEST, sampler=sampler, **changes)
    images = [picture.image for picture in generate_images(base, request)]
    return np.stack([np.asarray(image, dtype=int) for image in images])


@pytest.mark.parametrize("sampler", [sampler for sampler in SAMPLERS if sampler != "Euler a"])
def test_pictures_are_those_of_diffusers(base: Base, sampler: Sampler) -> None:
    from diffusers import StableDiffusionPipeline

    reference = StableDiffusionPipeline(
        base.vae, base.text_encoder, base.tokenizer, base.unet,
        scheduler_for(sampler, base.noise_scheduler_config, 4), None, None, requires_safety_checker=False,
    )  # fmt: skip
    reference.set_progress_bar_config(disable=True)
    noise = torch.stack([torch.randn((4, 4, 4), generator=rng.generator(7 + i, "generation")) for i in range(2)])
    expected = reference(
        REQUEST.prompt, negative_prompt="grey", num_images_per_prompt=2, num_inference_steps=4, height=32, width=32,
        latents=noise,
    ).images  # fmt: skip
    difference = made(base, sampler) - np.stack([np.asarray(image, dtype=int) for image in expected])
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_needs_its_own_seed_only(base: Base, sampler: Sampler) -> None:
    together = made(base, sampler)
    assert (together == made(base, sampler)).all()
    assert np.abs(together[1] - made(base, sampler, seed=8, num_images_per_prompt=1)[0]).max() <= 1
    assert np.abs(together[0] - together[1]).max() > 1


def test_every_sampler_goes_its_own_way(base: Base) -> None:
    pictures = [made(base, sampler) for sampler in SAMPLERS]
    for number, one in enumerate(pictures):
        assert all(np.abs(one - other).max() > 1 for other in pictures[number + 1 :])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 1000])
def test_any_number_of_steps_begins_at_the_noisy_end(sampler: Sampler, num_steps: int) -> None:
    from dreambooth.models.sd import SD15_SCHEDULER

    times = scheduler_for(sampler, SD15_SCHEDULER, num_steps).timesteps
    assert len(times) == num_steps
    assert 0 <= float(times[-1]) <= float(times[0]) < 1000
    assert float(times[0]) > 400 or (sampler, num_steps) == ("DDIM", 1)
