"""Which steps a training saved, and which files are their weights: identified by name alone."""

import contextlib
import re
from pathlib import Path

from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError
from dreambooth.formats.json_file import read_object
from dreambooth.formats.layout import ALL_SAVED_FILES, CARD, MODEL_INDEX, PLAIN_NAME, lora_file
from dreambooth.records.workspace import STEP_NAME, RunFolder

SHARD = re.compile(r"[a-z_]+(-[0-9]{5}-of-[0-9]{5})?\.safetensors(\.index\.json)?")


def saved_steps(run: RunFolder, settings: TrainingConfig | None = None) -> list[int]:
    """Return the steps that a training saved, in order, identified by their `args.json`, even if weights are gone.

    With settings, only those saved with them: steps copied here from another run are not this run's.
    """
    found = sorted(int(entry.name) for entry in entries(run.path) if STEP_NAME.fullmatch(entry.name))
    found = [step for step in found if is_plain_file(run.step_folder(step) / "args.json")]
    if settings is None:
        return found
    # A resume may have changed settings outside the run's identity, and the paths of its files.
    first = settings_in(run.first_config_path) or settings
    settings_of = {step: settings_in(run.step_folder(step) / "args.json") for step in found}
    return [
        step
        for step, own in settings_of.items()
        if own and own.identity() == settings.identity() and _places(own) in (_places(settings), _places(first))
    ]


def _places(config: TrainingConfig) -> list[str | None]:
    concepts = [(concept.instance_data_dir, concept.class_data_dir) for concept in config.concepts]
    return [config.pretrained_model_name_or_path, *(place for both in concepts for place in both)]


def weight_files(run: RunFolder, step: int) -> list[Path]:
    """Return the files of a step's model or LoRA, first the one without which the rest is no saved step.

    That is `model_index.json` of a model, and the card of a LoRA.
    """
    folder = run.step_folder(step)
    found = [file for pattern in ALL_SAVED_FILES for file in sorted(folder.glob(pattern))]
    found = [file for file in found if ".safetensors" not in file.name or SHARD.fullmatch(file.name)]
    found += _lora_files(run, step)
    plain = [file for file in found if is_plain_file(file) and not folder.is_symlink()]
    # A model with an index of another kind was not written here, and would continue to count as one.
    return plain if plain[:1] == [folder / MODEL_INDEX] or not (folder / MODEL_INDEX).exists() else []


def _lora_files(run: RunFolder, step: int) -> list[Path]:
    """Return the file of a step's LoRA, even if an interrupted removal has already deleted its card."""
    folder = run.step_folder(step)
    if (file := lora_file(folder)) is not None:
        return [file]
    if (folder / CARD).exists():
        return []
    try:
        noted = read_object(run.hashes_path(step))
    except (OSError, ValueError):
        return []
    return [folder / name for name in noted if PLAIN_NAME.fullmatch(name)]


def settings_in(file: Path) -> TrainingConfig | None:
    """Return the settings in a file of a run, None if it holds none."""
    try:
        return TrainingConfig.from_json(read_object(file))
    except (OSError, ValueError, ConfigError):
        return None


def entries(folder: Path) -> list[Path]:
    """Return the contents of a folder without hidden names; what a link points to is elsewhere and does not count."""
    if folder.is_symlink():
        return []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    return []


def is_plain_file(path: Path) -> bool:
    """Return whether this is a regular file: not a link, and not in a folder that is one."""
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()
