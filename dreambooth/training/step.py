"""One training step: forward under autocast, loss, backward, update; recorded as a CUDA graph where possible.

Gradients of the DreamBooth loss (Ruiz et al. 2023, arXiv 2208.12242, eq. 2) update the weights in fp32, computed in
fp16 or bf16.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dreambooth.config.training import TrainingConfig
from dreambooth.device.capture import CapturedWork
from dreambooth.device.precision import autocast
from dreambooth.events import Notice
from dreambooth.models.family import Condition, Family, TextInputs
from dreambooth.training import objective
from dreambooth.training.batches import Batch
from dreambooth.training.loss_reports import mean_total
from dreambooth.training.materials import Materials, Report
from dreambooth.training.updates import GatheredUpdates, UpdatesInBackward

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer


def step_loss(
    family: Family,
    unet: Any,
    condition: Condition,
    batch: Batch,
    alpha_bar: "Tensor",
    prediction_type: str,
    prior_loss_weight: float,
    snr_gamma: float | None = None,
) -> objective.Losses:
    """Return the loss of one micro-batch: a function of the models and the batch alone.

    condition: the UNet's conditioning for each image. Nothing here waits for the device. Class images of another size
    than the photos have a separate forward; the losses of both are combined.
    """
    import torch

    kind = objective.checked_prediction_type(prediction_type)

    def losses(piece: Batch, own: Condition, num_instance: int) -> objective.Losses:
        level = alpha_bar[piece.timesteps]
        noisy = objective.noised(piece.latents, piece.noise, level)
        prediction = family.predict(unet, noisy, piece.timesteps, own)
        wanted = objective.target(piece.latents, piece.noise, level, kind)
        weights = None if snr_gamma is None else objective.min_snr_weights(level, snr_gamma, kind)
        if piece.teacher is not None:
            wanted = torch.cat([wanted[: piece.num_instance], piece.teacher])
        return objective.prior_preservation(
            prediction, wanted, num_instance, prior_loss_weight, weights, piece.place_weights
        )

    if batch.of_class is None:
        return losses(batch, condition, batch.num_instance)
    num_photos, num_of_class = len(batch.captions), len(batch.of_class.captions)
    instance = losses(batch, condition[:num_photos], num_photos).instance
    prior = losses(batch.of_class, condition[num_photos:], num_of_class).instance
    return objective.Losses(instance + prior_loss_weight * prior, instance, prior)


def can_record(config: TrainingConfig, optimizer: "Optimizer", num_processes: int, report: Report) -> bool:
    """Return whether steps are recorded as the settings ask; reports it if they ask and it is impossible."""
    if not config.capture_step:
        return False
    capturable = all(group.get("capturable") for group in optimizer.param_groups)
    if capturable and num_processes == 1:
        return True
    report(Notice("Steps cannot be recorded here: this needs CUDA, AdamW in 32 bits and a single process.", "warning"))
    return False


class TrainingStep:
    """The step of one run: its batches, and their effect on the weights."""

    def __init__(
        self,
        config: TrainingConfig,
        materials: Materials,
        unet: Any,
        device: "torch.device",
        updates: GatheredUpdates | UpdatesInBackward,
        *,
        is_recorded: bool,
    ) -> None:
        """`unet` is the base's own, or its compiled version."""
        self._config, self._materials, self._unet, self._device = config, materials, unet, device
        self.updates = updates
        self._captured = CapturedWork(self._captured_work) if is_recorded else None
        self._ahead: tuple[int, Batch] | None = None
        # The shapes and captions of the last call, which the recorded work combines with its tensors.
        self._form: tuple[TextInputs | Condition, Batch]

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        num_micro_batches = self._config.gradient_accumulation_steps
        return [self._batch(step, micro_step) for micro_step in range(num_micro_batches)]

    def prefetch(self, step: int) -> None:
        """Make the first batch of the next step while the GPU computes; on the CPU there is no such time."""
        if self._device.type == "cuda":
            self._ahead = step, self._materials.batches.batch(step, 0)

    def run(self, step: int, batches: Sequence[Batch]) -> "tuple[list[objective.Losses], Tensor]":
        """Do one step, and return the micro-batches' losses and whether all numbers were finite, on the device."""
        if self._captured is not None:
            (batch,) = batches
            inputs = self.condition_inputs(batch)
            self._form = inputs, batch
            outputs = self._captured([*inputs.tensors(), *batch.tensors()])
            finite, total, instance, *prior = outputs
            return [objective.Losses(total, instance, prior[0] if prior else None)], finite
        # Backward once per micro-batch, where gradients add up; one update.
        losses = [self._backward(step, batch, self.condition_inputs(batch)) for batch in batches]
        finite = self.updates.apply(mean_total(losses, self._materials.batches.num_processes))
        self.updates.clear()
        return losses, finite

    def condition_inputs(self, batch: Batch) -> TextInputs | Condition:
        """Return the text encoder's input for a batch, or its output if it is frozen."""
        pieces = batch.by_size()
        captions = [caption for piece in pieces for caption in piece.captions]
        return self._materials.conditions.inputs(captions, [size for piece in pieces for size in piece.sizes])

    def losses(self, batch: Batch, inputs: TextInputs | Condition) -> objective.Losses:
        """Return the losses of one micro-batch, with a graph: the forward pass in the run's precision."""
        materials, config = self._materials, self._config
        is_cached = not config.gradient_checkpointing and not config.shard_weights
        with autocast(self._device.type, materials.method.autocast_dtype(config), cache=is_cached):
            return step_loss(
                materials.base.family,
                self._unet,
                materials.conditions.condition(inputs),
                batch,
                materials.alpha_bar,
                materials.base.noise_scheduler_config.get("prediction_type", "epsilon"),
                config.prior_loss_weight,
                config.snr_gamma,
            )

    def record_anew(self) -> None:
        """Drop the recorded graph, whose addresses or shape are no longer valid; the next steps record another."""
        if self._captured is not None:
            self._captured = CapturedWork(self._captured_work)

    def _batch(self, step: int, micro_step: int) -> Batch:
        if micro_step == 0 and self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        return self._materials.batches.batch(step, micro_step)

    def _backward(self, step: int, batch: Batch, inputs: TextInputs | Condition) -> objective.Losses:
        losses = self.losses(batch, inputs)
        self.updates.backward(losses.total, step)
        # Drop the graph now: its small allocations fragment the heap for the next forward pass.
        return losses.detached()

    def _captured_work(self, tensors: "Sequence[Tensor]") -> "Sequence[Tensor]":
        """Do one step as a function of tensors: those of the condition's inputs and the batch, as in the last call."""
        inputs, batch = self._form
        num_inputs = len(inputs.tensors())
        self.updates.clear()
        losses = self._backward(0, batch.with_tensors(tensors[num_inputs:]), inputs.with_tensors(tensors[:num_inputs]))
        finite = self.updates.apply(losses.total)
        return [finite, *(part for part in (losses.total, losses.instance, losses.prior) if part is not None)]
