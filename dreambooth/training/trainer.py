"""The training loop.

A step is: batch, loss, backward, update, report, due work - in that order, below. Gradients of the DreamBooth loss
(Ruiz et al. 2023, arXiv 2208.12242, eq. 2) update UNet and text encoder in fp32, over arithmetic in fp16 or bf16.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.config import GenerationConfig, TrainingConfig
from dreambooth.errors import RunFolderError, TrainingError
from dreambooth.events import Controls, Event, ModelSaved, Notice, PhaseProgress, Resumed, SamplesMade, StepLoss
from dreambooth.models.base import Base
from dreambooth.models.manager import ModelManager
from dreambooth.storage import remove_weights, saved_steps
from dreambooth.training import objective
from dreambooth.training.batches import Batch, BatchMaker
from dreambooth.training.captions import CaptionStates
from dreambooth.training.checkpoint import (
    Checkpoint,
    Learner,
    prune,
    refuse_other,
    restore,
    surroundings_of,
    write_checkpoint,
)
from dreambooth.training.optimizer import (
    average_across_processes,
    build_optimizer,
    build_schedule,
    clip_gradients,
    trainable,
)
from dreambooth.workspace import RunFolder, is_disk_full, new_folder, remove_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Report = Callable[[Event], None]
STEPS_TO_MOVE = 25
STATE_INTERVAL_S = 600


@dataclass(frozen=True)
class Materials:
    """What preparation hands to the loop: everything a step reads."""

    base: Base
    batches: BatchMaker
    caption_states: CaptionStates
    alpha_bar: "Tensor"
    seed: int
    num_steps: int
    photo_files: list[Path]


def step_loss(
    unet: Any,
    caption_states: CaptionStates,
    batch: Batch,
    alpha_bar: "Tensor",
    prediction_type: str,
    prior_loss_weight: float,
    snr_gamma: float | None = None,
) -> objective.Losses:
    """Return the loss of one micro-batch: a function of the models and the batch, and of nothing else."""
    level = alpha_bar.to(batch.timesteps.device)[batch.timesteps]
    noisy = objective.noised(batch.latents, batch.noise, level)
    prediction = unet(noisy, batch.timesteps, caption_states(batch.captions)).sample
    kind = objective.checked_prediction_type(prediction_type)
    wanted = objective.target(batch.latents, batch.noise, level, kind)
    weights = None if snr_gamma is None else objective.min_snr_weights(level, snr_gamma, kind)
    return objective.prior_preservation(prediction, wanted, batch.num_instance, prior_loss_weight, weights)


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
    ) -> None:
        self._config, self._materials, self._run = config, materials, run
        self._manager, self._report, self._controls = manager, report, controls
        self._base = materials.base
        self._is_main = materials.batches.rank == 0
        self._text_encoder_learns = config.train_text_encoder
        self._unreported: list[tuple[int, Tensor, Tensor, Tensor | None, float]] = []
        self._saved_step = self._kept_step = 0
        self._kept_at_s = time.monotonic()
        self._prepare_models()
        self._prepare_updates()
        self._surroundings = surroundings_of(config.departures(), materials.photo_files, str(manager.device))
        self._first_step = 0 if resume is None else self._restored(resume)
        self._probes = [parameter.detach().clone() for parameter in self._parameters if parameter.ndim == 1]

    def run(self) -> int:
        """Train to the end or until stopped, save, and return the number of updates made."""
        config, num_steps = self._config, self._materials.num_steps
        self._sample(0)
        step = self._first_step
        self._report(PhaseProgress("training", step, num_steps))
        while step < num_steps and not self._controls.stop.is_set():
            stop_step = config.text_encoder_stop_step
            if self._text_encoder_learns and stop_step is not None and step >= stop_step:
                self._stop_text_encoder()

            # Batch, loss, backward: once per micro-batch, gradients add up.
            losses = []
            for micro_step in range(config.gradient_accumulation_steps):
                batch = self._materials.batches.batch(step, micro_step)
                losses.append(self._backward(batch))

            # Update
            rate = self._update(step, losses)
            step += 1

            # Report
            self._remember(step, losses, rate)
            if step % config.log_interval == 0 or step in (1, num_steps):
                self._report_losses()
            self._report(PhaseProgress("training", step, num_steps))

            # Due work
            if step == min(self._first_step + STEPS_TO_MOVE, num_steps):
                self._refuse_standing_still(step)
            self._due_work(step)
        self._finish(step)
        return step

    # Preparation -----------------------------------------------------------------------------------------------------

    def _prepare_models(self) -> None:
        base, config = self._base, self._config
        base.unet.requires_grad_(True).train()
        base.text_encoder.requires_grad_(self._text_encoder_learns).train(self._text_encoder_learns)
        base.vae.requires_grad_(False)
        if config.gradient_checkpointing:
            base.unet.enable_gradient_checkpointing()
            if self._text_encoder_learns:
                text_encoder = base.text_encoder  # transformers 5.23 renamed the method
                getattr(text_encoder, "activation_checkpointing_enable", text_encoder.gradient_checkpointing_enable)()

    def _prepare_updates(self) -> None:
        import torch

        config, base = self._config, self._base
        learning = base.text_encoder if self._text_encoder_learns else None
        self._parameters = trainable(base.unet) + (trainable(learning) if learning is not None else [])
        self._optimizer = build_optimizer(
            config,
            base.unet,
            learning,
            num_processes=self._materials.batches.num_processes,
            notice=lambda text: self._report(Notice(text, "warning")),
        )
        self._schedule = build_schedule(config, self._optimizer, self._materials.num_steps)
        # Losses in fp16 are scaled up before backward and gradients down after it (Micikevicius et al., 1710.03740).
        self._scaler = torch.amp.GradScaler(self._manager.device.type, enabled=config.mixed_precision == "fp16")
        self._ema = None
        if config.use_ema:
            from diffusers.training_utils import EMAModel

            self._ema = EMAModel(self._parameters, decay=config.ema_decay)

    def _stop_text_encoder(self) -> None:
        # Frozen by requires_grad, not by a zero rate: schedules put rates back (and AdamW would go on decaying).
        self._text_encoder_learns = False
        self._materials.caption_states.freeze()
        self._base.text_encoder.eval()
        for parameter in self._base.text_encoder.parameters():
            parameter.grad = None
        self._report(Notice(f"The text encoder stays as it is from step {self._config.text_encoder_stop_step} on."))

    # The step --------------------------------------------------------------------------------------------------------

    def _backward(self, batch: Batch) -> objective.Losses:
        materials = self._materials
        with self._arithmetic():
            losses = step_loss(
                self._base.unet,
                materials.caption_states,
                batch,
                materials.alpha_bar,
                self._base.noise_scheduler_config.get("prediction_type", "epsilon"),
                self._config.prior_loss_weight,
                self._config.snr_gamma,
            )
        self._scaler.scale(losses.total / self._config.gradient_accumulation_steps).backward()
        return losses

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        """Return autocast in the run's precision; weights stay fp32 masters."""
        import torch

        if self._config.mixed_precision == "no":
            return contextlib.nullcontext()
        dtype = torch.float16 if self._config.mixed_precision == "fp16" else torch.bfloat16
        return torch.autocast(self._manager.device.type, dtype=dtype)

    def _update(self, step: int, losses: list[objective.Losses]) -> float:
        average_across_processes(self._parameters, self._materials.batches.num_processes)
        self._scaler.unscale_(self._optimizer)
        norm = clip_gradients(self._parameters, self._config.max_grad_norm)
        self._refuse_broken(step, losses, norm)
        rate = float(self._schedule.get_last_lr()[0])
        self._scaler.step(self._optimizer)
        self._scaler.update()
        with _quiet_schedule():
            self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._ema is not None:
            self._ema.step(self._parameters)
        return rate

    def _refuse_broken(self, step: int, losses: list[objective.Losses], norm: "Tensor") -> None:
        """Stop before an update that would break the weights; they are saved as they still are.

        Gradients that overflow under a loss scale are no reason: the scale is lowered and the update left out.
        Costs one wait for the device each step.
        """
        import torch

        total = torch.stack([loss.total.detach() for loss in losses]).mean()
        if self._materials.batches.num_processes > 1:
            from accelerate.utils import reduce

            total = reduce(total, reduction="mean")
        check = total if self._scaler.is_enabled() else total + 0 * norm
        if bool(check.isfinite()):
            return
        what = "gradients" if bool(total.isfinite()) else "loss"
        self._finish(step)
        raise TrainingError(
            f"The {what} of step {step + 1} became no finite number; the weights are as step {step} left them.",
            "The updates were too large for the number format, or the rate too high.",
            "Lower the learning rate, or train with mixed_precision bf16 or no.",
        )

    def _refuse_standing_still(self, step: int) -> None:
        """Stop a run none of whose biases and norms has changed by one bit: it would train nothing to its end."""
        now = (parameter for parameter in self._parameters if parameter.ndim == 1)
        moved = any(not before.equal(parameter) for before, parameter in zip(self._probes, now, strict=True))
        self._probes.clear()
        if not moved:
            raise TrainingError(
                f"The weights have not moved in {step - self._first_step} steps.",
                "The learning rate is too small for the weights' digits, or every update overflowed.",
                "Raise the learning rate, or train with mixed_precision bf16 or no.",
            )

    # Reports ---------------------------------------------------------------------------------------------------------

    def _remember(self, step: int, losses: list[objective.Losses], rate: float) -> None:
        """Keep a step's losses on the device: reading one waits for the GPU, so they are read an interval at a time."""
        import torch

        total = torch.stack([loss.total.detach() for loss in losses]).mean()
        instance = torch.stack([loss.instance.detach() for loss in losses]).mean()
        priors = [loss.prior.detach() for loss in losses if loss.prior is not None]
        self._unreported.append((step, total, instance, torch.stack(priors).mean() if priors else None, rate))

    def _report_losses(self) -> None:
        for step, *parts, rate in self._unreported:
            total, instance, prior = (None if part is None else self._averaged(part) for part in parts)
            assert total is not None
            assert instance is not None
            self._report(StepLoss(step, total, instance, prior, rate))
        self._unreported.clear()

    def _averaged(self, part: "Tensor") -> float:
        if self._materials.batches.num_processes > 1:
            from accelerate.utils import reduce

            part = reduce(part, reduction="mean")
        return float(part)

    # Due work --------------------------------------------------------------------------------------------------------

    def _due_work(self, step: int) -> None:
        config = self._config
        due = step % config.save_interval == 0 and step >= config.save_min_steps and step < self._materials.num_steps
        if due or self._controls.save_now.is_set():
            self._controls.save_now.clear()
            self._save(step)
            self._sample(step)
            self._report(PhaseProgress("training", step, self._materials.num_steps))
            # After the model: a run that is killed in between does the step's work again.
            self._keep_state(step)
        elif self._controls.sample_now.is_set() and step < self._materials.num_steps:
            self._controls.sample_now.clear()
            self._sample(step)
            self._report(PhaseProgress("training", step, self._materials.num_steps))
        every = config.checkpointing_steps
        late = every is None and time.monotonic() - self._kept_at_s > STATE_INTERVAL_S
        if (late or (every and step % every == 0)) and self._kept_step < step < self._materials.num_steps:
            self._keep_state(step)

    def _finish(self, step: int) -> None:
        self._report_losses()
        if step and self._saved_step != step:
            self._save(step)
        if step == self._materials.num_steps:
            self._sample(step)
            if self._is_main and self._run.checkpoints.is_dir():
                remove_folder(self._run.checkpoints)
        elif step and self._kept_step != step:
            self._keep_state(step)

    # The exact state -------------------------------------------------------------------------------------------------

    def _learner(self) -> Learner:
        models = {"unet": self._base.unet}
        if self._config.train_text_encoder:
            models["text_encoder"] = self._base.text_encoder
        return Learner(models, self._parameters, self._optimizer, self._scaler, self._ema)

    def _keep_state(self, step: int) -> None:
        self._report_losses()
        if self._is_main:
            self._report(PhaseProgress("saving"))
            keep = self._config.checkpoints_total_limit
            self._making_room(lambda: write_checkpoint(self._run, step, self._learner(), self._surroundings, keep))
            self._report(PhaseProgress("training", step, self._materials.num_steps))
        self._kept_step, self._kept_at_s = step, time.monotonic()

    def _making_room(self, write: Callable[[], None]) -> None:
        """Write, and on a full disk once more after all states but the newest are gone; raises what ended the last."""
        from safetensors import SafetensorError

        try:
            write()
        except (OSError, SafetensorError) as error:
            if not is_disk_full(error) or not prune(self._run, keep=1):
                raise
            self._report(Notice("The disk is full: all exact states but the newest were removed for room.", "warning"))
            write()

    def _restored(self, checkpoint: Checkpoint) -> int:
        """Take up a state, and return its step."""
        for sentence in refuse_other(checkpoint, self._surroundings):
            self._report(Notice(sentence, "warning"))
        restore(checkpoint, self._learner())
        with _quiet_schedule():
            for _ in range(checkpoint.step):
                self._schedule.step()
        self._report(Resumed(checkpoint.step))
        return checkpoint.step

    def _save(self, step: int) -> None:
        self._saved_step = step
        # A resumed run comes by steps whose models are there already, and would make the same ones again.
        # What was saved once and then made room for newer ones is not saved again either.
        if self._is_main and not (self._run.step_folder(step) / "args.json").exists():
            self._report(PhaseProgress("saving"))
            self._making_room(lambda: self._write_model(step))
            self._report(ModelSaved(step))
        if self._is_main and self._config.save_total_limit is not None:
            # Here too when nothing was saved: the first part may have been killed before, or amid, the removal.
            self._remove_older(step, self._config.save_total_limit)

    def _remove_older(self, step: int, limit: int) -> None:
        """Remove the weights of this run's older models: the newest `limit` and that of this step stay."""
        own = saved_steps(self._run, self._config)
        whole = [saved for saved in self._run.steps() if saved in own]
        for old in sorted(set(own) - {*whole[-limit:], step}):
            try:
                remove_weights(self._run, old)
            except RunFolderError as error:
                self._report(Notice(f"{error.what} {error.why} It stays on the disk.", "warning"))

    def _write_model(self, step: int) -> None:
        from dreambooth.models.base import write_model

        base = self._base
        with self._averaged_weights(), new_folder(self._run.step_folder(step)) as folder:
            write_model(
                folder,
                unet=base.unet,
                text_encoder=base.text_encoder,
                vae=base.vae,
                tokenizer=base.tokenizer,
                scheduler_config=base.noise_scheduler_config,
                dtype=_save_dtype(self._config),
                card=dataclasses.replace(base.card, step=step),
            )
            (folder / "args.json").write_text(json.dumps(self._config.to_json(), indent=2) + "\n", "utf-8")
            self._take_over_samples(step, folder)

    def _take_over_samples(self, step: int, folder: Path) -> None:
        """Move pictures that were asked for at this step before its model was saved into the folder to come."""
        early = self._run.step_folder(step)
        if early.exists():
            shutil.move(early / "samples", folder / "samples")
            early.rmdir()

    def _sample(self, step: int) -> None:
        """Make the sample pictures of a step, the same seeds every time, in `<step>/samples`."""
        config = self._config
        prompts = [line for line in (config.save_sample_prompt or "").splitlines() if line.strip()]
        folder = self._run.step_folder(step) / "samples"
        if not prompts or not self._is_main or folder.exists():
            return
        from dreambooth.generation import Pipe, generate_images, save_picture

        base, total = self._base, len(prompts) * config.n_save_sample
        self._manager.place(base.vae)
        name = f"{self._run.name}/{step}"
        pipe = Pipe(base.unet, base.text_encoder, base.vae, base.tokenizer, base.noise_scheduler_config, name)
        names: list[str] = []
        with self._averaged_weights(), self._on_device(base.text_encoder), new_folder(folder) as temporary:
            for prompt in prompts:
                request = GenerationConfig(
                    prompt=prompt,
                    negative_prompt=config.save_sample_negative_prompt or "",
                    num_images_per_prompt=config.n_save_sample,
                    num_inference_steps=config.save_infer_steps,
                    guidance_scale=config.save_guidance_scale,
                    height=config.resolution,
                    width=config.resolution,
                    seed=self._materials.seed,
                )
                for picture in generate_images(
                    pipe, request, autocast_dtype=self._manager.autocast_dtype,
                    on_step=lambda done, of: self._report(PhaseProgress("samples", len(names), total)),
                ):  # fmt: skip
                    save_picture(picture, temporary / f"{len(names)}.png")
                    names.append(f"{len(names)}.png")
        if not config.not_cache_latents:
            self._manager.park(base.vae)
        self._report(SamplesMade(step, tuple(names)))

    @contextlib.contextmanager
    def _on_device(self, text_encoder: Any) -> Iterator[None]:
        """Have the text encoder on the device, where a frozen one is not kept during training."""
        self._manager.place(text_encoder)
        yield
        if not self._text_encoder_learns:
            self._manager.park(text_encoder)

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Put the moving average in the weights' place for a while, where there is one."""
        if self._ema is None:
            yield
            return
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        try:
            yield
        finally:
            self._ema.restore(self._parameters)


@contextlib.contextmanager
def _quiet_schedule() -> Iterator[None]:
    """Silence torch's warning about order when the scaler has skipped an overflowing update, which is its job."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step\\(\\)` before", UserWarning)
        yield


def _save_dtype(config: TrainingConfig) -> "torch.dtype":
    import torch

    return {"fp16": torch.float16, "fp32": torch.float32, "bf16": torch.bfloat16}[config.save_precision]
