"""The training loop.

A step is: batch, loss, backward, update, report, due work - in that order, below. What a step computes is in `step.py`.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreambooth.config.checks import PATIENCE
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import TrainingError
from dreambooth.events import Notice, PhaseProgress, Resumed
from dreambooth.training import objective
from dreambooth.training.checkpoint import Checkpoint, Learner, restore
from dreambooth.training.extending import Extension
from dreambooth.training.finishing import Finish, cool_down_from
from dreambooth.training.lending import lend_device
from dreambooth.training.length import RunLength, forget_later_finish
from dreambooth.training.loss_reports import LossReports, mean_total
from dreambooth.training.materials import Materials, RunContext
from dreambooth.training.method import LearningWeights, parameters_of
from dreambooth.training.move_check import first_rows, refuse_standing_still
from dreambooth.training.optimizer import build_optimizer, build_schedule
from dreambooth.training.rates import LearningRates
from dreambooth.training.run_identity import RunIdentity, identity_of, require_same_run, settings_as_written
from dreambooth.training.saving import RunSaver, averaged_weights
from dreambooth.training.sharding import Shards, shard
from dreambooth.training.step import TrainingStep, can_record
from dreambooth.training.updates import GatheredUpdates, UpdatesInBackward

if TYPE_CHECKING:
    from torch import Tensor

STEPS_TO_MOVE = 25


class Trainer:
    """One run's loop over prepared materials; the caller holds the device's lease."""

    def __init__(
        self,
        config: TrainingConfig,
        materials: Materials,
        context: RunContext,
        resume: Checkpoint | None = None,
        extensions: Sequence[Extension] = (),
    ) -> None:
        """Prepare the loop, to continue from the state `resume` if given.

        In a run that goes back to a named state, an early end decided after that state is void.
        """
        self._config, self._materials, self._context = config, materials, context
        self._device, self._report, self._controls = context.manager.device, context.report, context.controls
        run = context.run
        self._base = materials.base
        self._text_encoder_learns = config.train_text_encoder
        self._losses = LossReports(materials.batches.num_processes, context.report)
        identity = self._identity()
        if resume is not None:
            kept = settings_as_written(run) or config.to_json()
            for sentence in require_same_run(resume.step, resume.identity, identity, kept):
                context.warn(sentence)
        self._extensions = tuple(extensions)
        # The initial LoRA of a training is part of its states.
        began = config if resume is None else dataclasses.replace(config, initial_lora=None)
        self._prepare_updates(self._prepared_models(began))
        # Hooks keep every parameter alive; remove them if construction fails.
        with contextlib.ExitStack() as undone:
            undone.callback(self._step.updates.close)
            if context.state_step is not None and resume is not None:
                forget_later_finish(run.finish_path, resume.step)
            self._length = RunLength(materials.planned_steps, run.finish_path, self._extensions)
            schedule = build_schedule(config, self._learner.optimizer, materials.planned_steps, self._extensions)
            self._rates = LearningRates(self._learner.optimizer, schedule, self._length)
            self._first_step = 0 if resume is None else self._restored(resume)
            self._saver = RunSaver(config, materials, context, self._learner, identity, self._length, self._first_step)
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
            self._step.updates.close()
            self._saver.close()

    def _run(self) -> int:
        config = self._config
        step = self._first_step
        if step == 0:
            self._saver.sample(step)
            self._saver.score(step)
            self._evaluate_at_fixed_noise(step)
        elif self._is_save_due(step):
            # The first part may have been killed between this step's state and the end of its model.
            self._save(step)
        self._report(PhaseProgress("training", step, self.num_steps))
        while step < self.num_steps and not self._is_stopped():
            self._rates.lower(step)
            stop_step = config.text_encoder_stop_step
            if self._text_encoder_learns and stop_step is not None and step >= stop_step:
                self._stop_text_encoder()

            # Batch, loss, backward: once per micro-batch, gradients add up. Update: once.
            batches = self._step.batches(step)
            losses, finite = self._step.run(step, batches)
            if step + 1 < self.num_steps:
                self._step.prefetch(step + 1)
            self._refuse_broken(step, losses, finite)
            rate = self._rates.advance()
            if self._learner.ema is not None:
                self._learner.ema.step(self._learner.parameters)
            step += 1

            # Report
            self._losses.remember(step, losses, rate)
            if step % config.log_interval == 0 or step in (1, self.num_steps):
                self._losses.flush()
            self._report(PhaseProgress("training", step, self.num_steps))

            # Due work
            if step == min(self._first_step + STEPS_TO_MOVE, self.num_steps):
                refuse_standing_still(self._first_rows, self._learner.parameters, step - self._first_step)
                self._first_rows.clear()
            self._due_work(step)
        self._finish(step)
        return step

    def _is_stopped(self) -> bool:
        return self._on_any_process(self._controls.stop.is_set())[0]

    def _on_any_process(self, *wishes: bool) -> list[bool]:
        """Return, in all processes, which controls are set in any of them: each notices them in its own time."""
        if self._materials.batches.num_processes == 1:
            return [*wishes]
        import torch
        from accelerate.utils import reduce

        counts = reduce(torch.tensor(wishes, dtype=torch.float32, device=self._device), reduction="sum")
        return [count > 0 for count in counts.tolist()]

    # Preparation -----------------------------------------------------------------------------------------------------

    def _prepared_models(self, config: TrainingConfig) -> LearningWeights:
        """Prepare the models, and return the trained weights."""
        base, method = self._base, self._materials.method
        method.attach(base, config)
        if config.shard_weights:
            for part in method.learning(base):
                shard(getattr(base, part), self._device, self._materials.batches.num_processes)
        return method.learning(base)

    def _prepare_updates(self, weights: LearningWeights) -> None:
        import torch

        config = self._config
        shards = Shards(weights) if config.shard_weights else None
        own = weights if shards is None else shards.own
        num_processes = self._materials.batches.num_processes
        optimizer = build_optimizer(config, own, num_processes=num_processes, notice=self._context.warn)
        # Losses in fp16 are scaled up before backward and gradients down after it (Micikevicius et al., 1710.03740).
        scaler = torch.amp.GradScaler(self._device.type, enabled=config.mixed_precision == "fp16")
        updates: GatheredUpdates | UpdatesInBackward
        if config.update_in_backward:
            updates = UpdatesInBackward(config, optimizer, self._materials.seed)
        else:
            updates = GatheredUpdates(config, optimizer, scaler, num_processes, shards)
        is_recorded = can_record(config, optimizer, num_processes, self._report)
        # Samples use the UNet itself: other shapes would be compiled again.
        unet = torch.compile(self._base.unet) if config.compile_unet else self._base.unet
        self._step = TrainingStep(config, self._materials, unet, self._device, updates, is_recorded=is_recorded)
        ema = None
        if config.use_ema:
            from diffusers.training_utils import EMAModel

            ema = EMAModel(parameters_of(own), decay=config.ema_decay)
        self._learner = Learner(weights, optimizer, scaler, ema, shards)

    def _stop_text_encoder(self) -> None:
        # Frozen by requires_grad, not by a zero rate: schedules reset rates (and AdamW would continue to decay
        # weights).
        self._text_encoder_learns = False
        self._materials.conditions.freeze()
        for part in self._base.family.layout.text_encoders:
            getattr(self._base, part).eval()
            for parameter in self._learner.weights[part].values():
                parameter.grad = None
        self._step.record_anew()
        self._report(
            Notice(f"The text encoder is no longer trained from step {self._config.text_encoder_stop_step} on.")
        )

    def _refuse_broken(self, step: int, losses: list[objective.Losses], finite: "Tensor") -> None:
        """Stop at an update that would have broken the weights; they are those of the step before.

        Waits for the device once per step.
        """
        if bool(finite):
            return
        what = "gradients" if bool(mean_total(losses, self._materials.batches.num_processes).isfinite()) else "loss"
        why = "The updates were too large for the number format, or the rate too high."
        todo = "Lower the learning rate, or train with mixed_precision bf16 or no."
        if step == 0 and what == "loss":
            why = "No weight was updated yet: the base model overflows in this number format."
            todo = "Train with mixed_precision bf16 or no, or choose another base model."
        if self._config.update_in_backward and what == "gradients":
            self._losses.flush()
            raise TrainingError(
                f"The {what} of step {step + 1} became NaN or infinite.",
                f"{why} Other weights of that step were already updated: the run goes back to its last exact state.",
                f"{todo} Then start a new run, or resume this one from that state.",
            )
        self._finish(step)
        raise TrainingError(
            f"The {what} of step {step + 1} became NaN or infinite; the weights are as step {step} left them.",
            why,
            todo,
        )

    # Due work --------------------------------------------------------------------------------------------------------

    def _evaluate_at_fixed_noise(self, step: int) -> None:
        """Report the losses at fixed noise, of the weights that would be saved."""
        if self._materials.fixed_noise is not None:
            with averaged_weights(self._learner):
                self._report(self._materials.fixed_noise.losses(step))

    def _due_work(self, step: int) -> None:
        config, saver, controls = self._config, self._saver, self._controls
        saver.settle(wait=False)
        finish_now, save_now, sample_now, lend, is_late = self._on_any_process(
            controls.finish_now.is_set(), controls.save_now.is_set(), controls.sample_now.is_set(),
            controls.lend.is_set(), saver.state_is_due(step),
        )  # fmt: skip
        if finish_now:
            self._cool_down(step)
        num_steps = self.num_steps
        is_saved = self._is_save_due(step) or save_now
        if is_saved or step == num_steps or (config.gauge_interval and step % config.gauge_interval == 0):
            self._evaluate_at_fixed_noise(step)
        if is_saved:
            controls.save_now.clear()
            self._save(step)
            self._report(PhaseProgress("training", step, num_steps))
        elif sample_now and step < num_steps:
            controls.sample_now.clear()
            saver.sample(step)
            self._report(PhaseProgress("training", step, num_steps))
        if step < num_steps and is_late:
            self._save_state(step)
        if step < num_steps and lend:
            self._lend_device(step)

    def _is_save_due(self, step: int) -> bool:
        config = self._config
        return step % config.save_interval == 0 and config.save_min_steps <= step < self.num_steps

    def _save(self, step: int) -> None:
        """Save a model with everything that belongs to it, the model last: it is written while the training continues.

        The state comes first: a run that is killed before its model is complete makes it again when it is resumed.
        """
        config, saver = self._config, self._saver
        self._save_state(step)
        saver.sample(step)
        saver.score(step)
        # Of several processes only the first has scores, and all must end at the same step.
        alone = self._materials.batches.num_processes == 1
        if config.stop_when_good and alone and self._has_compared(step) and saver.is_past_best():
            self._end_early(Finish(step, step), "The last saves brought no improvement: the run ends here.")
        saver.save(step, is_last=step == self.num_steps)

    def _has_compared(self, step: int) -> bool:
        """Return whether enough was saved since the last extension to end the run by its scores."""
        if not self._extensions:
            return True
        every, start = self._config.save_interval, self._extensions[-1].start
        return step // every - start // every >= PATIENCE

    def _lend_device(self, step: int) -> None:
        """Pause while something else uses the device; a recorded step is recorded again, for the new addresses."""
        self._losses.flush()
        self._saver.settle()
        self._step.record_anew()
        models = list(self._base.modules().values())

        def is_wanted() -> bool:
            return self._on_any_process(self._controls.lend.is_set())[0]

        lend_device(self._context.manager, models, self._learner, is_wanted, self._report)
        self._report(PhaseProgress("training", step, self.num_steps))

    @property
    def num_steps(self) -> int:
        """Return after how many updates the run is done; fewer if it is finishing early."""
        return self._length.num_steps

    def _cool_down(self, step: int) -> None:
        """Begin the requested cool-down; later requests change nothing."""
        if step < self.num_steps:
            finish = cool_down_from(step, self.num_steps)
            self._end_early(
                finish, f"Finishing early: the learning rate ramps down to zero over {finish.end - step} more steps."
            )

    def _end_early(self, finish: Finish, what: str) -> None:
        if self._length.end_early(finish):
            self._report(Notice(what))

    def _finish(self, step: int) -> None:
        self._losses.flush()
        self._saver.settle()
        if step:
            self._saver.save(step, is_last=True)
        if step == self.num_steps:
            self._saver.sample(step)
            self._saver.score(step)
            self._saver.recommend()
            self._saver.end_states(step)
        elif step:
            self._save_state(step)

    # The exact state -------------------------------------------------------------------------------------------------

    def _save_state(self, step: int) -> None:
        self._losses.flush()
        self._saver.save_state(step)

    def _restored(self, checkpoint: Checkpoint) -> int:
        """Restore a state, and return its step."""
        restore(checkpoint, self._learner)
        self._rates.skip(checkpoint.step)
        self._report(Resumed(checkpoint.step))
        return checkpoint.step
