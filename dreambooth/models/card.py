"""The card.json of models and saved LoRAs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import BaseModelError, ConfigError
from dreambooth.formats.json_file import read_object


@dataclass(frozen=True)
class LoraBase:
    """What a saved LoRA adds to: a family and a base of it, as named in the training's settings.

    base: a Hub id, a folder, a file, or `starter`; `fingerprint`: of the weights that the LoRA changes
    (`weights_fingerprint`); file: the LoRA's own, beside the card.
    """

    family: str
    base: str
    fingerprint: str
    file: str
    revision: str | None = None
    variant: str | None = None
    vae: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class BaseCard:
    """What is known of a model beyond its weights: its size, whether it is a toy, and the recipes that suit it.

    `source` is the Hub id, or `starter`, that it was loaded or trained from, and `licence` its licence; both are passed
    on to models trained from it. `step` is that of a run's saved model, and `strength` the one it was exported at.
    `extensions` says by which steps the run had been extended before that step, a sentence each. `recipes` are by
    training method. `lora` says what a LoRA adds to, None for a whole model.
    """

    native_px: int = 512
    is_toy: bool = False
    notice: str = ""
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = ""
    licence: str = ""
    step: int | None = None
    strength: str = ""
    extensions: Sequence[str] = ()
    lora: LoraBase | None = None


def card_of(file: Path) -> BaseCard:
    """Read a card, which may come from anywhere with its base: it may set rates and steps, but no paths."""
    try:
        values = read_object(file)
        if "recipe" in values:  # of versions that knew one method
            values["recipes"] = {"full": values.pop("recipe"), **values.get("recipes", {})}
        if values.get("lora") is not None:
            values["lora"] = LoraBase(**values["lora"])
        card = BaseCard(**values)
        for recipe in card.recipes.values():
            TrainingConfig.from_json(recipe)
        if not isinstance(card.extensions, list | tuple):
            raise ValueError("its extensions are no list")
        card = dataclasses.replace(card, extensions=tuple(card.extensions))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise _bad_card(file, f"{error}"[:300]) from None
    texts: tuple[Any, ...] = (card.notice, card.source, card.licence, card.strength, *card.extensions)
    if card.lora is not None:
        texts += tuple(text or "" for text in dataclasses.astuple(card.lora))
    kinds = (type(card.native_px), type(card.is_toy), {type(text) for text in texts})
    if kinds != (int, bool, {str}) or not 16 <= card.native_px <= 4096 or not isinstance(card.step, int | None):
        raise _bad_card(
            file, "native_px is not 16 to 4096, is_toy not true or false, notice, source, licence or strength "
            "no text, or step no number.",
        )  # fmt: skip
    own = {info.name for info in describe(TrainingConfig) if info.group != "model"} - {"logging_dir"}
    if others := sorted({name for recipe in card.recipes.values() for name in recipe} - own):
        raise _bad_card(file, f"Its recipe names {', '.join(others)}, which is the user's to say.")
    return card


def _bad_card(file: Path, why: str) -> BaseModelError:
    return BaseModelError(f"{file} cannot be used.", why, "Fix or remove it; without one, SD 1.5's recipe is used.")
