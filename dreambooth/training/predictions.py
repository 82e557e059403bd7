"""Predictions of a UNet without gradients, for precomputed targets and for evaluation."""

from typing import TYPE_CHECKING

from dreambooth.device.precision import autocast
from dreambooth.forecast.memory import PLACES_AT_ONCE
from dreambooth.models.family import Condition
from dreambooth.training import objective

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreambooth.models.base import Base


def predicted(
    base: "Base",
    condition: Condition,
    latents: "Tensor",
    noise: "Tensor",
    timesteps: "Tensor",
    alpha_bar: "Tensor",
    autocast_dtype: "torch.dtype | None",
) -> "Tensor":
    """Return the UNet's predictions (batch, channels, height, width) in fp32, for latents noised here, without a graph.

    alpha_bar: (timesteps,) of the whole schedule. A few images are processed at a time.
    """
    import torch

    noisy = objective.noised(latents, noise, alpha_bar.to(timesteps.device)[timesteps])
    num_at_once = max(1, PLACES_AT_ONCE // (latents.shape[-1] * latents.shape[-2]))
    parts = []
    with torch.no_grad(), autocast(latents.device.type, autocast_dtype):
        for start in range(0, len(noisy), num_at_once):
            piece = slice(start, start + num_at_once)
            parts.append(base.family.predict(base.unet, noisy[piece], timesteps[piece], condition[piece]).float())
    return torch.cat(parts)
