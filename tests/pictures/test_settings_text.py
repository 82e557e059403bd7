"""A recipe's text says how to make its picture again, whoever wrote it."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dreambooth.config.generation import SAMPLERS, GenerationConfig, Sampler
from dreambooth.errors import DreamBoothError
from dreambooth.pictures.prompts import literal_notice
from dreambooth.pictures.settings_text import UsedLora, lora_name, read_recipe, recipe_text, text_of_picture

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


# The texts that are taken for something else, among any others; of control characters a request takes the line break.
ODD = ("Negative prompt:", "Negative prompt: ", "Steps: 20, ", "Seed: 5", '"', "\\", ",", ":", "\n", " ", "\u2028")
TEXTS = st.lists(
    st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=9), max_size=9
).map("".join)
NUMBERS = st.floats(0, 2, allow_subnormal=False)


@settings(max_examples=300, deadline=None)
@given(prompt=TEXTS, negative=TEXTS, model=TEXTS, strengths=st.tuples(NUMBERS, NUMBERS), guidance=st.floats(0, 50))
def test_whatever_the_texts_are_they_are_read_back(
    prompt: str, negative: str, model: str, strengths: tuple[float, float], guidance: float
) -> None:
    request = dataclasses.replace(
        REQUEST, prompt=f"{prompt}x", negative_prompt=negative, guidance_scale=guidance,
        unet_strength=strengths[0], text_encoder_strength=strengths[1],
    )  # fmt: skip
    recipe = read_recipe(recipe_text(request, 2**63 - 1, (64, 96), model))
    assert (recipe.request, recipe.model, recipe.notices) == (request, model, ())


@settings(max_examples=100, deadline=None)
@given(names=st.lists(TEXTS, max_size=4), strengths=st.lists(st.floats(-5, 5), min_size=4), model=TEXTS)
def test_loras_are_read_back_whatever_their_files_are_called(
    names: list[str], strengths: list[float], model: str
) -> None:
    given_loras = [UsedLora(lora_name(name), f"{n:012x}", strengths[n]) for n, name in enumerate(names)]
    recipe = read_recipe(recipe_text(REQUEST, 2**63 - 1, (64, 96), model, given_loras))
    assert recipe.loras == tuple(given_loras)
    assert (recipe.request, recipe.model) == (REQUEST, model)


def test_loras_of_other_tools_have_their_strength_in_the_prompt() -> None:
    text = 'a cat <lora:x:0.7> <lora:z:1:0.5>\nSteps: 20, Lora hashes: "x: 0123456789ab, y: 2", Version: v1.10.1'
    assert read_recipe(text).loras == (UsedLora("x", "0123456789ab", 0.7), UsedLora("y", "2", 1.0))
    assert read_recipe("a cat\nSteps: 20, Lora hashes: , Lora strengths: x").loras == ()


def test_a_models_name_is_no_setting() -> None:
    """As AUTOMATIC1111 does: what holds a comma, a colon or a line break is a JSON string."""
    text = recipe_text(REQUEST, 12, (64, 96), "x, Seed: 5")
    assert text.endswith(', Model: "x, Seed: 5"')
    assert read_recipe(text).request.seed == 12
    assert recipe_text(REQUEST, 12, (64, 96), "dog/400").endswith(", Model: dog/400")
    older = "a cat\nSteps: 20, Sampler: DDIM, CFG scale: 7, Seed: 12, Size: 64x96, Model: x, Seed: 5"
    assert read_recipe(older).request.seed == 12


def test_a_negative_prompt_needs_no_space() -> None:
    read = read_recipe("a cat\r\nNegative prompt:ugly\r\nblurry\r\nSteps: 20").request
    assert (read.prompt, read.negative_prompt) == ("a cat", "ugly\nblurry")


@pytest.mark.parametrize(
    ("line", "taken", "told"),
    [("Sampler: Restart", "DDIM", '"Restart"'), ("Sampler: Euler, Schedule type: Beta", "Euler", '"Euler Beta"'),
     ("Sampler: DPM++ 2M, Schedule type: Automatic", "DPM++ 2M Karras", ""), ("Seed: 3", "DDIM", ""),
     ("Sampler: Euler a, Schedule type: Automatic", "Euler a", "")],
)  # fmt: skip
def test_a_sampler_that_is_not_here_is_told(line: str, taken: str, told: str) -> None:
    recipe = read_recipe(f"a cat\nSteps: 20, {line}")
    assert recipe.request.sampler == taken
    assert bool(recipe.notices) == bool(told)
    assert told in "".join(recipe.notices)


def test_the_syntax_of_other_tools_is_told() -> None:
    told = literal_notice("a (red:1.3) hat <lora:x:1>", "BREAK, (a cat : .5)", "(red:1.3)")
    assert '"(red:1.3)", "<lora:x:1>", "BREAK" and more have no special meaning' in told
    assert '"BREAK" has no special meaning' in literal_notice("a BREAK b")
    for plain in ("", "a (small) dog", "break dance", "3:1", "(at 10:30 am)", "a <b> c", "BREAKFAST", "f(x: y)"):
        assert literal_notice(plain) == "", plain


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
    for name, told in (
        ("note.png", "cannot be read"),
        ("plain.png", "no picture settings"),
        ("photo.jpg", "no picture settings"),
    ):
        with pytest.raises(DreamBoothError, match=told):
            text_of_picture(tmp_path / name)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat\nSteps: 3")
    Image.new("RGB", (8, 8)).save(tmp_path / "made.png", pnginfo=info)
    assert text_of_picture(tmp_path / "made.png") == "a cat\nSteps: 3"
