"""The settings of one request for pictures, and the samplers that may make them."""

from dataclasses import dataclass
from typing import Literal, Self, get_args

from dreambooth.config.fields import others, out_of_range, parse_numbers, setting
from dreambooth.config.limits import sizes_off_grid
from dreambooth.errors import ConfigError, FieldProblem

Sampler = Literal["DDIM", "DPM++ 2M", "DPM++ 2M Karras", "Euler", "Euler a"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One request for pictures."""

    prompt: str = setting("", "What the pictures show; a taught model wants its identifier in it.", "samples")
    negative_prompt: str = setting("", "What the pictures should not show.", "samples")
    num_images_per_prompt: int = setting(4, "How many pictures.", "samples", unit="pictures", low=1, high=64)
    num_inference_steps: int = setting(24, "Denoising steps.", "samples", unit="steps", low=1, high=1000)
    guidance_scale: float = setting(7.5, "How closely the prompt is followed.", "samples", low=0, high=50)
    height: int | None = setting(
        None, "Height; the model's native size when left out.", "samples", unit="px", low=16, high=2048
    )
    width: int | None = setting(
        None, "Width; the model's native size when left out.", "samples", unit="px", low=16, high=2048
    )
    seed: int | None = setting(
        None, "The same seed gives the same pictures; drawn and recorded when left out.", "samples",
        low=0, high=2**63 - 1,
    )  # fmt: skip
    sampler: Sampler = setting(
        "DDIM", "The way from noise to the picture; DPM++ needs fewer steps, Euler a varies more.", "samples"
    )
    unet_strength: float = setting(
        1.0, "How much of what the UNet learned counts: 0 is the base, below 1 weakens an overdone training.",
        "samples", low=0, high=2,
    )  # fmt: skip
    text_encoder_strength: float = setting(
        1.0, "The same for the text encoder, where it was taught.", "samples", low=0, high=2
    )

    def __post_init__(self) -> None:
        parse_numbers(self)

    def checked(self) -> Self:
        """Return this request, or raise one ConfigError with all that is wrong with it."""
        problems = out_of_range(self)
        problems += others(problems, sizes_off_grid({"height": self.height, "width": self.width}))
        if not problems and not self.prompt.strip():
            problems = [FieldProblem("prompt", "is empty: write what the pictures should show.")]
        if problems:
            raise ConfigError(problems)
        return self
