"""Weight updates: all together after the backward pass, or each during it.

Both have one optimizer whose state belongs to the parameters, and neither lets NaN or infinity into the weights.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.config.training import TrainingConfig
from dreambooth.device.threads import Shares
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.training.optimizer import average_across_processes, gradient_norm, stochastically_rounded, update_one
from dreambooth.training.sharding import Shards

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

CLIP_GUARD = 1e-6  # as torch's own clipping has it
# The loss scale begins at 65536 and is halved each time: by then it is far below 1, and nothing overflows any more.
MAX_SKIPPED_UPDATES = 20


def refuse_several_processes(num_processes: int) -> None:
    """Raise ConfigError for several processes: gradients would have to be averaged, but are freed at once."""
    if num_processes > 1:
        message = f"works in a single process; for {num_processes} processes use shard_weights to save memory."
        raise ConfigError([FieldProblem("update_in_backward", message)])


class GatheredUpdates:
    """Gradients accumulate over a step's micro-batches, are clipped together, and update all weights at once."""

    def __init__(
        self,
        config: TrainingConfig,
        optimizer: "Optimizer",
        scaler: "torch.amp.GradScaler",
        num_processes: int,
        shards: Shards | None = None,
    ) -> None:
        self._max_norm, self._num_micro_batches = config.max_grad_norm, config.gradient_accumulation_steps
        self._optimizer, self._scaler, self._num_processes = optimizer, scaler, num_processes
        self._shards = shards
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._num_skipped: Tensor | None = None
        self._threads: Shares = getattr(optimizer, "shares", None) or Shares()
        # AdamW's fused kernel reads these two itself: no synchronization with the host, and no separate pass for
        # clipping.
        self._is_guarded = all(group.get("fused") for group in optimizer.param_groups)

    def backward(self, total: "Tensor", step: int) -> None:
        """Add one micro-batch's share to the gradients."""
        self._scaler.scale(total / self._num_micro_batches).backward()

    def apply(self, total: "Tensor") -> "Tensor":
        """Update the weights unless loss or gradients are not finite, and return whether they were.

        `total` is the step's mean loss; the result is a bool scalar on its device. Gradients that overflow under a loss
        scale do not count, up to MAX_SKIPPED_UPDATES in a row: the scale is lowered and the update skipped.
        """
        if self._shards is None:
            average_across_processes(self._parameters, self._num_processes)
        else:
            self._shards.take_gradients()
        self._scaler.unscale_(self._optimizer)
        norm = gradient_norm(self._parameters, self._threads)
        if self._shards is not None:
            norm = self._shards.total_norm(norm)
        finite: Tensor = (total if self._scaler.is_enabled() else total + 0 * norm).isfinite()
        if self._is_guarded:
            self._apply_guarded(norm, finite)
        elif bool(finite):
            self._clip(norm)
            self._scaler.step(self._optimizer)
        self._scaler.update()
        return finite & self._is_scale_found(norm) if self._scaler.is_enabled() else finite

    def clear(self) -> None:
        """Clear this step's gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def close(self) -> None:
        """Free the gradients of a run that has ended, and end the threads that updated its weights."""
        self.clear()
        self._threads.close()

    def _is_scale_found(self, norm: "Tensor") -> "Tensor":
        """Return whether lower loss scales may still help: not after so many skipped updates in a row."""
        if self._num_skipped is None:
            self._num_skipped = norm.new_zeros(())
        # In place, for a recorded step.
        self._num_skipped.add_(1).mul_(~norm.isfinite())
        return self._num_skipped < MAX_SKIPPED_UPDATES

    def _apply_guarded(self, norm: "Tensor", finite: "Tensor") -> None:
        optimizer: Any = self._optimizer
        if self._max_norm > 0:
            optimizer.grad_scale = ((norm + CLIP_GUARD) / self._max_norm).clamp(min=1.0).float()
        if self._scaler.is_enabled():
            # A loss that is not finite makes gradients that are not, which the scaler has counted.
            self._scaler.step(optimizer)
            return
        optimizer.found_inf = (~finite).float()
        optimizer.step()
        optimizer.grad_scale = optimizer.found_inf = None

    def _clip(self, norm: "Tensor") -> None:
        from torch.nn.utils import clip_grads_with_norm_

        if self._max_norm > 0:
            clip_grads_with_norm_(self._parameters, self._max_norm, norm)


class UpdatesInBackward:
    """A hook of the backward pass updates each weight, and frees its gradient before the next one is made.

    This saves the memory of all gradients, and excludes whatever needs them together: accumulation, a global norm, a
    loss scale. Weights in bf16 are updated in fp32, one tensor at a time, and rounded stochastically
    (`stochastically_rounded`). Like fused or "in-backward" optimizers, such as Lv et al. 2023 (LOMO, arXiv 2306.09782,
    section 3).
    """

    def __init__(self, config: TrainingConfig, optimizer: "Optimizer", seed: int) -> None:
        self._max_norm, self._seed, self._optimizer = config.max_tensor_grad_norm, seed, optimizer
        self._step = 0
        self._finite: Tensor | None = None
        self._hooks = []
        number = 0
        for group_number, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                hook = self._hook(group, (group_number, index), number)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))
                number += 1

    def backward(self, total: "Tensor", step: int) -> None:
        """Update every weight that the loss depends on; none if the loss is not finite. Waits for the device."""
        self._step, self._finite = step, total.detach().isfinite()
        if bool(self._finite):
            total.backward()

    def apply(self, total: "Tensor") -> "Tensor":
        """Return whether loss and all gradients were finite; weights whose gradient was not are unchanged."""
        assert self._finite is not None, "backward comes first"
        return self._finite

    def clear(self) -> None:
        """Do nothing: the gradients are already freed."""

    def close(self) -> None:
        """Remove the hooks: through one, a weight refers to the optimizer and all others, and is never freed."""
        for hook in self._hooks:
            hook.remove()

    def _hook(self, group: dict[str, Any], place: tuple[int, int], number: int) -> "Callable[[nn.Parameter], None]":
        import torch

        def update(parameter: "nn.Parameter") -> None:
            gradient = parameter.grad
            assert gradient is not None
            assert self._finite is not None
            parameter.grad = None
            norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
            finite = norm.isfinite()
            self._finite = self._finite & finite
            # In place, because a branch would wait for the device 880 times a step.
            torch.nan_to_num_(gradient, nan=0.0, posinf=0.0, neginf=0.0)
            if self._max_norm is not None:
                gradient *= (self._max_norm / (norm + CLIP_GUARD)).clamp(max=1.0).nan_to_num(nan=0.0)
            before = parameter.detach()
            weights = before.float() if before.dtype == torch.bfloat16 else before.clone()
            update_one(self._optimizer, group, place, parameter, weights, gradient.float())
            if before.dtype == torch.bfloat16:
                generator = torch.Generator(before.device)
                generator.manual_seed(rng.derived_seed(self._seed, "rounding", self._step, number))
                weights = stochastically_rounded(weights, generator)
            torch.where(finite, weights, before, out=before)

        return update
