"""Full fine-tuning: every weight of the UNet is trained, and of the text encoder on request; a step is a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config.training import TrainingConfig
from dreambooth.device.precision import dtype_of
from dreambooth.formats.lora_keys import without_last_layers
from dreambooth.models.base import Base
from dreambooth.models.card import BaseCard
from dreambooth.training.method import LearningWeights, StepWeights

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class FullFineTuning:
    """The method of the DreamBooth paper (see `Method`)."""

    def check(self, base: Base, config: TrainingConfig) -> None:
        """Do nothing: the weights of every base can be trained."""

    def prepare(self, base: Base, config: TrainingConfig) -> None:
        """Leave the base in fp32, in which its weights are trained."""

    def autocast_dtype(self, config: TrainingConfig) -> "torch.dtype | None":
        """Return the number format of the arithmetic over fp32 weights."""
        return dtype_of(config.mixed_precision)

    def attach(self, base: Base, config: TrainingConfig) -> None:
        """Enable gradients for every weight of the trained models, in the settings' number format and memory use.

        Every weight that affects images: the last layer of SDXL's first text encoder does not.
        """
        learns = {part: config.learns(part) for part in base.family.layout.learning_parts}
        for part, module in base.modules().items():
            module.requires_grad_(learns.get(part, False))
        for part, number in base.family.layout.unseen_layers:
            named = dict(getattr(base, part).named_parameters())
            # No gradient ever reaches them.
            for name in named.keys() - set(without_last_layers(list(named), number)):
                named[name].requires_grad_(False)
        for part, it_learns in learns.items():
            getattr(base, part).train(it_learns)
            if it_learns and config.weight_precision == "bf16":
                getattr(base, part).to(dtype_of("bf16"))
            if it_learns and config.gradient_checkpointing:
                recompute_activations(getattr(base, part))
        is_on_cuda = base.unet.device.type == "cuda"
        if is_on_cuda and config.mixed_precision != "no" and not (config.shard_weights or config.use_8bit_adam):
            import torch

            # The memory format for half-precision convolutions; bitsandbytes would revert it.
            base.unet.to(memory_format=torch.channels_last)

    def learning(self, base: Base) -> LearningWeights:
        """Return the parameters with gradients."""
        found = {
            part: {name: weights for name, weights in module.named_parameters() if weights.requires_grad}
            for part, module in base.modules().items()
        }
        return {part: named for part, named in found.items() if named}

    def step_weights(self, base: Base) -> StepWeights:
        """Return the weights of all parts: a saved step is a whole model."""
        return {part: module.state_dict(keep_vars=True) for part, module in base.modules().items()}

    def write_step(
        self, folder: Path, base: Base, weights: "Mapping[str, Mapping[str, Tensor]]", dtype: "torch.dtype",
        card: BaseCard, name: str,
    ) -> None:  # fmt: skip
        """Fill `folder` with a complete diffusers model."""
        from dreambooth.models.saving import write_model

        write_model(folder, base, dtype, card, weights)


def recompute_activations(model: Any) -> None:
    """Have a model in training mode recompute its activations in the backward pass."""
    # transformers 5.23 renamed the method; diffusers uses a third name.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable", "enable_gradient_checkpointing")
    next(getattr(model, name) for name in names if hasattr(model, name))()
