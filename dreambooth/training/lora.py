"""LoRA: the base is frozen, and low-rank factors beside its layers are trained; a saved step is their file."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import num_photos_in
from dreambooth.device.precision import dtype_of
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.export.lora_file import write_lora
from dreambooth.export.lora_metadata import lora_metadata
from dreambooth.formats.layout import CARD, lora_at
from dreambooth.formats.lora_keys import DOWN, UP, LoraModule
from dreambooth.models.adapter import AdaptedModule, Adapter, fitted, module_of, new_factors, places_of, unseen_modules
from dreambooth.models.base import Base
from dreambooth.models.card import BaseCard, LoraBase
from dreambooth.models.lora_file import read_lora
from dreambooth.models.low_rank import Factors
from dreambooth.training.full import recompute_activations
from dreambooth.training.method import LearningWeights, StepWeights

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# For the file's name, which is the word in prompts, <lora:NAME:1>.
NAME_CHARACTERS = re.compile(r"[^A-Za-z0-9_-]+")


class LowRankAdaptation:
    """The method of Hu et al. 2021 (arXiv 2106.09685; see `Method`)."""

    def __init__(self) -> None:
        self._adapter: Adapter | None = None
        self._adds_to: LoraBase | None = None
        self._num_photos = 0

    def check(self, base: Base, config: TrainingConfig) -> None:
        """Raise ConfigError if the LoRA to continue from does not fit; BaseModelError if it is not a LoRA."""
        if config.initial_lora is not None:
            _initial_factors(base, config, places_of(base, config.lora_targets, _learning_parts(base, config)))

    def prepare(self, base: Base, config: TrainingConfig) -> None:
        """Freeze the base, and cast what predicts to the format of mixed_precision, so that no autocast is needed.

        Autocast would keep norms in fp32 and a second copy of every weight.
        """
        self._adds_to = LoraBase(
            family=base.family.layout.family,
            base=config.pretrained_model_name_or_path,
            fingerprint=base.fingerprint,
            file="",
            revision=config.revision,
            variant=config.variant,
            vae=config.pretrained_vae_name_or_path,
            tokenizer=config.tokenizer_name,
        )
        self._num_photos = num_photos_in(concept.instance_data_dir for concept in config.concepts)
        for module in base.modules().values():
            module.requires_grad_(False)
        for part in base.family.layout.learning_parts:
            getattr(base, part).to(dtype_of(config.mixed_precision))

    def autocast_dtype(self, config: TrainingConfig) -> "torch.dtype | None":
        """Return None: the base is in the format of the arithmetic, and the factors are cast to it."""
        return None

    def attach(self, base: Base, config: TrainingConfig) -> None:
        """Add factors, whose product is zero, to the layers named in the settings."""
        import torch

        assert config.seed is not None, "the run's records draw it"
        learns = _learning_parts(base, config)
        modules, places = [], places_of(base, config.lora_targets, learns)
        begun = {} if config.initial_lora is None else _initial_factors(base, config, places)
        for number, place in enumerate(places):
            made = new_factors(module_of(base, place).weight, config.lora_rank, config.seed, number)
            if place.name in begun:
                _begin_with(made, begun[place.name])
            modules.append(AdaptedModule(place, Factors(torch.nn.Parameter(made.up), torch.nn.Parameter(made.down))))
        self._adapter = Adapter(base, modules)
        for part in learns:
            getattr(base, part).train()  # activations are recomputed in this mode only
            if config.gradient_checkpointing:
                recompute_activations(getattr(base, part))

    def learning(self, base: Base) -> LearningWeights:
        """Return the factors, by part and by their names in the file."""
        assert self._adapter is not None, "attach comes first"
        found: LearningWeights = {}
        for one in self._adapter.modules:
            named = found.setdefault(one.place.part, {})
            named[one.place.name + DOWN] = cast("nn.Parameter", one.factors.down)
            named[one.place.name + UP] = cast("nn.Parameter", one.factors.up)
        return {part: found[part] for part in base.family.layout.learning_parts if part in found}

    def step_weights(self, base: Base) -> StepWeights:
        """Return the factors alone."""
        return {part: dict(named) for part, named in self.learning(base).items()}

    def write_step(
        self, folder: Path, base: Base, weights: "Mapping[str, Mapping[str, Tensor]]", dtype: "torch.dtype",
        card: BaseCard, name: str,
    ) -> None:  # fmt: skip
        """Write the LoRA's file, and a card that says what it adds to."""
        assert self._adds_to is not None, "prepare comes first"
        stem = NAME_CHARACTERS.sub("-", name).strip("-") or "lora"
        adds_to = dataclasses.replace(self._adds_to, file=f"{stem}.safetensors")
        card = dataclasses.replace(card, lora=adds_to)
        (folder / CARD).write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n", "utf-8")
        tensors = {key: tensor for named in weights.values() for key, tensor in named.items()}
        modules = {key.removesuffix(DOWN) for key in tensors if key.endswith(DOWN)}
        factors = {key: Factors(tensors[key + UP], tensors[key + DOWN]) for key in sorted(modules)}
        prediction = str(base.noise_scheduler_config.get("prediction_type", "epsilon"))
        metadata = lora_metadata(folder, stem, base.family.layout, factors, prediction, self._num_photos)
        write_lora(folder / adds_to.file, factors, metadata, dtype, base.family.layout)


def _learning_parts(base: Base, config: TrainingConfig) -> list[str]:
    return [part for part in base.family.layout.learning_parts if config.learns(part)]


def _initial_factors(base: Base, config: TrainingConfig, places: Sequence[LoraModule]) -> dict[str, Factors]:
    """Return the factors of the LoRA that a training continues from, by module.

    Raises ConfigError if it changes modules that this training does not, or has a higher rank; BaseModelError for a
    file that is not a LoRA.
    """
    file = lora_at(Path(str(config.initial_lora)))
    assert file is not None, "the settings' check found one"
    lora = read_lora(file)
    fit = fitted(base, lora.factors)
    found = {one.place.name: one.factors for one in fit.modules}
    problems, needed = [], lora.factors.keys() - unseen_modules(base)
    if strange := sorted(needed - (found.keys() & {place.name for place in places})):
        message = (
            f"changes {len(strange)} layers that this training leaves as they are, such as {strange[0]}: choose a LoRA "
            "for this kind of base, --lora_targets all, or --train_text_encoder."
        )
        problems.append(FieldProblem("initial_lora", message))
    if lora.rank > config.lora_rank:
        problems.append(FieldProblem("lora_rank", f"must be at least {lora.rank}, the rank of initial_lora."))
    if problems:
        raise ConfigError(problems)
    return found


def _begin_with(made: Factors, begun: Factors) -> None:
    """Copy the given factors into the first ranks of new ones; the others add nothing yet, because their up is zero."""
    rank = len(begun.down)
    made.down[:rank] = begun.down.to(made.down)
    made.up[:, :rank] = begun.up.to(made.up)
