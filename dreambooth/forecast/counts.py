"""How many weights a training holds and their bytes: in memory, with gradients and moments, and on disk."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dreambooth.config.training import TrainingConfig
from dreambooth.forecast.shape import ModelShape, Unit, text_units, unet_units
from dreambooth.formats.lora_keys import LoraModule, lora_modules, without_last_layers
from dreambooth.models.base import Base

if TYPE_CHECKING:
    from torch import nn

FP32, HALF = 4, 2
# Bytes per number in each format.
WIDTH = {"fp32": FP32, "fp16": HALF, "bf16": HALF}
# Two moments per weight in 32 bits, and in 8 (with their scales, one per 256 weights).
MOMENT_BYTES, MOMENT_8BIT_BYTES = 8.0, 2.04
# A tensor's name, shape and offsets in a safetensors file; names in a LoRA's are longer.
HEADER_BYTES, LORA_HEADER_BYTES = 110, 140
# In SD 1.5's topology, whatever its width: 686 of the UNet, 196 of the text encoder, 248 of the VAE.
NUM_TENSORS = 1130
# The interval of exact states grows with their size: a small one every minute, a model's gigabytes every ten.
STATE_BYTES_PER_S = 2_000_000
STATE_INTERVALS_S = (60, 600)


@dataclass(frozen=True)
class Counts:
    """The number of weights in each part of a base, text encoders together, and in how many tensors.

    per_rank: by part and weight, how many numbers low-rank factors of that weight (out, in, ...) take per rank;
    unseen_layers: as in `Layout`; unseen: how many text encoder weights affect no image.
    """

    unet: int
    text_encoder: int
    vae: int
    num_tensors: int = NUM_TENSORS
    per_rank: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unseen_layers: tuple[tuple[str, int], ...] = ()
    unseen: int = 0

    @property
    def total(self) -> int:
        """Return the weights of all parts together."""
        return self.unet + self.text_encoder + self.vae


def counts_of_shape(shape: ModelShape) -> Counts:
    """Return the counts given by a base's configuration files."""
    units = {"unet": unet_units(shape.unet, shape.latent_scale)}
    units |= {name: text_units(config) for name, config in shape.text_encoders.items()}
    per_rank = {
        part: {layer.weight: layer.num_per_rank for unit in of_part for layer in unit.layers}
        for part, of_part in units.items()
    }
    numbers = {part: {f"{unit.name}.": unit.num_weights for unit in of_part} for part, of_part in units.items()}
    unseen_layers = shape.layout.unseen_layers
    return Counts(
        shape.num_unet, shape.num_text_encoder, shape.num_vae, per_rank=per_rank, unseen_layers=unseen_layers,
        unseen=_unseen(numbers, unseen_layers),
    )  # fmt: skip


def counts_of_base(base: Base) -> Counts:
    """Return the counts of a base's loaded models."""

    def numel(*models: "nn.Module") -> int:
        return sum(parameter.numel() for model in models for parameter in model.parameters())

    num_tensors = sum(len(list(model.parameters())) for model in base.modules().values())
    per_rank = {
        part: {
            name: weight.shape[0] + weight.shape[1:].numel()
            for name, weight in getattr(base, part).named_parameters()
            if weight.dim() > 1
        }
        for part in base.family.layout.learning_parts
    }
    numbers = {
        part: {name: weight.numel() for name, weight in getattr(base, part).named_parameters()} for part in per_rank
    }
    unseen_layers = base.family.layout.unseen_layers
    return Counts(
        numel(base.unet), numel(*base.text_encoders()), numel(base.vae), num_tensors, per_rank, unseen_layers,
        _unseen(numbers, unseen_layers),
    )  # fmt: skip


def _unseen(numbers: Mapping[str, Mapping[str, int]], unseen_layers: tuple[tuple[str, int], ...]) -> int:
    """Return how many weights affect no image, from these numbers of weights by part and name."""
    seen = {part: without_last_layers(list(numbers[part]), number) for part, number in unseen_layers}
    return sum(number for part in seen for name, number in numbers[part].items() if name not in seen[part])


# Of each weight ------------------------------------------------------------------------------------------------------


def weight_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a trained weight, in memory and in the exact state; its gradient has as many."""
    return WIDTH[config.weight_precision]


def moment_bytes(config: TrainingConfig) -> float:
    """Return the bytes of the optimizer's two moments of a trained weight."""
    return MOMENT_8BIT_BYTES if config.has_8bit_moments else MOMENT_BYTES


def average_bytes(config: TrainingConfig) -> int:
    """Return the bytes of the moving average of a trained weight."""
    return FP32 if config.use_ema else 0


def saved_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a weight in a saved model."""
    return WIDTH[config.save_precision]


# Of all of them ------------------------------------------------------------------------------------------------------


def adapted_modules(config: TrainingConfig, counts: Counts) -> list[LoraModule]:
    """Return the modules that get factors."""
    learning = {part: per_rank for part, per_rank in counts.per_rank.items() if config.learns(part)}
    return lora_modules(learning, config.lora_targets, counts.unseen_layers)


def num_learning(config: TrainingConfig, counts: Counts) -> int:
    """Return how many numbers are trained: weights of the base, or factors."""
    if not config.has_frozen_base:
        return counts.unet + (counts.text_encoder - counts.unseen if config.train_text_encoder else 0)
    return config.lora_rank * sum(counts.per_rank[one.part][one.weight] for one in adapted_modules(config, counts))


def model_bytes(config: TrainingConfig, counts: Counts) -> int:
    """Return the bytes of a saved step on disk: a whole model, or a LoRA."""
    if not config.has_frozen_base:
        return counts.total * saved_bytes(config) + HEADER_BYTES * counts.num_tensors
    num_tensors = 3 * len(adapted_modules(config, counts))  # down, up and alpha
    return num_learning(config, counts) * saved_bytes(config) + LORA_HEADER_BYTES * num_tensors


def state_bytes(config: TrainingConfig, counts: Counts) -> int:
    """Return the bytes of an exact state on disk: trained weights, both moments, and the moving average."""
    per_weight = weight_bytes(config) + moment_bytes(config) + average_bytes(config)
    num_tensors = 2 * len(adapted_modules(config, counts)) if config.has_frozen_base else counts.num_tensors
    return round(num_learning(config, counts) * per_weight) + 3 * HEADER_BYTES * num_tensors


def state_interval_s(num_bytes: int) -> float:
    """Return after how many seconds the next exact state of this size is due, if the settings give no steps."""
    shortest, longest = STATE_INTERVALS_S
    return min(max(num_bytes / STATE_BYTES_PER_S, shortest), longest)


# Of a step's units ---------------------------------------------------------------------------------------------------


def learning_units(config: TrainingConfig, shape: ModelShape, num_tokens: int) -> list[Unit]:
    """Return the units of the trained models, in the order of a forward pass, with what backward needs of each."""
    found: list[Unit] = []
    units = {name: text_units(encoder, num_tokens) for name, encoder in shape.text_encoders.items()}
    units["unet"] = unet_units(shape.unet, config.resolution // shape.latent_scale, num_tokens)
    for part, of_part in units.items():
        if config.learns(part):
            frozen = config.has_frozen_base
            found += _beside_frozen(of_part, part, config, shape.layout.unseen_layers) if frozen else of_part
    return found


def _beside_frozen(
    units: list[Unit], part: str, config: TrainingConfig, unseen_layers: tuple[tuple[str, int], ...]
) -> list[Unit]:
    """Return a part's units with low-rank factors: these are trained, the weights are frozen.

    Everything a unit needs for backward is in the base's format (nothing is normalised in fp32), and counts as values
    of products. Before the first factors there is no graph, and nothing is kept.
    """
    weights = {part: [layer.weight for unit in units for layer in unit.layers]}
    adapted = {module.weight for module in lora_modules(weights, config.lora_targets, unseen_layers)}
    found, is_in_graph = list[Unit](), False
    for unit in units:
        own = [layer for layer in unit.layers if layer.weight in adapted]
        num_factors = config.lora_rank * sum(layer.num_per_rank for layer in own)
        is_in_graph = is_in_graph or bool(own)
        unneeded = sum(layer.own_values for layer in unit.layers if layer.weight not in adapted)
        between = config.lora_rank * sum(layer.num_places for layer in own)
        kept = unit.norm_values + unit.product_values - unneeded + between if is_in_graph else 0
        found.append(
            dataclasses.replace(
                unit, num_weights=num_factors, weight_values=num_factors, norm_values=0, product_values=kept,
                copied_values=0, large_weights=(),
            )
        )  # fmt: skip
    return found
