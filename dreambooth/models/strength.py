"""A trained model at another strength: base + s (trained - base), separately for the UNet and the text encoder.

Interpolated weights give working models (Wortsman et al. 2022, WiSE-FT, arXiv 2109.01903), so an overtrained run can be
weakened without another training.
"""

from dataclasses import dataclass
from typing import Any

from dreambooth.errors import BaseModelError


@dataclass(frozen=True)
class Strength:
    """How much of each part's change is applied: 0 is the base, 1 the model as trained, more exaggerates it."""

    unet: float = 1.0
    text_encoder: float = 1.0

    @property
    def is_whole(self) -> bool:
        """Return whether the model stays as it was trained."""
        return self.unet == 1 and self.text_encoder == 1

    def of(self, part: str) -> float:
        """Return the strength of a part, such as `text_encoder_2`."""
        return self.unet if part == "unet" else self.text_encoder

    def __str__(self) -> str:
        return f"unet {self.unet:g}, text encoder {self.text_encoder:g}"


WHOLE = Strength()


def mix(trained: Any, base: Any, strength: float, model_dir: str) -> None:
    """Change the trained weights in place to base + strength (trained - base)."""
    if strength == 1:
        return
    refuse_other_base(trained, base, model_dir)
    own, before = trained.state_dict(), base.state_dict()
    for name, weight in own.items():
        if weight.is_floating_point():
            # lerp is exact at both ends.
            weight.copy_(before[name].to(weight).lerp(weight, strength))


def refuse_other_base(trained: Any, base: Any, model_dir: str) -> None:
    """Raise BaseModelError if a part cannot have been trained from that of this base."""
    own, before = trained.state_dict(), base.state_dict()
    if own.keys() != before.keys() or any(own[name].shape != before[name].shape for name in own):
        raise BaseModelError(
            f"{model_dir} is not of the base that its settings name.", "Their weights differ in names or shapes.",
            "Leave both strengths at 1, or give the base model with --base.",
        )  # fmt: skip
