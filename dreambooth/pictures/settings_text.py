"""An image's settings as the text that other tools read and write in PNGs, and its parser.

The prompt, a line `Negative prompt: ...`, and a line of settings. A value with a comma, a colon or a line break is a
JSON string (AUTOMATIC1111's rule). Other tools' additions are ignored.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.config.generation import SAMPLERS, GenerationConfig, Sampler
from dreambooth.errors import DreamBoothError
from dreambooth.models.lora_file import HASH_DIGITS, tensors_hash

# The text chunk's name.
CHUNK = "parameters"
NEGATIVE = "Negative prompt:"
SETTINGS_LINE = re.compile(r"Steps: \d+,? ?")
# A name of limited length: otherwise a long text without a colon is searched once from each character.
SETTING = re.compile(r'\s*([A-Za-z][A-Za-z0-9 _-]{0,60}): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')
STRENGTHS = ("UNet strength", "Text encoder strength")
# AUTOMATIC1111 writes the hashes, "name: hash, name: hash", and has the strengths in the prompt; since prompts are read
# literally here, they have a list of their own, which it ignores.
LORA_HASHES, LORA_STRENGTHS = "Lora hashes", "Lora strengths"
# Separates the names of a LoRA run's step and of the base model it was added to.
ON_BASE = " on "
LORA_IN_PROMPT = re.compile(r"<lora:([^<>:]{1,200}):([0-9.]{1,20})[^<>]{0,100}>")
# The number of lines in the prompt, written if one of them begins like the negative prompt's line.
PROMPT_LINES = "Prompt lines"
# The spacing of a sampler's steps if its name implies none.
PLAIN_SCHEDULES = ("", "Automatic", "Normal", "Uniform", "DDIM")
MAX_TEXT = 100_000


@dataclass(frozen=True)
class UsedLora:
    """A LoRA in an image's text: its file's name without suffix, the beginning of its hash, and its strength."""

    name: str
    hash: str
    strength: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """What an image was made from: the request for it alone, and the model's name, as far as its text tells.

    notices: what of the text cannot be used here; loras: what was added to the model. The text does not say where their
    files are, so the request has none.
    """

    request: GenerationConfig
    model: str = ""
    notices: tuple[str, ...] = ()
    loras: tuple[UsedLora, ...] = ()


def loras_used(config: GenerationConfig) -> tuple[UsedLora, ...]:
    """Return the LoRAs of a request, whose files are read, as they appear in the text of its images."""
    return tuple(
        UsedLora(lora_name(Path(one.file).stem), tensors_hash(Path(one.file))[:HASH_DIGITS], one.strength)
        for one in config.loras
    )


def lora_name(stem: str) -> str:
    """Return a file's name for the text's lists, without characters that would end it there, as AUTOMATIC1111 does."""
    return re.sub(r"[:,\s]+", " ", stem).strip() or "lora"


def recipe_text(
    config: GenerationConfig, seed: int, size: tuple[int, int], model: str, loras: Sequence[UsedLora] = ()
) -> str:
    """Return the text of one image."""
    lines = [config.prompt]
    if config.negative_prompt:
        lines.append(f"{NEGATIVE} {config.negative_prompt}")
    settings = [
        f"Steps: {config.num_inference_steps}", f"Sampler: {config.sampler}",
        f"CFG scale: {_shortest(config.guidance_scale)}", f"Seed: {seed}", f"Size: {size[0]}x{size[1]}",
    ]  # fmt: skip
    prompt_lines = config.prompt.split("\n")
    if any(line.startswith(NEGATIVE) for line in prompt_lines):
        settings.append(f"{PROMPT_LINES}: {len(prompt_lines)}")
    for name, strength in zip(STRENGTHS, (config.unet_strength, config.text_encoder_strength), strict=True):
        if strength != 1:
            settings.append(f"{name}: {_shortest(strength)}")
    if loras:
        hashes = ", ".join(f"{one.name}: {one.hash}" for one in loras)
        strengths = ", ".join(f"{one.name}: {_shortest(one.strength)}" for one in loras)
        settings += [f"{LORA_HASHES}: {_quoted(hashes)}", f"{LORA_STRENGTHS}: {_quoted(strengths)}"]
    if model:
        settings.append(f"Model: {_quoted(model)}")
    return "\n".join([*lines, ", ".join(settings)])


def text_of_picture(path: Path) -> str:
    """Return the settings text in an image file; raises DreamBoothError for a file without one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.info.get(CHUNK)
    # What PIL raises for files that are not images, damaged, or decompression bombs.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DreamBoothError(
            f"{path.name} cannot be read.",
            "It is not a picture, or it is damaged.",
            "Choose a PNG that this page made.",
        ) from None
    if not isinstance(text, str) or not text.strip():
        raise DreamBoothError(
            f"{path.name} contains no picture settings.",
            "Pictures that were saved again, as JPEG or by a messenger app, lose them.",
            "Choose the original file.",
        )
    return text[:MAX_TEXT]


def read_recipe(text: str) -> Recipe:
    """Parse a settings text; raises DreamBoothError if it holds no settings, or impossible ones."""
    lines = text.replace("\r\n", "\n").split("\n")
    place = next((number for number in reversed(range(len(lines))) if SETTINGS_LINE.match(lines[number])), None)
    if place is None:
        raise DreamBoothError(
            "That text contains no picture settings.", "It has no line that begins with `Steps:`.", ""
        )
    # Of two settings with one name the first counts: in older images the model's name is unquoted, and last.
    given = {name: _unquoted(value.strip()) for name, value in reversed(SETTING.findall(lines[place]))}
    words = lines[:place]
    first = _whole(given.get(PROMPT_LINES)) or 0
    start = next((number for number in range(first, place) if words[number].startswith(NEGATIVE)), place)
    negative = "\n".join(words[start:]).removeprefix(NEGATIVE).removeprefix(" ")
    width, _, height = given.get("Size", "").partition("x")
    sampler, notices = _sampler(given.get("Sampler", ""), given.get("Schedule type", ""))
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
        sampler=sampler,
    )
    loras = _loras(given.get(LORA_HASHES, ""), given.get(LORA_STRENGTHS, ""), request.prompt)
    return Recipe(request.checked(), given.get("Model", ""), notices, loras)


def _loras(hashes: str, strengths: str, prompt: str) -> tuple[UsedLora, ...]:
    """Return the LoRAs of both lists, which have one order; if there is one alone, strengths are the prompt's."""
    in_prompt = {name.strip(): _number(text, 1.0) for name, text in LORA_IN_PROMPT.findall(prompt)}
    own = [_number(text, 1.0) for _, text in _pairs(strengths)]
    found = _pairs(hashes)
    if len(own) != len(found):
        own = [in_prompt.get(name, 1.0) for name, _ in found]
    return tuple(UsedLora(name, text, strength) for (name, text), strength in zip(found, own, strict=True))


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return the names and values of `name: value, name: value`."""
    pairs = [part.rpartition(":") for part in text.split(",")]
    return [(name.strip(), value.strip()) for name, _, value in pairs if name.strip()]


def _quoted(value: str) -> str:
    """Return a value for the line of settings: as JSON if it could not be read back as it is."""
    is_plain = value == value.strip() and not set(value) & set(',:\n"')
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _unquoted(value: str) -> str:
    if len(value) < 2 or not (value[0] == value[-1] == '"'):
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError:
        return value.strip('"')


def _shortest(number: float) -> str:
    """Return the shortest text that is parsed as the same number."""
    return repr(float(number)).removesuffix(".0")


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def _number(text: str | None, otherwise: float) -> float:
    try:
        return float(text or "")
    except ValueError:
        return otherwise


def _sampler(name: str, schedule: str) -> tuple[Sampler, tuple[str, ...]]:
    """Return our sampler of that name, and a notice if there is none.

    Newer tools name the schedule, the spacing of its steps, separately.
    """
    by_name: dict[str, Sampler] = {sampler: sampler for sampler in SAMPLERS}
    whole = f"{name} {schedule}".strip()
    if not name or whole in by_name:
        return by_name.get(whole, "DDIM"), ()
    if name in by_name and schedule in PLAIN_SCHEDULES:
        # In AUTOMATIC1111 DPM++ 2M's default schedule is Karras's.
        automatic = by_name.get(f"{name} Karras") if schedule == "Automatic" else None
        return automatic or by_name[name], ()
    taken = by_name.get(name, "DDIM")
    notice = f'The sampler "{whole[:60]}" is not available here: "{taken}" is chosen, which makes another picture.'
    return taken, (notice,)
