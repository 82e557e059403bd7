"""The optimizer: AdamW in 32 or 8 bits, its learning rates, and stochastic rounding."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import eight_bit_adam_available
from dreambooth.device.threads import Shares
from dreambooth.training.extending import Extension

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler


def build_optimizer(
    config: TrainingConfig,
    weights: "Mapping[str, Mapping[str, nn.Parameter]]",
    *,
    num_processes: int,
    notice: Callable[[str], None],
) -> "Optimizer":
    """Return AdamW over the trained weights, by model and name (Loshchilov & Hutter, 1711.05101).

    Each model is a group: the UNet has the learning rate, and a text encoder its own if one is set. If bitsandbytes
    does not work, plain AdamW replaces it and `notice` says so; that is fused where torch supports it.
    """
    import torch

    scale = 1
    if config.scale_lr:
        scale = config.gradient_accumulation_steps * config.train_batch_size * num_processes
    text_rate = config.learning_rate if config.text_encoder_lr is None else config.text_encoder_lr
    groups: list[dict[str, Any]] = [
        {"params": [*named.values()], "lr": (config.learning_rate if model == "unet" else text_rate) * scale}
        for model, named in weights.items()
    ]
    options: dict[str, Any] = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.has_8bit_moments:
        reason = eight_bit_adam_available()
        if reason is None:
            return _eight_bit_adamw(groups, options)
        notice(f"8-bit AdamW does not work here ({reason}); using AdamW in 32 bits, which takes more memory.")
    device = groups[0]["params"][0].device
    if device.type in ("cuda", "cpu"):
        options["fused"] = True  # one pass over weights and moments: on the CPU a quarter of a small model's step
        if config.capture_step and device.type == "cuda":
            # A graph replays addresses: a rate that changes must be read from one.
            options["capturable"] = True
            groups = [group | {"lr": torch.tensor(group["lr"], device=device)} for group in groups]
    if device.type == "cpu" and not config.shard_weights:
        return _adamw_in_shares(groups, options)
    return torch.optim.AdamW(groups, **options)


def _adamw_in_shares(groups: list[dict[str, Any]], options: dict[str, Any]) -> "Optimizer":
    import torch

    class AdamWInShares(torch.optim.AdamW):
        """AdamW whose threads each update a share of the weights; torch's own divides every tensor among them."""

        def __init__(self) -> None:
            super().__init__(groups, **options)
            self.shares = Shares()

        # Nobody here passes a closure, for which torch's types have an overload.
        def step(self, closure: None = None) -> None:  # type: ignore[override]
            with torch.no_grad():
                for group in self.param_groups:
                    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                    for parameter in parameters:
                        if not self.state[parameter]:
                            self.state[parameter] = _first_state(parameter, group)
                    self.shares.each(functools.partial(self._update, group), parameters)

        def _update(self, group: dict[str, Any], share: "list[Tensor]") -> list[None]:
            # torch's gradient mode is per thread.
            with torch.no_grad():
                scaling = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
                gradients = [weights.grad for weights in share if weights.grad is not None]
                _apply_adamw(group, share, gradients, [self.state[weights] for weights in share], **scaling)
            return [None] * len(share)

    return AdamWInShares()


def _eight_bit_adamw(groups: list[dict[str, Any]], options: dict[str, Any]) -> "Optimizer":
    from bitsandbytes.optim import AdamW8bit

    # The library has no types.
    class AsynchronousAdamW8bit(AdamW8bit):  # type: ignore[misc]
        """8-bit AdamW whose step never waits for the device; the library's own waits once per tensor."""

        def step(self, closure: None = None) -> None:
            import torch

            with torch.no_grad():
                for group_number, group in enumerate(self.param_groups):
                    for index, parameter in enumerate(group["params"]):
                        if parameter.grad is not None:
                            if not self.state[parameter]:
                                self.init_state(group, parameter, group_number, index)
                            self.update_step(group, parameter, group_number, index)

    optimizer: Optimizer = AsynchronousAdamW8bit(groups, **options)
    return optimizer


def update_one(
    optimizer: Any,
    group: dict[str, Any],
    place: tuple[int, int],
    parameter: "nn.Parameter",
    weights: "Tensor",
    gradient: "Tensor",
) -> None:
    """Update `weights` (fp32, in place) as the optimizer would update this parameter alone with this gradient.

    `place` is the parameter's group and its index there. The state belongs to the parameter, as after a whole step.
    """
    state = optimizer.state[parameter]
    if hasattr(optimizer, "update_step"):  # bitsandbytes
        weights.grad = gradient
        optimizer.state[weights] = state
        try:
            if not state:
                optimizer.init_state(group, weights, *place)
            optimizer.update_step(group, weights, *place)
        finally:
            del optimizer.state[weights]
            weights.grad = None
        return
    if not state:
        state |= _first_state(weights, group)
    _apply_adamw(group, [weights], [gradient], [state])


def _first_state(weights: "Tensor", group: dict[str, Any]) -> "dict[str, Tensor]":
    import torch

    count_device = weights.device if group["fused"] else "cpu"
    return {
        "step": torch.zeros((), dtype=torch.float32, device=count_device),
        "exp_avg": torch.zeros_like(weights),
        "exp_avg_sq": torch.zeros_like(weights),
    }


def _apply_adamw(
    group: dict[str, Any],
    weights: "list[Tensor]",
    gradients: "list[Tensor]",
    states: "list[dict[str, Tensor]]",
    **scaling: Any,
) -> None:
    """Apply torch's AdamW to these weights alone; `scaling` is what its fused kernel takes from a GradScaler."""
    from torch.optim.adamw import adamw

    moments, squares, counts = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    beta1, beta2 = group["betas"]
    adamw(
        weights, gradients, moments, squares, [], counts, fused=group["fused"], amsgrad=False, beta1=beta1,
        beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False, **scaling,
    )  # fmt: skip


def stochastically_rounded(values: "Tensor", generator: "torch.Generator") -> "Tensor":
    """Return fp32 values in bf16, each randomly rounded up or down so that its mean is preserved.

    Updates smaller than half a step of bf16 (1/256 of a weight) are lost in rounding to nearest; with this they are
    applied on average. Zamirai et al. 2020 (Revisiting BFloat16 Training, arXiv 2010.06192, section 3). bf16 is the
    upper half of fp32's bits: a random lower half is added, and what carries over is kept.
    """
    import torch

    bits = values.contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = noise.add_(bits).bitwise_and_(-(1 << 16)).view(torch.float32)
    return rounded.to(torch.bfloat16).view(values.shape)


def build_schedule(
    config: TrainingConfig, optimizer: "Optimizer", num_steps: int, extensions: Sequence[Extension] = ()
) -> "LRScheduler":
    """Return the learning-rate schedule over `num_steps` updates, however many micro-batches each has.

    Every extension has its own schedule over its steps, after a warm-up of its own; a constant one stays constant.
    """
    if not extensions:
        return _schedule(config, optimizer, config.lr_warmup_steps, num_steps)
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    def factors(num_warmup_steps: int, num_steps: int) -> Callable[[int], float]:
        # The factor comes from a schedule over another optimizer: this one may have only one.
        stand_in = torch.optim.SGD([torch.zeros(1)], lr=float(optimizer.defaults["lr"]))
        schedule: Any = _schedule(config, stand_in, num_warmup_steps, num_steps)
        factor: Callable[[int], float] = schedule.lr_lambdas[0]
        return factor

    parts = [(0, factors(config.lr_warmup_steps, extensions[0].total_before))]
    parts += [(one.start, factors(one.num_warmup_steps, one.num_steps)) for one in extensions]

    def factor_of(step: int) -> float:
        start, factor = next(part for part in reversed(parts) if part[0] <= step)
        return factor(step - start)

    return LambdaLR(optimizer, factor_of)


def _schedule(config: TrainingConfig, optimizer: "Optimizer", num_warmup_steps: int, num_steps: int) -> "LRScheduler":
    from diffusers.optimization import get_scheduler

    schedule: LRScheduler = get_scheduler(
        config.lr_scheduler, optimizer=optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_steps
    )
    return schedule


def gradient_norm(parameters: "Sequence[nn.Parameter]", shares: Shares) -> "Tensor":
    """Return the global L2 norm of all gradients, a scalar on the parameters' device.

    On the CPU it is the same for any number of threads.
    """
    import torch
    from torch.nn.utils import get_total_norm

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not all(one.device.type == "cpu" and one.dtype == torch.float32 and one.is_contiguous() for one in gradients):
        total: Tensor = get_total_norm(gradients)
        return total
    # BLAS reads memory in two thirds of the time that torch's own norm takes.
    squares = shares.each(lambda share: [torch.dot(flat, flat) for flat in (one.view(-1) for one in share)], gradients)
    return torch.stack(squares).sum().sqrt() if squares else torch.tensor(0.0)


def average_across_processes(parameters: "Sequence[nn.Parameter]", num_processes: int) -> None:
    """Replace each gradient by its mean over all processes (`accelerate launch`); nothing to do with one."""
    if num_processes == 1:
        return
    from accelerate.utils import reduce

    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.copy_(reduce(parameter.grad, reduction="mean"))
