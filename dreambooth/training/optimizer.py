"""What updates the weights: AdamW in 32 or 8 bits, and its learning rates."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth.config import TrainingConfig
from dreambooth.hardware import eight_bit_adam_available

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def build_optimizer(
    config: TrainingConfig,
    unet: "nn.Module",
    text_encoder: "nn.Module | None",
    *,
    num_processes: int,
    notice: Callable[[str], None],
) -> "Optimizer":
    """Return AdamW over the UNet and, when given, the text encoder at its own rate (Loshchilov & Hutter, 1711.05101).

    Where bitsandbytes does not work, plain AdamW is used instead and `notice` says so.
    """
    scale = 1
    if config.scale_lr:
        scale = config.gradient_accumulation_steps * config.train_batch_size * num_processes
    groups = [{"params": trainable(unet), "lr": config.learning_rate * scale}]
    if text_encoder is not None:
        rate = config.learning_rate if config.text_encoder_lr is None else config.text_encoder_lr
        groups.append({"params": trainable(text_encoder), "lr": rate * scale})
    options: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.use_8bit_adam:
        reason = eight_bit_adam_available()
        if reason is None:
            from bitsandbytes.optim import AdamW8bit

            eight_bit: Optimizer = AdamW8bit(groups, **options)
            return eight_bit
        notice(f"8-bit AdamW does not work here ({reason}); using AdamW in 32 bits, which takes more memory.")
    from torch.optim import AdamW

    return AdamW(groups, **options)


def build_schedule(config: TrainingConfig, optimizer: "Optimizer", num_steps: int) -> "LRScheduler":
    """Return the learning-rate schedule over `num_steps` updates, however many micro-batches each has."""
    from diffusers.optimization import get_scheduler

    schedule: LRScheduler = get_scheduler(
        config.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=num_steps,
    )
    return schedule


def trainable(module: "nn.Module") -> "list[nn.Parameter]":
    """Return the parameters that gradients reach."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def clip_gradients(parameters: "Sequence[nn.Parameter]", max_norm: float) -> "Tensor":
    """Scale all gradients down together to a global L2 norm of at most `max_norm`; 0 leaves them.

    Returns the norm before, a scalar on the parameters' device.
    """
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    norm: Tensor = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def average_across_processes(parameters: "Sequence[nn.Parameter]", num_processes: int) -> None:
    """Replace each gradient by its mean over all processes (`accelerate launch`); nothing to do with one."""
    if num_processes == 1:
        return
    from accelerate.utils import reduce

    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(reduce(parameter.grad, reduction="mean"))
