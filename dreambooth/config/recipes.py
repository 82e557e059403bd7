"""Defaults per family and method, as data, used where neither user, base card nor preset sets a value.

Full fine-tuning uses those of the seed script, which are the fields' own.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dreambooth.config.fields import describe
from dreambooth.config.training import MethodName, TrainingConfig
from dreambooth.formats.layout import FamilyName

# Factors start at zero and are trained at 20 to 100 times the rates of whole weights; half the UNet's rate for the text
# encoder is what most recipes for SD 1.5 have.
LORA: dict[str, Any] = {"learning_rate": 1e-4, "text_encoder_lr": 5e-5}
# 1024 px, and the guidance scale of its samples (Podell et al. 2023); images always have captions of 77 tokens.
SDXL: dict[str, Any] = {"resolution": 1024, "pad_tokens": True, "save_guidance_scale": 6.0, "class_guidance_scale": 5.0}
DEFAULTS: dict[tuple[FamilyName, MethodName], Mapping[str, Any]] = {
    ("sd1", "full"): {},
    ("sd1", "lora"): LORA,
    ("sd2", "full"): {},
    ("sd2", "lora"): LORA,
    ("sdxl", "full"): SDXL,
    ("sdxl", "lora"): LORA | SDXL,
}
# Below these resolutions a family's images fall apart, so they are no way to save memory. SDXL was not trained for 512
# px; at 768 px it keeps the likeness.
MIN_PX: dict[FamilyName, int] = {"sd1": 256, "sd2": 256, "sdxl": 768}
# The result of each method, in words; and the method that needs less memory than another.
OUTCOMES: dict[MethodName, str] = {"full": "a full fine-tuning", "lora": "a LoRA"}
LEANER: dict[MethodName, MethodName] = {"full": "lora"}
# Rates this many times above or below the card's own get a warning.
FAR = 10
# Rates at which this method is known to work, if no card says otherwise.
USUAL_RATES: dict[MethodName, tuple[float, float]] = {"full": (1e-7, 2e-5), "lora": (2e-5, 1e-3)}


def rate_warning(config: TrainingConfig, card_recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a warning for a learning rate far from what is usual for the method, or from the card's if it has one."""
    usual = card_recipes.get(config.method, {}).get("learning_rate")
    low, high = USUAL_RATES[config.method] if usual is None else (usual / FAR, usual * FAR)
    rate = config.learning_rate
    if low <= rate <= high:
        return ""
    (other,) = OUTCOMES.keys() - {config.method}
    outcome = "the model may break" if rate > high else "it will learn very little"
    text = f'"learning_rate" is {rate:g}, and {OUTCOMES[config.method]} of this base usually has {low:g} to {high:g}'
    others_low, others_high = USUAL_RATES[other]
    hint = f" It may be a rate for {OUTCOMES[other]}." if others_low <= rate <= others_high else ""
    return f"{text}: {outcome}.{hint}"


def leaner_method(config: TrainingConfig) -> tuple[TrainingConfig, str] | None:
    """Return these settings with a method that needs less memory, and its result in words; None if there is none.

    Settings that only the old method reads are dropped; rates are not changed.
    """
    method = LEANER.get(config.method)
    if method is None:
        return None
    own = {info.name: info.default for info in describe(TrainingConfig) if info.method == config.method}
    return dataclasses.replace(config, method=method, **own), OUTCOMES[method]
