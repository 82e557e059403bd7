"""The settings of one generation request, and the samplers."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

from dreambooth.config.fields import others, out_of_range, parse_numbers, setting
from dreambooth.config.limits import as_written, sizes_off_grid, text_problems, user_path
from dreambooth.errors import ConfigError, FieldProblem

Sampler = Literal["DDIM", "DPM++ 2M", "DPM++ 2M Karras", "Euler", "Euler a"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)

# Below 0 a LoRA has the opposite of its effect; sliders are used like that, and far beyond 1.
MAX_LORA_STRENGTH = 5.0
MAX_LORAS = 16


@dataclass(frozen=True)
class AddedLora:
    """A LoRA file that is added to the model for generation, and its strength; 0 has no effect."""

    file: str
    strength: float = 1.0

    @classmethod
    def of(cls, text: str) -> Self:
        """Parse `FILE` or `FILE:STRENGTH`; only a colon before a number separates the two."""
        match = re.fullmatch(r"(.+):([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", text, re.DOTALL)
        file, strength = (match[1], float(match[2])) if match else (text, 1.0)
        return cls(str(user_path(file)), strength)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One generation request."""

    prompt: str = setting("", "What the pictures show; include the identifier to get your subject.", "samples")
    negative_prompt: str = setting("", "What the pictures should not show.", "samples")
    num_images_per_prompt: int = setting(
        4, "Pictures made for each prompt, each with a seed of its own.", "samples", unit="pictures", low=1, high=64
    )
    num_inference_steps: int = setting(24, "Denoising steps.", "samples", unit="steps", low=1, high=1000)
    guidance_scale: float = setting(7.5, "How closely the pictures follow the prompt.", "samples", low=0, high=50)
    height: int | None = setting(
        None, "Height; default: the model's native size.", "samples", unit="px", low=16, high=2048
    )
    width: int | None = setting(
        None, "Width; default: the model's native size.", "samples", unit="px", low=16, high=2048
    )
    seed: int | None = setting(
        None, "The same seed gives the same pictures; default: a random one, which is recorded.", "samples",
        low=0, high=2**63 - 1,
    )  # fmt: skip
    sampler: Sampler = setting("DDIM", "Method of denoising; DPM++ needs fewer steps, Euler a varies more.", "samples")
    unet_strength: float = setting(
        1.0, "Strength of what the UNet learned: 0 is the base model; below 1 weakens an overtrained model.",
        "samples", low=0, high=2,
    )  # fmt: skip
    text_encoder_strength: float = setting(
        1.0, "The same for the text encoder, if it was trained.", "samples", low=0, high=2
    )
    # LoRA files added to the model, whatever it is; the strengths above apply to the model's own training.
    loras: tuple[AddedLora, ...] = ()

    def __post_init__(self) -> None:
        parse_numbers(self)

    def checked(self) -> Self:
        """Return this request, or raise one ConfigError with everything that is wrong with it."""
        problems = out_of_range(self)
        problems += others(problems, sizes_off_grid({"height": self.height, "width": self.width}))
        problems += _lora_problems(self.loras)
        if not problems and not self.prompt.strip():
            problems = [FieldProblem("prompt", "is empty: write what the pictures should show.")]
        if problems:
            raise ConfigError(problems)
        return self


def _lora_problems(loras: tuple[AddedLora, ...]) -> list[FieldProblem]:
    """Return what is wrong with the LoRAs of a request; whether the files exist is checked when they are read."""
    problems = [problem for one in loras for problem in text_problems("lora", one.file, is_name=True)]
    if len(loras) > MAX_LORAS:
        problems.append(FieldProblem("lora", f"names {len(loras)} files: at most {MAX_LORAS}."))
    for number, one in enumerate(loras):
        name = as_written(Path(one.file).name)
        if one.file in {other.file for other in loras[:number]}:
            problems.append(FieldProblem("lora", f"names {name} twice: give it once, with one strength."))
        if not (math.isfinite(one.strength) and abs(one.strength) <= MAX_LORA_STRENGTH):
            limit = f"{MAX_LORA_STRENGTH:g}"
            problems.append(FieldProblem("lora", f"adds {name} at {one.strength:g}: it must be -{limit} to {limit}."))
    return problems
