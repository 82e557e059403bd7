"""A run's settings as a command line to copy."""

import json
import shlex
from typing import Any

from dreambooth.config.fields import describe
from dreambooth.config.presets import resolve
from dreambooth.config.recipes import DEFAULTS
from dreambooth.config.training import TrainingConfig
from dreambooth.models.base import family_name, read_card

PROGRAM = "python -m dreambooth train"
CONFIG_FILE = "settings.json"


def command_line(config: TrainingConfig) -> str:
    """Return the command for these settings, for a POSIX shell.

    Flags cannot empty a setting, and name one concept: everything else is read from `settings.json`, whose text is
    `settings_text`.
    """
    base = config.pretrained_model_name_or_path
    recipes, family = read_card(base).recipes, family_name(base)
    defaults = {info.name: info.default for info in describe(TrainingConfig)}
    defaults |= dict(DEFAULTS[family, config.method]) | dict(recipes.get(config.method, {}))
    wanted = {info.name: getattr(config, info.name) for info in describe(TrainingConfig)}
    differing = {
        name: value for name, value in wanted.items() if value != defaults[name] and value is not None and value != ""
    }
    understood = resolve({**differing, "concepts": config.concepts}, recipes, family=family)
    if len(config.concepts) != 1 or understood != config:
        return f"{PROGRAM} --config {CONFIG_FILE}"
    (concept,) = config.concepts
    words = {
        "instance_data_dir": concept.instance_data_dir,
        "instance_prompt": concept.instance_prompt,
        "class_data_dir": concept.class_data_dir,
        "class_prompt": concept.class_prompt,
    }
    flags = [_flag(name, value) for name, value in (words | differing).items() if value is not None]
    return " ".join([PROGRAM, *flags])


def settings_text(config: TrainingConfig) -> str:
    """Return all settings as the JSON that `--config` reads."""
    return json.dumps(config.to_json(), indent=2) + "\n"


def _flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    # A value that begins with a dash would be mistaken for a flag.
    return shlex.quote(f"--{name}={value}") if str(value).startswith("-") else f"--{name} {shlex.quote(str(value))}"
