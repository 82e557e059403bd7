"""A trained model as the base of another training: which step of which run it is, and its original base."""

from dataclasses import dataclass
from pathlib import Path

from dreambooth.formats.json_file import read_object
from dreambooth.formats.layout import cached_folder, lora_file
from dreambooth.models.base import STARTER, local_base, read_card
from dreambooth.records.workspace import RunFolder


@dataclass(frozen=True)
class Origin:
    """The base at the start of a chain of trainings: its name, and where it is; None if it is not on this machine.

    The name is empty if it is unknown.
    """

    name: str
    is_here: bool


def origin_of(name: str, models_dir: Path | None = None) -> Origin | None:
    """Return the original base of this trained model, None for a model without a record of a training."""
    folder, seen = local_base(name, models_dir), set[Path]()
    found: Origin | None = None
    while folder is not None and folder.is_dir() and folder not in seen:
        seen.add(folder)
        base, source = (
            _value_of(folder / "args.json", "pretrained_model_name_or_path"),
            _value_of(folder / "card.json", "source"),
        )
        if not base and (not source or not _value_of(folder / "card.json", "step")):
            break
        # A path may be another machine's, or another folder by now; a Hub id is the same everywhere.
        here = next((one for one in (base, source) if one and _is_here(one, models_dir)), "")
        found = Origin(here or source or base, bool(here))
        folder = local_base(here, models_dir) if here and here != STARTER else None
    return found


def step_sentence(name: str, models_dir: Path | None = None) -> str:
    """Return which step of which run this base is, empty if it is not a run's."""
    folder = local_base(name, models_dir)
    if folder is None or not folder.name.isdecimal() or not RunFolder(folder.parent).config_path.exists():
        return ""
    run = RunFolder(folder.parent)
    step, is_recommended = run.base_step() or (0, False)
    kind = "" if str(step) != folder.name else ", the recommended one" if is_recommended else ", its last saved one"
    sentence = f'The base model is step {folder.name} of the run "{run.name}"{kind}.'
    return sentence if lora_file(folder) is None else f"{sentence} It is a LoRA: it is merged into its own base first."


def class_images_sentence(name: str, class_model: str | None, models_dir: Path | None = None) -> str:
    """Return whose class images a training from this trained model uses; empty for an untrained base."""
    origin = origin_of(name, models_dir)
    if class_model is not None:
        return f'Class images are those of "{class_model}", not of the base model.'
    if origin is None:
        return ""
    why = f'its original base "{origin.name}" is not on this machine' if origin.name else "its original base is unknown"
    return f"Class images are those of the trained base model itself: {why}."


def missing_base(step: str, models_dir: Path | None = None) -> str:
    """Return the name of a saved LoRA's base if it is not on this machine, else an empty string."""
    about = read_card(step, models_dir).lora
    return "" if about is None or _is_here(about.base, models_dir) else about.base


def _value_of(file: Path, key: str) -> str:
    """Return the value of this key in one of the model's files, as text; empty if it cannot be read."""
    try:
        value = read_object(file).get(key)
    except (OSError, ValueError):
        return ""
    return str(value) if isinstance(value, str | int) else ""


def _is_here(name: str, models_dir: Path | None) -> bool:
    """Return whether a base can be loaded without a download."""
    if local_base(name, models_dir) is not None:
        return True
    from huggingface_hub.errors import HFValidationError

    try:
        return cached_folder(name) is not None
    except (HFValidationError, OSError, ValueError):
        return False
