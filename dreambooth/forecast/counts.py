"""How many weights a training holds, and in how many bytes: in memory, with gradients and moments, and on the disk."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dreambooth.config.training import TrainingConfig
from dreambooth.forecast.shape import ModelShape
from dreambooth.models.base import Base

if TYPE_CHECKING:
    from torch import nn

FP32, HALF = 4, 2
# Bytes of a number in each format.
WIDTH = {"fp32": FP32, "fp16": HALF, "bf16": HALF}
# Two moments of each weight in 32 bits, and in 8 (with their scales, one per 256 weights).
MOMENT_BYTES, MOMENT_8BIT_BYTES = 8.0, 2.04
# A tensor's name, shape and place in a safetensors file.
HEADER_BYTES = 110
# In SD 1.5's topology, whatever its width: 686 of the UNet, 196 of the text encoder, 248 of the VAE.
NUM_TENSORS = 1130


@dataclass(frozen=True)
class Counts:
    """How many weights the parts of a base have, and in how many tensors they lie."""

    unet: int
    text_encoder: int
    vae: int
    num_tensors: int = NUM_TENSORS

    @property
    def total(self) -> int:
        """Return the weights of all parts together."""
        return self.unet + self.text_encoder + self.vae


def counts_of_shape(shape: ModelShape) -> Counts:
    """Return the counts that follow from a base's configuration files."""
    return Counts(shape.num_unet, shape.num_text_encoder, shape.num_vae)


def counts_of_base(base: Base) -> Counts:
    """Return the counts of a base's loaded models."""

    def numel(*models: "nn.Module") -> int:
        return sum(parameter.numel() for model in models for parameter in model.parameters())

    num_tensors = sum(len(list(model.parameters())) for model in base.modules().values())
    return Counts(numel(base.unet), numel(*base.text_encoders()), numel(base.vae), num_tensors)


# Of each weight ------------------------------------------------------------------------------------------------------


def weight_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a weight that learns, in memory and in the exact state; its gradient has as many."""
    return WIDTH[config.weight_precision]


def moment_bytes(config: TrainingConfig) -> float:
    """Return the bytes of the optimizer's two moments of a weight that learns."""
    return MOMENT_8BIT_BYTES if config.has_8bit_moments else MOMENT_BYTES


def average_bytes(config: TrainingConfig) -> int:
    """Return the bytes of the moving average of a weight that learns."""
    return FP32 if config.use_ema else 0


def saved_bytes(config: TrainingConfig) -> int:
    """Return the bytes of a weight in a saved model."""
    return WIDTH[config.save_precision]


# Of all of them ------------------------------------------------------------------------------------------------------


def num_learning(config: TrainingConfig, counts: Counts) -> int:
    """Return how many weights learn."""
    return counts.unet + (counts.text_encoder if config.train_text_encoder else 0)


def model_bytes(config: TrainingConfig, counts: Counts) -> int:
    """Return the bytes of a saved model on the disk."""
    return counts.total * saved_bytes(config) + HEADER_BYTES * counts.num_tensors


def state_bytes(config: TrainingConfig, counts: Counts) -> int:
    """Return the bytes of an exact state on the disk: weights, both moments, and the moving average."""
    per_weight = weight_bytes(config) + moment_bytes(config) + average_bytes(config)
    return round(num_learning(config, counts) * per_weight) + 3 * HEADER_BYTES * counts.num_tensors
