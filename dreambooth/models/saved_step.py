"""The one reader of saved steps, and of bases, for pictures and exports; on the device it replaces what was there.

A step holds a whole model. At another strength than 1 it is base + s (trained - base), where the base is the one that
the step's own settings name.
"""

import dataclasses
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.errors import BaseModelError
from dreambooth.formats.json_file import read_object
from dreambooth.models.base import Base, load_base, local_base
from dreambooth.models.manager import ModelManager
from dreambooth.models.strength import WHOLE, Strength, mix, refuse_other_base

READ_SUFFIXES = (".json", ".safetensors", ".bin")


@dataclass(frozen=True)
class ModelSource:
    """A saved step or a base as it is asked for: a folder, a file or a Hub id, and how much of what it learned counts.

    What stands below the strength is as in `load_base`.
    """

    name: str
    strength: Strength = WHOLE
    vae: str | None = None
    revision: str | None = None
    variant: str | None = None
    tokenizer: str | None = None


def resident(
    manager: ModelManager, source: ModelSource, *, models_dir: Path | None = None, token: str | None = None
) -> Base:
    """Return the models of this source on the device, for inference; others that were there are dropped first.

    To be called under a generation lease, by a function that returns, and lets go of the models, before another source
    is asked for. Models whose files were deleted or replaced are not served from memory. Raises BaseModelError.
    """
    key = source, _files_of(source.name, models_dir)
    return manager.resident(key, lambda: load(source, models_dir=models_dir, token=token))


def load(source: ModelSource, *, models_dir: Path | None = None, token: str | None = None) -> Base:
    """Return the models of this source in memory, not on the device, with the change of a step taken at its strength.

    Raises BaseModelError for a strength of a model whose base is not known or cannot be had. Needs both in memory
    meanwhile.
    """
    trained = load_base(
        source.name, vae=source.vae, revision=source.revision, variant=source.variant, tokenizer=source.tokenizer,
        token=token, models_dir=models_dir,
    )  # fmt: skip
    if not source.strength.is_whole:
        base = load_base(**_base_of(Path(source.name)), token=token, models_dir=models_dir)
        _weaken(trained, base, source)
        del base
        gc.collect()  # its modules hold each other in circles
    return trained


def load_with_base(
    source: ModelSource, *, other_base: str | None = None, models_dir: Path | None = None, token: str | None = None
) -> tuple[Base, Base]:
    """Return the models of a step at its strength, and those that it was trained from, both in memory.

    other_base: the base, where it is not where the step's settings say. Raises BaseModelError as `load` does, and where
    the step is not of that base.
    """
    trained = load(dataclasses.replace(source, strength=WHOLE), models_dir=models_dir, token=token)
    named: dict[str, Any] = {"name": other_base} if other_base else _base_of(Path(source.name))
    base = load_base(**named, token=token, models_dir=models_dir)
    for part in trained.family.layout.learning_parts:
        refuse_other_base(getattr(trained, part), getattr(base, part), source.name)
    _weaken(trained, base, source)
    return trained, base


def _weaken(trained: Base, base: Base, source: ModelSource) -> None:
    """Move trained models in place to the strength of their source."""
    mix(trained.unet, base.unet, source.strength.unet, source.name)
    mix(trained.text_encoder, base.text_encoder, source.strength.text_encoder, source.name)


def model_name(model: str) -> str:
    """Return a model's name for recipes: `run/400` for a step, else its folder's or its own."""
    path = Path(model)
    return f"{path.parent.name}/{path.name}" if path.name.isdecimal() else path.name


def _files_of(name: str, models_dir: Path | None) -> tuple[tuple[str, int, int], ...]:
    """Return path, time and size of the files that a model is read from, by which it is known; none for a Hub id."""
    place = local_base(name, models_dir)
    if place is None:
        if Path(name).is_absolute():
            raise BaseModelError(f'"{model_name(name)}" is not there.', "Its files are gone.", "Choose another model.")
        return ()
    files = [place] if place.is_file() else [file for file in place.glob("*/*") if file.suffix in READ_SUFFIXES]
    stats = [(str(file), file.stat()) for file in sorted(files)]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)


def _base_of(model_dir: Path) -> dict[str, Any]:
    """Return what a step was trained from, as its settings say."""
    try:
        told = read_object(model_dir / "args.json")
        found = {name: told.get(name) for name in ("revision", "variant")}
        return {"name": str(told["pretrained_model_name_or_path"]), **found}
    except (OSError, ValueError, KeyError, TypeError):
        raise BaseModelError(
            f"What {model_dir} learned is not known.", "Nothing says what it was trained from: no args.json.",
            "Choose a step of a run.",
        ) from None  # fmt: skip
