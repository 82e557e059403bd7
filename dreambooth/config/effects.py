"""Settings without effect, reported before a run starts.

A setting's prerequisites are declared with its field (`only_with`); conditions that depend on values are here.
"""

import dataclasses
import importlib.util
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from dreambooth.config.checks import PATIENCE
from dreambooth.config.concepts import Concept
from dreambooth.config.counts import num_saves_before_last
from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig

STARTER = "starter"


def is_idle(values: dict[str, Any], only_with: tuple[str, ...]) -> bool:
    """Return whether all prerequisites of a setting are off or unset, so that it has no effect."""
    return bool(only_with) and not any(_is_on(values.get(name)) for name in only_with)


def _is_on(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else bool(value)


def without_effect(config: TrainingConfig, explicit: Collection[str] | None = None) -> list[str]:
    """Return a sentence for each explicit setting that has no effect in a run with these settings.

    `explicit` names the settings given by flag, file, form or argument; by default all that differ from their defaults.
    """
    asked = set(config.departures() if explicit is None else explicit)
    infos = describe(TrainingConfig)
    values = {info.name: getattr(config, info.name) for info in infos}
    found = {
        info.name: f"has no effect: {' and '.join(map(_off, info.only_with))}."
        for info in infos
        if _is_on(values[info.name]) and is_idle(values, info.only_with)
    }
    found |= {
        info.name: f"has no effect: method is {config.method}."
        for info in infos
        if info.method not in ("", config.method) and values[info.name] is not False
    }
    if "concepts_list" in asked:
        names = [field.name for field in dataclasses.fields(Concept)]
        found |= dict.fromkeys(names, "has no effect: concepts_list names the concepts.")
    has_class_folder = any(concept.class_data_dir for concept in config.concepts)
    if has_class_folder and not config.with_prior_preservation and not {"concepts_list", "class_data_dir"} <= asked:
        found["class_data_dir"] = f"has no effect: {_off('with_prior_preservation')}."
        asked.add("class_data_dir")
    found |= dict(_conflicts(config))
    if config.max_train_steps is not None:
        found |= dict(_beyond_the_end(config, config.max_train_steps))
    return _sentences(found, asked)


def without_effect_in(num_steps: int, config: TrainingConfig, explicit: Collection[str] | None = None) -> list[str]:
    """Return the sentences that need the number of steps; a run that counts epochs knows it with its photos."""
    if config.max_train_steps is not None:
        return []
    return _sentences(dict(_beyond_the_end(config, num_steps)), config.departures() if explicit is None else explicit)


def _sentences(found: dict[str, str], asked: Collection[str]) -> list[str]:
    return [f'"{name}" {what}' for name, what in found.items() if name in asked]


def _off(name: str) -> str:
    (info,) = [info for info in describe(TrainingConfig) if info.name == name]
    return f"{name} is {'off' if info.type is bool else 'not set'}"


def _conflicts(config: TrainingConfig) -> Iterator[tuple[str, str]]:
    """Yield the settings that another setting's value makes ineffective."""
    if config.max_train_steps is not None:
        yield "num_train_epochs", f"has no effect: max_train_steps sets {config.max_train_steps} steps."
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        yield "lr_warmup_steps", "has no effect: the constant schedule has no warm-up, constant_with_warmup has."
    if config.method == "lora" and config.use_8bit_adam:
        yield "use_8bit_adam", "has no effect: a LoRA's optimizer state is small and stays in 32 bits."
    if config.not_cache_latents:
        yield "num_crop_variants", "has no effect: not_cache_latents makes a new crop for each step."
    if config.save_sample_negative_prompt and config.save_sample_prompt and config.save_guidance_scale <= 1:
        yield "save_sample_negative_prompt", "has no effect: it needs a save_guidance_scale above 1."
    if 0 < config.save_min_steps <= config.save_interval:
        yield "save_min_steps", f"has no effect: the first save is at step {config.save_interval} (save_interval)."
    base = config.pretrained_model_name_or_path
    if config.revision and (base == STARTER or Path(base).exists()):
        yield "revision", "has no effect: the base model is on this machine; revisions exist only on the Hub."
    if config.variant and (base == STARTER or Path(base).is_file()):
        yield "variant", "has no effect: this base model has no file variants."
    if importlib.util.find_spec("tensorboard") is None:
        yield "logging_dir", "has no effect: TensorBoard is not installed."


def _beyond_the_end(config: TrainingConfig, num_steps: int) -> Iterator[tuple[str, str]]:
    """Yield the settings that would take effect only after the last step."""
    if config.lr_scheduler != "constant" and config.lr_warmup_steps >= num_steps:
        warm_up = f"the warm-up takes {config.lr_warmup_steps} steps (lr_warmup_steps), and the run has {num_steps}."
        yield "lr_warmup_steps", f"is too long for the learning rate to reach its peak: {warm_up}"
        yield "lr_scheduler", f"has no effect: {warm_up}"
    if config.train_text_encoder and (config.text_encoder_stop_step or 0) >= num_steps:
        yield "text_encoder_stop_step", f"has no effect: the run ends at step {num_steps}."
    num_saves = num_saves_before_last(config, 0, num_steps)
    if config.stop_when_good and num_saves <= PATIENCE:
        saves = f"save_interval gives {num_saves} before the last step"
        yield "stop_when_good", f"has no effect: it compares {PATIENCE + 1} saves, and {saves}."
