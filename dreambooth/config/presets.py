"""Presets: the seed notebook's recipe in several memory configurations, merged with the other sources of settings."""

from collections.abc import Collection, Mapping
from typing import Any

from dreambooth.config.effects import is_idle
from dreambooth.config.fields import describe
from dreambooth.config.limits import as_written
from dreambooth.config.recipes import DEFAULTS
from dreambooth.config.training import Kind, MethodName, TrainingConfig
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.formats.layout import LAYOUTS, FamilyName

# The seed notebook's launch cell. Two differences: prompts are padded, because generation pads them, and a model is
# saved every 200 steps, because the last step is seldom the best.
NOTEBOOK_RECIPE: dict[str, Any] = {
    "train_text_encoder": True,
    "with_prior_preservation": True,
    "prior_loss_weight": 1.0,
    "num_class_images": 50,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_train_steps": 800,
    "resolution": 512,
    "train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "seed": 1337,
    "save_interval": 200,
    "pad_tokens": True,
}
# The notebook's rate, and that of a UNet trained alone. A LoRA has that of its defaults.
LEARNING_RATE, UNET_ONLY_LEARNING_RATE = 1e-6, 2e-6

# Weights are updated one at a time during backward: no loss scale, no global norm.
LEAN: dict[str, Any] = {
    "mixed_precision": "bf16",
    "use_8bit_adam": True,
    "gradient_checkpointing": True,
    "update_in_backward": True,
    "max_grad_norm": 0.0,
}
MEMORY_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "minimum": {"mixed_precision": "fp16", "use_8bit_adam": True, "gradient_checkpointing": True},
    "recommended": {"mixed_precision": "fp16", "use_8bit_adam": True},
    "high_speed": {"mixed_precision": "fp16", "use_8bit_adam": True, "train_batch_size": 2},
    "full_precision": {"mixed_precision": "no", "gradient_checkpointing": True},
    "lean": LEAN,
    "leanest": LEAN | {"weight_precision": "bf16"},
}
PRESETS = tuple(MEMORY_CONFIGURATIONS)
# A LoRA's gradients and moments are small: memory is saved by a base in half precision, and by checkpointing.
LEAN_LORA: dict[str, Any] = {"mixed_precision": "fp16", "gradient_checkpointing": True, "train_text_encoder": False}
LORA_MEMORY_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "minimum": {"mixed_precision": "fp16", "gradient_checkpointing": True},
    "recommended": {"mixed_precision": "fp16"},
    "high_speed": {"mixed_precision": "fp16", "train_batch_size": 2},
    "full_precision": {"mixed_precision": "no", "gradient_checkpointing": True},
    "lean": LEAN_LORA,
    "leanest": LEAN_LORA | {"lora_targets": "attention"},
}
METHOD_RECIPES: dict[MethodName, dict[str, dict[str, Any]]] = {
    "full": {
        name: NOTEBOOK_RECIPE | {"learning_rate": LEARNING_RATE} | memory
        for name, memory in MEMORY_CONFIGURATIONS.items()
    },
    "lora": {name: NOTEBOOK_RECIPE | memory for name, memory in LORA_MEMORY_CONFIGURATIONS.items()},
}
# SDXL's text encoders have as many weights as SD 1.5's UNet, and most recipes freeze them; its images have four times
# the area.
SDXL_RECIPE: dict[str, Any] = {"train_text_encoder": False}
SDXL_LEAN: dict[str, Any] = {"sample_batch_size": 1}
FAMILY_CHANGES: dict[FamilyName, dict[str, dict[str, Any]]] = {
    "sdxl": {name: SDXL_RECIPE | (SDXL_LEAN if name.startswith("lean") else {}) for name in PRESETS},
}
# The recipes by family and method, for each of the method's memory configurations.
RECIPES: dict[tuple[FamilyName, MethodName], dict[str, dict[str, Any]]] = {
    (family, method): {name: recipe | FAMILY_CHANGES.get(family, {}).get(name, {}) for name, recipe in recipes.items()}
    for family in LAYOUTS
    for method, recipes in METHOD_RECIPES.items()
}

STEP_RANGES: dict[Kind, tuple[int, int]] = {
    "person": (800, 1200), "pet": (800, 800), "object": (400, 600), "style": (400, 600),
}  # fmt: skip


def method_asked_for(explicit: Mapping[str, Any]) -> MethodName:
    """Return the requested method; one that does not exist is reported together with all other mistakes."""
    asked = explicit.get("method", "full")
    return asked if asked in list(METHOD_RECIPES) else "full"


def decided_by_presets(method: MethodName) -> tuple[str, ...]:
    """Return the names of the settings in which the presets of this method differ, in any family."""
    recipes = [recipe for (_, one), named in RECIPES.items() if one == method for recipe in named.values()]
    names = dict.fromkeys(name for recipe in recipes for name in recipe)
    return tuple(name for name in names if any(recipe.get(name) != recipes[0].get(name) for recipe in recipes))


def preset(name: str, method: MethodName = "full", family: FamilyName = "sd1") -> dict[str, Any]:
    """Return the notebook's recipe for this family and method under one of the method's memory configurations."""
    if name not in PRESETS:
        raise ConfigError([FieldProblem("preset", f"{as_written(name)} is not one of {', '.join(PRESETS)}.")])
    return RECIPES[family, method][name]


def recommended_num_steps(kind: Kind, num_photos: int) -> int:
    """Return the step count for SD 1.5: the low end of the kind's range at 3 photos, the high end from 8 on."""
    low, high = STEP_RANGES[kind]
    share = min(max((num_photos - 3) / 5, 0), 1)
    return round((low + share * (high - low)) / 50) * 50


def resolve(
    explicit: Mapping[str, Any],
    card_recipes: Mapping[str, Mapping[str, Any]] | None = None,
    preset_name: str | None = None,
    family: FamilyName = "sd1",
) -> TrainingConfig:
    """Merge by precedence: explicit settings, the base's card, its family's needs, the preset, the script's defaults.

    Each source is that of the requested method. An explicit number of epochs replaces a recipe's number of steps.
    """
    method = method_asked_for(explicit)
    card_recipe = (card_recipes or {}).get(method, {})
    # A preset's recipe was made for SD 1.5: resolution and guidance are the family's own.
    values = (preset(preset_name, method, family) if preset_name else {}) | dict(DEFAULTS[family, method])
    values |= dict(card_recipe) | dict(explicit)
    if "num_train_epochs" in explicit and "max_train_steps" not in explicit:
        values["max_train_steps"] = None
    is_of_preset = preset_name and "learning_rate" not in {**card_recipe, **explicit}
    if is_of_preset and values.get("learning_rate") == LEARNING_RATE and not values["train_text_encoder"]:
        values["learning_rate"] = UNET_ONLY_LEARNING_RATE
    if preset_name and not values.get("save_sample_prompt"):
        prompts = [concept.instance_prompt for concept in values.get("concepts", ())]
        values["save_sample_prompt"] = "\n".join(prompts) or None
    return TrainingConfig(**without_idle_options(values, explicit))


def without_idle_options(values: Mapping[str, Any], explicit: Collection[str] = ()) -> dict[str, Any]:
    """Return settings without a recipe's options whose switch is off, such as the rate of a frozen text encoder.

    Explicit ones stay: the check of the settings reports them.
    """
    idle = {
        info.name
        for info in describe(TrainingConfig)
        if info.default in (None, False) and info.name not in explicit and is_idle(dict(values), info.only_with)
    }
    return {name: value for name, value in values.items() if name not in idle}
