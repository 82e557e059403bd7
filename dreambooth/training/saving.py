"""What a run writes during the training: models, exact states and samples, each completely or not at all."""

import contextlib
import copy
import dataclasses
import functools
import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import describe_cpu, gb
from dreambooth.device.precision import dtype_of
from dreambooth.durable import is_disk_full, new_folder, remove_folder, sync_all
from dreambooth.errors import RunFolderError
from dreambooth.events import ModelSaved, Notice, PhaseProgress, SamplesMade
from dreambooth.forecast.counts import counts_of_base, state_interval_s
from dreambooth.forecast.counts import state_bytes as planned_state_bytes
from dreambooth.forecast.memory import SAMPLES_AT_A_TIME
from dreambooth.records.saved_weights import saved_steps
from dreambooth.records.storage import remove_weights
from dreambooth.training.checkpoint import (
    Learner,
    has_room_for_state,
    join_gather,
    prune,
    state_bytes,
    write_checkpoint,
)
from dreambooth.training.extending import read_extensions
from dreambooth.training.length import RunLength
from dreambooth.training.materials import Materials, RunContext
from dreambooth.training.method import StepWeights
from dreambooth.training.model_writer import ModelWriter, copied, copy_bytes, weights_of
from dreambooth.training.run_identity import RunIdentity
from dreambooth.training.scored_saves import SavesScorer
from dreambooth.training.sharding import from_main_process

# Memory of the machine left free when weights are copied to be written.
HOST_MARGIN_BYTES = 1 << 30


class RunSaver:
    """Writes what is due after a step, and remembers which step was saved last.

    With several processes, the first one writes; the others make the same calls without writing.
    """

    def __init__(
        self,
        config: TrainingConfig,
        materials: Materials,
        context: RunContext,
        learner: Learner,
        identity: RunIdentity,
        length: RunLength,
        last_state_step: int = 0,
    ) -> None:
        self._config, self._materials, self._run = config, materials, context.run
        self._manager, self._report, self._warn = context.manager, context.report, context.warn
        self._learner, self._identity, self._length = learner, identity, length
        self._base, self._method = materials.base, materials.method
        self._is_main, self._is_sharded = materials.batches.rank == 0, learner.shards is not None
        # For generation, whose parts come to the device one after the other.
        self._shown = self._base if self._is_sharded else dataclasses.replace(self._base, bring=self._bring)
        self._scorer = SavesScorer(config, context.run, self._shown, context.manager, context.report)
        self._writer, self._has_waited = ModelWriter(), False
        # With its own tokenizers: samples may be requested while a model is written.
        own = {name: copy.deepcopy(getattr(self._base, name)) for name in self._base.family.layout.tokenizers}
        self._base_to_write = dataclasses.replace(self._base, **own)
        if self._is_sharded and self._scorer.is_on:
            after = "`python -m dreambooth score` does that afterwards."
            context.report(Notice(f"Steps are not scored while several processes share the weights: {after}"))
        self._saved_step, self._last_state_step = 0, last_state_step
        self._has_records = context.run.config_path.exists()
        self._state_saved_at_s = time.monotonic()
        # By its size: the optimizer has no moments yet, and is not asked for them.
        self._state_interval_s = state_interval_s(planned_state_bytes(config, counts_of_base(self._base)))

    # The exact state -------------------------------------------------------------------------------------------------

    def state_is_due(self, step: int) -> bool:
        """Return whether an exact state is due: every so many steps, else by time, depending on its size."""
        every = self._config.checkpointing_steps
        late = every is None and time.monotonic() - self._state_saved_at_s > self._state_interval_s
        return bool(late or (every and step % every == 0)) and self._last_state_step < step

    def save_state(self, step: int) -> None:
        """Write the exact state of a step, unless it exists; waits for a model that is being written."""
        if self._last_state_step == step:
            return
        self.settle()
        if self._is_main:
            self._refuse_lost_folder()
            self._report(PhaseProgress("saving"))
            keep = self._config.checkpoints_total_limit
            self._making_room(lambda: write_checkpoint(self._run, step, self._learner, self._identity, keep))
            self._report(PhaseProgress("training", step, self._length.num_steps))
        elif self._is_sharded:
            join_gather(self._learner)
        self._last_state_step, self._state_saved_at_s = step, time.monotonic()

    def end_states(self, step: int) -> None:
        """Keep the last exact state of a finished run if there is room, for further training, and no other."""
        wanted = not self._config.drop_final_state
        is_kept = wanted and has_room_for_state(self._run.path, state_bytes(self._learner))
        if self._is_sharded:
            is_kept = from_main_process(is_kept)
        if is_kept:
            try:
                self.save_state(step)
            except OSError as error:
                # The run is done and its model saved: a disk that was filled by others meanwhile does not change that.
                is_kept = not is_disk_full(error)
                if is_kept:
                    raise
        if not self._is_main:
            return
        if is_kept:
            prune(self._run, keep=1)
        elif self._run.checkpoints.is_dir():
            remove_folder(self._run.checkpoints)
        if wanted and not is_kept:
            text = (
                "There is no disk space for its exact state: to train more steps, start a new run from its last step."
            )
            self._warn(text)

    def _refuse_lost_folder(self) -> None:
        """Raise RunFolderError if the run's folder was removed: a save would create a folder that is no run."""
        if self._has_records and not self._run.config_path.exists():
            raise RunFolderError(
                f'The folder "{self._run.path}" is gone.', "It, or its disk, was removed while the run was training.",
                "Start a new run.",
            )  # fmt: skip

    def _making_room(self, write: Callable[[], None], outcome: Callable[[], None] | None = None) -> None:
        """Write, and on a full disk once more after removing all states but the newest; raises the last error.

        `outcome` is that of a first attempt that was already made.
        """
        from safetensors import SafetensorError

        try:
            (outcome or write)()
        except (OSError, SafetensorError) as error:
            # Processes with sharded weights have contributed their shards, and do not know of a second try.
            if not is_disk_full(error) or self._is_sharded or not prune(self._run, keep=1):
                raise
            self._warn("The disk is full: all exact states except the newest were removed.")
            write()

    # Models ----------------------------------------------------------------------------------------------------------

    def save(self, step: int, *, is_last: bool = False) -> None:
        """Have the model of a step written as a step folder, unless it exists; it is reported when complete.

        The training continues meanwhile, except after the last step, when no copy of the weights is made.
        """
        if self._saved_step == step:
            return
        self.settle()
        if self._is_main:
            self._refuse_lost_folder()
        self._saved_step = step
        # A resumed run passes steps whose models exist, and would make the same ones again. What was saved once and
        # then removed for newer ones is not saved again either.
        is_there = self._is_main and (self._run.step_folder(step) / "args.json").exists()
        if is_there:
            # Here too: the first part may have been killed before or during the removal.
            self._remove_older(step)
        if not self._takes_part(not is_there):
            return
        weights = None if is_last and not self._is_sharded else self._copied_weights()
        if not self._is_main:
            return
        write = functools.partial(self._write_model, step, weights)
        if weights is not None:
            self._writer.start(step, write)
            if is_last:
                self.settle()
            return
        self._report(PhaseProgress("saving"))
        self._making_room(write)
        self._report_saved(step)

    def settle(self, *, wait: bool = True) -> None:
        """Report the model that was being written, once it is complete; raises the error that prevented it."""
        current = self._writer.current
        if current is None or not (wait or current.outcome.done()):
            return
        if not current.outcome.done():
            self._report(PhaseProgress("saving"))
        self._writer.current = None
        self._making_room(current.write, current.outcome.result)
        self._report_saved(current.step)

    def close(self) -> None:
        """Finish what is being written, however the training ended, and report it if it is complete."""
        current = self._writer.current
        self._writer.close()
        if current is not None and current.outcome.exception() is None:
            self.settle()

    def _report_saved(self, step: int) -> None:
        self._report(ModelSaved(step))
        self._remove_older(step)
        self._scorer.write()

    def _copied_weights(self) -> StepWeights | None:
        """Return a copy of the weights to be written while they change; None if there is too little memory."""
        dtype = dtype_of(self._config.save_precision)
        weights, learning = weights_of(self._method, self._base, self._learner), self._learner.weights
        if self._is_sharded:
            self._report(PhaseProgress("copying"))
            return copied(weights, learning, dtype, is_sharded=True, is_kept=self._is_main)
        needed, free = copy_bytes(weights, learning, dtype), describe_cpu().free_bytes
        if needed + HOST_MARGIN_BYTES <= free:
            self._report(PhaseProgress("copying"))
            return copied(weights, learning, dtype)
        if not self._has_waited:
            text = f"A copy of the weights takes {gb(needed)} GiB, and {gb(free)} GiB of memory are free"
            self._warn(f"{text}: the training pauses while models are written.")
        self._has_waited = True
        return None

    def _remove_older(self, step: int) -> None:
        """Remove the weights of this run's older models beyond its limit; those of this step stay."""
        limit = self._config.save_total_limit
        if limit is None:
            return
        own = saved_steps(self._run, self._config)
        whole = [saved for saved in self._run.steps() if saved in own]
        for old in sorted(set(own) - {*whole[-limit:], step}):
            try:
                remove_weights(self._run, old)
            except RunFolderError as error:
                self._warn(f"{error.what} {error.why} It stays on the disk.")

    def _write_model(self, step: int, weights: StepWeights | None) -> None:
        """Write these weights, or the models' own, as a step folder; reads nothing else that a training changes."""
        from dreambooth.models.saved_hashes import write_hashes

        base = self._base_to_write
        weights = weights or weights_of(self._method, base, self._learner)
        extensions = [str(one) for one in read_extensions(self._run.extensions_path) if one.start < step]
        with new_folder(self._run.step_folder(step)) as folder:
            card = dataclasses.replace(base.card, step=step, extensions=extensions)
            (folder / "args.json").write_text(json.dumps(self._config.to_json(), indent=2) + "\n", "utf-8")
            dtype = dtype_of(self._config.save_precision)
            self._method.write_step(folder, base, weights, dtype, card, f"{self._run.name}-{step}")
            # Images are away from their place only for a moment.
            sync_all(folder)
            write_hashes(self._run, step, folder)
            self._take_over_samples(step, folder)

    def _take_over_samples(self, step: int, folder: Path) -> None:
        """Move the images of this step, which are made before its model is written, into its new folder.

        File browsers and notebooks may have put their own files beside them: these are moved too.
        """
        early = self._run.step_folder(step)
        if not early.exists():
            return
        with contextlib.ExitStack() as undone:
            for entry in sorted(early.iterdir()):
                entry.rename(folder / entry.name)
                undone.callback((folder / entry.name).rename, entry)
            early.rmdir()
            undone.pop_all()

    # Sample pictures -------------------------------------------------------------------------------------------------

    def sample(self, step: int) -> None:
        """Make the samples of a step, with the same seeds every time, in `<step>/samples`."""
        config = self._config
        prompts = config.sample_prompts
        folder = self._run.step_folder(step) / "samples"
        if not prompts or not self._takes_part(not folder.exists()):
            return
        from dreambooth.pictures.generation import generate_images, save_picture

        base = dataclasses.replace(self._shown, name=f"{self._run.name}/{step}")
        total = config.num_sample_pictures
        names: list[str] = []
        with averaged_weights(self._learner), self._on_device(), self._new_pictures(folder) as temporary:
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
                    base, request, autocast_dtype=self._manager.autocast_dtype,
                    # One at a time if memory is so short that gradients are not kept.
                    batch_size=1 if config.update_in_backward else SAMPLES_AT_A_TIME,
                    on_step=lambda done, of: self._report(PhaseProgress("samples", len(names), total)),
                ):  # fmt: skip
                    save_picture(picture, temporary / f"{len(names)}.png")
                    names.append(f"{len(names)}.png")
        self._report(SamplesMade(step, tuple(names)))

    def score(self, step: int) -> None:
        """Make the probe images of a saved step, or of the base, and score it; not with sharded weights."""
        if self._is_main and self._scorer.is_on and not self._is_sharded:
            with averaged_weights(self._learner), self._on_device():
                self._scorer.make(step)
            self._scorer.score()

    def is_past_best(self) -> bool:
        """Return whether none of the newest saves improved on an earlier one."""
        return self._is_main and self._scorer.is_past_best()

    def recommend(self) -> None:
        """Report which saved step is recommended."""
        if self._is_main and not self._is_sharded:
            self._scorer.report_recommendation()

    def _takes_part(self, is_due: bool) -> bool:
        """Return whether this process has to work: all do if weights are sharded, else only the first."""
        return from_main_process(is_due) if self._is_sharded else self._is_main and is_due

    @contextlib.contextmanager
    def _new_pictures(self, folder: Path) -> Iterator[Path]:
        """Yield a folder for images that will appear in the given folder; those of other processes are discarded."""
        if self._is_main:
            with new_folder(folder) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory() as unwanted:
            yield Path(unwanted)

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Move VAE and text encoders to the device for the block, and restore the models' places afterwards."""
        if not self._is_sharded:
            yield
            self._manager.only(self._base, {"unet", *self._staying()})
            return
        # Sharded parts stay where they are, and the rest is there at once.
        beside = [self._base.vae, *([] if len(self._learner.weights) > 1 else self._base.text_encoders())]
        for module in beside:
            self._manager.place(module)
        yield
        for module in beside[self._config.not_cache_latents :]:
            self._manager.park(module)

    def _bring(self, parts: Collection[str]) -> None:
        """Have these parts on the device, in addition to those that stay on it."""
        self._manager.only(self._base, {*parts, *self._staying()})

    def _staying(self) -> set[str]:
        """Return the parts that stay on the device during generation."""
        staying = set() if self._config.parks_unet else {"unet"}
        if not self._materials.conditions.is_frozen:
            staying |= {*self._base.family.layout.text_encoders}
        return staying | ({"vae"} if self._config.not_cache_latents else set())


@contextlib.contextmanager
def averaged_weights(learner: Learner) -> Iterator[None]:
    """Replace the weights by their moving average during the block, if there is one."""
    if learner.ema is None:
        yield
        return
    learner.ema.store(learner.parameters)
    learner.ema.copy_to(learner.parameters)
    try:
        yield
    finally:
        learner.ema.restore(learner.parameters)
