"""A recipe's text says how to make its picture again, whoever wrote it."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from dreambooth.config import SAMPLERS, GenerationConfig, Sampler
from dreambooth.errors import DreamBoothError
from dreambooth.recipes import read_recipe, recipe_text, text_of_picture

REQUEST = GenerationConfig(
    prompt="photo of zwx dog, on the beach\nat dusk", negative_prompt="blurry, Steps: 3", num_images_per_prompt=1,
    num_inference_steps=30, guidance_scale=6.5, width=64, height=96, seed=2**63 - 1,
)  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_written_is_read_back(sampler: Sampler) -> None:
    request = dataclasses.replace(REQUEST, sampler=sampler)
    recipe = read_recipe(recipe_text(request, 2**63 - 1, (64, 96), "dog/400"))
    assert recipe.request == request
    assert recipe.model == "dog/400"


def test_what_other_tools_write_is_read_too() -> None:
    text = (
        "a cat <lora:x:1>\nNegative prompt: ugly\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 12, Size: 512x768, "
        'Model hash: abc, Model: dream, Lora hashes: "x: 1, y: 2", Version: v1.10.1'
    )
    recipe = read_recipe(text)
    assert recipe.request == GenerationConfig(
        prompt="a cat <lora:x:1>", negative_prompt="ugly", num_images_per_prompt=1, num_inference_steps=20,
        guidance_scale=7, width=512, height=768, seed=12, sampler="DPM++ 2M Karras",
    )  # fmt: skip
    assert recipe.model == "dream"
    assert read_recipe("a cat\nSteps: 20, Sampler: Restart, CFG scale: x, Seed: -1").request.sampler == "DDIM"


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "Steps: many", "\nSteps: 20", "a cat\nSteps: 99999, Seed: 1", "a cat\nSteps: 20, Size: 13x9999999",
     "a cat\nSteps: 20, CFG scale: nan", "a\0cat\nSteps: 20"],
)  # fmt: skip
def test_what_cannot_be_made_is_told(text: str) -> None:
    with pytest.raises(DreamBoothError):
        read_recipe(text)


def test_files_without_a_recipe_are_told(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    for name, told in (("note.png", "cannot be read"), ("plain.png", "no recipe"), ("photo.jpg", "no recipe")):
        with pytest.raises(DreamBoothError, match=told):
            text_of_picture(tmp_path / name)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nSteps: 3")
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=info)
    assert text_of_picture(tmp_path / "made.png") == "a cat\nSteps: 3"
