"""A picture's recipe as the text that other tools read and write in PNGs, and back from it.

The prompt, a line `Negative prompt: ...`, and a line of settings. What other tools add to it is passed over.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from dreambooth.config import SAMPLERS, GenerationConfig, Sampler
from dreambooth.errors import DreamBoothError

# The text chunk's name.
CHUNK = "parameters"
NEGATIVE = "Negative prompt: "
SETTINGS_LINE = re.compile(r"Steps: \d+,? ?")
SETTING = re.compile(r'\s*([A-Za-z][A-Za-z0-9 _-]*): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
STRENGTHS = ("UNet strength", "Text encoder strength")
MAX_TEXT = 100_000


@dataclass(frozen=True)
class Recipe:
    """What a picture was made of: the request for it alone, and the model's name, as far as its text tells."""

    request: GenerationConfig
    model: str = ""


def recipe_text(config: GenerationConfig, seed: int, size: tuple[int, int], model: str) -> str:
    """Return the recipe of one picture."""
    lines = [config.prompt]
    if config.negative_prompt:
        lines.append(f"{NEGATIVE}{config.negative_prompt}")
    settings = [
        f"Steps: {config.num_inference_steps}", f"Sampler: {config.sampler}", f"CFG scale: {config.guidance_scale:g}",
        f"Seed: {seed}", f"Size: {size[0]}x{size[1]}",
    ]  # fmt: skip
    for name, strength in zip(STRENGTHS, (config.unet_strength, config.text_encoder_strength), strict=True):
        if strength != 1:
            settings.append(f"{name}: {strength:g}")
    if model:
        settings.append(f"Model: {model}")
    return "\n".join([*lines, ", ".join(settings)])


def text_of_picture(path: Path) -> str:
    """Return the recipe's text in a picture file; raises DreamBoothError for a file without one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
    # What PIL raises for files that are none of the kinds it reads, damaged, or made to burst.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DreamBoothError(
            f"{path.name} cannot be read.", "It is no picture, or damaged.", "Choose a PNG that this page made."
        ) from None
    if not isinstance(text, str) or not text.strip():
        raise DreamBoothError(
            f"{path.name} holds no recipe.",
            "Pictures that were saved again, as JPEG or by a messenger, have lost it.",
            "Choose the file as it was downloaded here.",
        )
    return text[:MAX_TEXT]


def read_recipe(text: str) -> Recipe:
    """Return what a recipe's text says; raises DreamBoothError when it holds no settings, or impossible ones."""
    lines = text.strip().splitlines()
    place = next((number for number in reversed(range(len(lines))) if SETTINGS_LINE.match(lines[number])), None)
    if place is None:
        raise DreamBoothError("That text is no recipe.", "It has no line that begins with `Steps:`.", "")
    given = {name.strip(): value.strip().strip('"') for name, value in SETTING.findall(lines[place])}
    words = lines[:place]
    start = next((number for number, line in enumerate(words) if line.startswith(NEGATIVE)), len(words))
    negative = "\n".join(words[start:])[len(NEGATIVE) :]
    width, _, height = given.get("Size", "").partition("x")
    request = GenerationConfig(
        prompt="\n".join(words[:start]),
        negative_prompt=negative,
        num_images_per_prompt=1,
        num_inference_steps=_whole(given.get("Steps")) or 24,
        guidance_scale=_number(given.get("CFG scale"), 7.5),
        height=_whole(height),
        width=_whole(width),
        seed=_whole(given.get("Seed")),
        unet_strength=_number(given.get(STRENGTHS[0]), 1.0),
        text_encoder_strength=_number(given.get(STRENGTHS[1]), 1.0),
        sampler=_sampler(given.get("Sampler", ""), given.get("Schedule type", "")),
    )
    return Recipe(request.checked(), given.get("Model", ""))


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text or "")
    except ValueError:
        return otherwise


def _sampler(name: str, schedule: str) -> Sampler:
    """Return our sampler of that name; newer tools name the spacing of its steps apart."""
    by_name: dict[str, Sampler] = {sampler: sampler for sampler in SAMPLERS}
    return by_name.get(f"{name} {schedule}".strip()) or by_name.get(name, "DDIM")
