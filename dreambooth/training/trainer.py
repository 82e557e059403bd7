"""The training loop.

A step is: batch, loss, backward, update, report, due work - in that order, below. Gradients of the DreamBooth loss
(Ruiz et al. 2023, arXiv 2208.12242, eq. 2) update UNet and text encoder in fp32, over arithmetic in fp16 or bf16.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth.config.checks import PATIENCE
from dreambooth.config.training import TrainingConfig
from dreambooth.device.capture import CapturedWork
from dreambooth.errors import TrainingError
from dreambooth.events import Controls, Notice, PhaseProgress, Resumed
from dreambooth.models.family import Condition, Family, TextInputs
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder
from dreambooth.training import objective
from dreambooth.training.batches import Batch
from dreambooth.training.checkpoint import Checkpoint, Learner, restore
from dreambooth.training.extending import Extension, is_void
from dreambooth.training.finishing import Finish, cool_down_from, read_finish, write_finish
from dreambooth.training.keeping import Keeper, averaged_weights
from dreambooth.training.lending import lend_device
from dreambooth.training.loss_reports import LossReports
from dreambooth.training.materials import Materials, Report
from dreambooth.training.method import LearningWeights, parameters_of
from dreambooth.training.move_check import first_rows, refuse_standing_still
from dreambooth.training.optimizer import build_optimizer, build_schedule
from dreambooth.training.run_identity import RunIdentity, identity_of, require_same_run, settings_as_written
from dreambooth.training.sharding import Shards, shard
from dreambooth.training.updates import GatheredUpdates, UpdatesInBackward

if TYPE_CHECKING:
    from torch import Tensor

STEPS_TO_MOVE = 25


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
    """Return the loss of one micro-batch: a function of the models and the batch, and of nothing else.

    condition: what the UNet is told of each picture. Nothing here waits for the device.
    """
    import torch

    level = alpha_bar[batch.timesteps]
    noisy = objective.noised(batch.latents, batch.noise, level)
    prediction = family.predict(unet, noisy, batch.timesteps, condition)
    kind = objective.checked_prediction_type(prediction_type)
    wanted = objective.target(batch.latents, batch.noise, level, kind)
    weights = None if snr_gamma is None else objective.min_snr_weights(level, snr_gamma, kind)
    if batch.teacher is not None:
        wanted = torch.cat([wanted[: batch.num_instance], batch.teacher])
    return objective.prior_preservation(
        prediction, wanted, batch.num_instance, prior_loss_weight, weights, batch.place_weights
    )


class Trainer:
    """One run's loop over prepared materials; the caller holds the device's lease."""

    def __init__(
        self,
        config: TrainingConfig,
        materials: Materials,
        run: RunFolder,
        manager: ModelManager,
        report: Report,
        controls: Controls,
        resume: Checkpoint | None = None,
        extensions: Sequence[Extension] = (),
        *,
        goes_back: bool = False,
    ) -> None:
        """Prepare the loop; with `goes_back`, an early end that was decided after the state to resume from is void."""
        self._config, self._materials = config, materials
        self._manager, self._device = manager, manager.device
        self._report, self._controls = report, controls
        self._base = materials.base
        self._text_encoder_learns = config.train_text_encoder
        self._losses = LossReports(materials.batches.num_processes, report)
        self._ahead: tuple[int, Batch] | None = None
        self._form: tuple[TextInputs | Condition, Batch]
        identity = self._identity()
        if resume is not None:
            kept = settings_as_written(run) or config.to_json()
            for sentence in require_same_run(resume.step, resume.identity, identity, kept):
                report(Notice(sentence, "warning"))
        self._extensions = tuple(extensions)
        self._prepare_updates(self._prepared_models())
        # Through a hook a weight holds all others: none may stay on when this fails.
        with contextlib.ExitStack() as undone:
            undone.callback(self._updates.close)
            self._finish_path, self._early_end = run.finish_path, read_finish(run.finish_path)
            if goes_back and resume and self._early_end and self._early_end.start > resume.step:
                self._finish_path.unlink()
                self._early_end = None
            if self._early_end is not None and is_void(self._early_end, self._extensions):
                self._early_end = None
            self._first_step = 0 if resume is None else self._restored(resume)
            self._keeper = Keeper(config, materials, run, manager, report, self._learner, identity, self._first_step)
            self._first_rows = first_rows(self._learner.parameters)
            undone.pop_all()

    def _identity(self) -> RunIdentity:
        materials = self._materials
        return identity_of(
            self._config,
            photos=materials.photo_files,
            captions=materials.captions,
            token_ids=materials.conditions.token_ids(caption for _, caption in materials.captions),
            base_key=materials.base_key,
            noise_schedule=self._base.noise_scheduler_config,
            device_name=str(self._device),
            num_processes=materials.batches.num_processes,
        )

    def run(self) -> int:
        """Train to the end or until stopped, save, and return the number of updates made."""
        try:
            return self._run()
        finally:
            self._updates.close()
            self._keeper.close()

    def _run(self) -> int:
        config = self._config
        step = self._first_step
        if step == 0:
            self._keeper.sample(step)
            self._keeper.score(step)
            self._look(step)
        elif self._is_save_due(step):
            # The first part may have been killed between the state of this step and the end of its model.
            self._save(step)
        self._report(PhaseProgress("training", step, self.num_steps))
        while step < self.num_steps and not self._is_stopped():
            self._set_rates(step)
            stop_step = config.text_encoder_stop_step
            if self._text_encoder_learns and stop_step is not None and step >= stop_step:
                self._stop_text_encoder()

            # Batch, loss, backward: once per micro-batch, gradients add up. Update: once.
            batches = [self._batch(step, micro_step) for micro_step in range(config.gradient_accumulation_steps)]
            losses, finite = self._step(step, batches)
            self._prefetch(step + 1)
            self._refuse_broken(step, losses, finite)
            rate = self._advance()
            step += 1

            # Report
            self._losses.remember(step, losses, rate)
            if step % config.log_interval == 0 or step in (1, self.num_steps):
                self._losses.tell()
            self._report(PhaseProgress("training", step, self.num_steps))

            # Due work
            if step == min(self._first_step + STEPS_TO_MOVE, self.num_steps):
                refuse_standing_still(self._first_rows, self._learner.parameters, step - self._first_step)
                self._first_rows.clear()
            self._due_work(step)
        self._finish(step)
        return step

    def _is_stopped(self) -> bool:
        return self._agreed(self._controls.stop.is_set())[0]

    def _agreed(self, *told: bool) -> list[bool]:
        """Return what any process was told, in all of them: each is told by itself, and in its own time."""
        if self._materials.batches.num_processes == 1:
            return [*told]
        import torch
        from accelerate.utils import reduce

        counts = reduce(torch.tensor(told, dtype=torch.float32, device=self._device), reduction="sum")
        return [count > 0 for count in counts.tolist()]

    # Preparation -----------------------------------------------------------------------------------------------------

    def _prepared_models(self) -> LearningWeights:
        """Prepare the models, and return the weights that learn."""
        import torch

        base, config, method = self._base, self._config, self._materials.method
        method.attach(base, config)
        if config.shard_weights:
            for part in method.learning(base):
                shard(getattr(base, part), self._device, self._materials.batches.num_processes)
        # Pictures are made with the UNet itself: other shapes would be compiled anew.
        self._unet = torch.compile(base.unet) if config.compile_unet else base.unet
        return method.learning(base)

    def _prepare_updates(self, weights: LearningWeights) -> None:
        import torch

        config = self._config
        shards = Shards(weights) if config.shard_weights else None
        own = weights if shards is None else shards.own
        num_processes = self._materials.batches.num_processes
        self._optimizer = build_optimizer(
            config, own, num_processes=num_processes,
            notice=lambda text: self._report(Notice(text, "warning")),
        )  # fmt: skip
        self._schedule = build_schedule(config, self._optimizer, self._materials.num_steps, self._extensions)
        # Losses in fp16 are scaled up before backward and gradients down after it (Micikevicius et al., 1710.03740).
        scaler = torch.amp.GradScaler(self._device.type, enabled=config.mixed_precision == "fp16")
        self._updates: GatheredUpdates | UpdatesInBackward
        if config.update_in_backward:
            self._updates = UpdatesInBackward(config, self._optimizer, self._materials.seed)
        else:
            self._updates = GatheredUpdates(config, self._optimizer, scaler, num_processes, shards)
        self._captured = CapturedWork(self._captured_work) if self._can_capture() else None
        self._ema = None
        if config.use_ema:
            from diffusers.training_utils import EMAModel

            self._ema = EMAModel(parameters_of(own), decay=config.ema_decay)
        self._learner = Learner(weights, self._optimizer, scaler, self._ema, shards)

    def _can_capture(self) -> bool:
        """Return whether steps are recorded as asked for, and tell of it when they cannot be."""
        if not self._config.capture_step:
            return False
        capturable = all(group.get("capturable") for group in self._optimizer.param_groups)
        if capturable and self._materials.batches.num_processes == 1:
            return True
        self._report(Notice("Steps cannot be recorded here: that takes CUDA, plain AdamW and one process.", "warning"))
        return False

    def _stop_text_encoder(self) -> None:
        # Frozen by requires_grad, not by a zero rate: schedules put rates back (and AdamW would go on decaying).
        self._text_encoder_learns = False
        self._materials.conditions.freeze()
        self._base.text_encoder.eval()
        for parameter in self._learner.weights["text_encoder"].values():
            parameter.grad = None
        if self._captured is not None:
            self._captured = CapturedWork(self._captured_work)
        self._report(Notice(f"The text encoder stays as it is from step {self._config.text_encoder_stop_step} on."))

    # The step --------------------------------------------------------------------------------------------------------

    def _step(self, step: int, batches: list[Batch]) -> "tuple[list[objective.Losses], Tensor]":
        """Do one step, and return the micro-batches' losses and whether all numbers were finite, on the device."""
        if self._captured is not None:
            (batch,) = batches
            inputs = self._condition_inputs(batch)
            self._form = inputs, batch
            outputs = self._captured([*inputs.tensors(), *batch.tensors()])
            finite, total, instance, *prior = outputs
            return [objective.Losses(total, instance, prior[0] if prior else None)], finite
        losses = [self._backward(step, batch, self._condition_inputs(batch)) for batch in batches]
        finite = self._updates.apply(self._losses.mean_total(losses))
        self._updates.clear()
        return losses, finite

    def _captured_work(self, tensors: "Sequence[Tensor]") -> "Sequence[Tensor]":
        """Do one step as a function of tensors: those of the condition's inputs and the batch, as they came last."""
        inputs, batch = self._form
        num_inputs = len(inputs.tensors())
        self._updates.clear()
        losses = self._backward(0, batch.with_tensors(tensors[num_inputs:]), inputs.with_tensors(tensors[:num_inputs]))
        finite = self._updates.apply(losses.total)
        return [finite, *(part for part in (losses.total, losses.instance, losses.prior) if part is not None)]

    def _condition_inputs(self, batch: Batch) -> TextInputs | Condition:
        return self._materials.conditions.inputs(batch.captions, batch.sizes)

    def _backward(self, step: int, batch: Batch, inputs: TextInputs | Condition) -> objective.Losses:
        materials, config = self._materials, self._config
        with self._arithmetic():
            losses = step_loss(
                self._base.family,
                self._unet,
                materials.conditions.condition(inputs),
                batch,
                materials.alpha_bar,
                self._base.noise_scheduler_config.get("prediction_type", "epsilon"),
                config.prior_loss_weight,
                config.snr_gamma,
            )
        self._updates.backward(losses.total, step)
        # Thousands of a graph's small nodes would lie between the next forward's tensors, which then fit no hole.
        return losses.detached()

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Return autocast in the run's precision, over weights that keep their own."""
        import torch

        config = self._config
        if config.mixed_precision == "no":
            return contextlib.nullcontext()
        dtype = torch.float16 if config.mixed_precision == "fp16" else torch.bfloat16
        # The cache keeps a half-precision copy of every weight until the end of forward: 2 GB of SD 1.5's.
        is_cached = not config.gradient_checkpointing and not config.shard_weights
        return torch.autocast(self._device.type, dtype=dtype, cache_enabled=is_cached)

    def _batch(self, step: int, micro_step: int) -> Batch:
        if micro_step == 0 and self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        return self._materials.batches.batch(step, micro_step)

    def _prefetch(self, step: int) -> None:
        """Make the next batch while the card computes; on the CPU there is no such while."""
        if self._device.type == "cuda" and step < self.num_steps:
            self._ahead = step, self._materials.batches.batch(step, 0)

    def _advance(self) -> float:
        """Move schedule and average on by one update, and return the rate it was made with."""
        rate = float(self._optimizer.param_groups[0]["lr"])
        with _quiet_schedule():
            self._schedule.step()
        if self._ema is not None:
            self._ema.step(self._learner.parameters)
        return rate

    def _refuse_broken(self, step: int, losses: list[objective.Losses], finite: "Tensor") -> None:
        """Stop at an update that would have broken the weights; they are as the step before left them.

        Costs one wait for the device each step.
        """
        if bool(finite):
            return
        what = "gradients" if bool(self._losses.mean_total(losses).isfinite()) else "loss"
        why = "The updates were too large for the number format, or the rate too high."
        todo = "Lower the learning rate, or train with mixed_precision bf16 or no."
        if step == 0 and what == "loss":
            why = "No weight was updated yet: the base model itself gives no finite numbers in this number format."
            todo = "Train with mixed_precision bf16 or no, or choose another base model."
        if self._config.update_in_backward and what == "gradients":
            self._losses.tell()
            raise TrainingError(
                f"The {what} of step {step + 1} became no finite number.",
                f"{why} Other weights of that step were updated already: the run goes back to its last exact state.",
                f"{todo} Then start anew, or resume this run from that state.",
            )
        self._finish(step)
        raise TrainingError(
            f"The {what} of step {step + 1} became no finite number; the weights are as step {step} left them.",
            why,
            todo,
        )

    # Due work --------------------------------------------------------------------------------------------------------

    def _look(self, step: int) -> None:
        """Report the losses at fixed noise, of the weights that would be saved."""
        if self._materials.gauges is not None:
            with averaged_weights(self._learner):
                self._report(self._materials.gauges.look(step))

    def _due_work(self, step: int) -> None:
        config, keeper, controls = self._config, self._keeper, self._controls
        keeper.settle(wait=False)
        finish_now, save_now, sample_now, lend, is_late = self._agreed(
            controls.finish_now.is_set(), controls.save_now.is_set(), controls.sample_now.is_set(),
            controls.lend.is_set(), keeper.state_is_due(step),
        )  # fmt: skip
        if finish_now:
            self._cool_down(step)
        num_steps = self.num_steps
        is_saved = self._is_save_due(step) or save_now
        if is_saved or step == num_steps or (config.gauge_interval and step % config.gauge_interval == 0):
            self._look(step)
        if is_saved:
            controls.save_now.clear()
            self._save(step)
            self._report(PhaseProgress("training", step, num_steps))
        elif sample_now and step < num_steps:
            controls.sample_now.clear()
            keeper.sample(step)
            self._report(PhaseProgress("training", step, num_steps))
        if step < num_steps and is_late:
            self._keep_state(step)
        if step < num_steps and lend:
            self._lend_device(step)

    def _is_save_due(self, step: int) -> bool:
        config = self._config
        return step % config.save_interval == 0 and config.save_min_steps <= step < self.num_steps

    def _save(self, step: int) -> None:
        """Save a model with all that belongs to it, the model last: it is written while the training goes on.

        The state comes first: a run that is killed before its model is whole makes that again when it is resumed.
        """
        config, keeper = self._config, self._keeper
        self._keep_state(step)
        keeper.sample(step)
        keeper.score(step)
        # Of several processes only the first has scores, and all must end at the same step.
        alone = self._materials.batches.num_processes == 1
        if config.stop_when_good and alone and self._has_compared(step) and keeper.is_past_best():
            self._end_early(Finish(step, step), "Nothing was gained any more: the run ends here.")
        keeper.save(step, is_last=step == self.num_steps)

    def _has_compared(self, step: int) -> bool:
        """Return whether enough was saved since the last extension to end the run for what its saves are worth."""
        if not self._extensions:
            return True
        every, start = self._config.save_interval, self._extensions[-1].start
        return step // every - start // every >= PATIENCE

    def _lend_device(self, step: int) -> None:
        """Pause while somebody else wants the device; a recorded step is recorded anew, for other addresses."""
        self._losses.tell()
        self._keeper.settle()
        base, was_recorded, self._captured = self._base, self._captured is not None, None
        models = [base.unet, base.text_encoder, base.vae]
        lend_device(
            self._manager, models, self._learner, lambda: self._agreed(self._controls.lend.is_set())[0], self._report
        )
        self._captured = CapturedWork(self._captured_work) if was_recorded else None
        self._report(PhaseProgress("training", step, self.num_steps))

    @property
    def num_steps(self) -> int:
        """Return after how many updates the run is done, which is sooner when it was told to finish."""
        return self._materials.num_steps if self._early_end is None else self._early_end.end

    def _cool_down(self, step: int) -> None:
        """Begin the cool-down that someone asked for; later wishes change nothing."""
        if self._early_end is None and step < self.num_steps:
            finish = cool_down_from(step, self.num_steps)
            self._end_early(finish, f"Finishing: the rate falls to zero over {finish.end - step} more steps.")

    def _end_early(self, finish: Finish, what: str) -> None:
        if self._early_end is None:
            write_finish(self._finish_path, finish)
            self._early_end = finish
            self._keeper.num_steps = finish.end
            self._report(Notice(what))

    def _set_rates(self, step: int) -> None:
        """Lower the rates of the coming update in a run that is told to finish; the schedule's own stay as they are."""
        if self._early_end is None:
            return
        factor = self._early_end.rate_factor(step)
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            if isinstance(group["lr"], float):
                group["lr"] = float(rate) * factor
            else:
                group["lr"].fill_(float(rate) * factor)

    def _finish(self, step: int) -> None:
        self._losses.tell()
        self._keeper.settle()
        if step:
            self._keeper.save(step, is_last=True)
        if step == self.num_steps:
            self._keeper.sample(step)
            self._keeper.score(step)
            self._keeper.recommend()
            self._keeper.end_states(step)
        elif step:
            self._keep_state(step)

    # The exact state -------------------------------------------------------------------------------------------------

    def _keep_state(self, step: int) -> None:
        self._losses.tell()
        self._keeper.keep_state(step)

    def _restored(self, checkpoint: Checkpoint) -> int:
        """Take up a state, and return its step."""
        restore(checkpoint, self._learner)
        with _quiet_schedule():
            for _ in range(checkpoint.step):
                self._schedule.step()
        self._report(Resumed(checkpoint.step))
        return checkpoint.step


@contextlib.contextmanager
def _quiet_schedule() -> Iterator[None]:
    """Silence torch's warning about order when the scaler has skipped an overflowing update, which is its job."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before", UserWarning)
        yield
