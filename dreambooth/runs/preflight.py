"""What a run will take, measured: real steps, samples and saves with its settings, discarded afterwards.

The steps are those of the one training loop, in a temporary run folder. Memory is the peak of all of it: on the CPU of
the process over its size before, and on a GPU of what torch's allocator reserved.
"""

import contextlib
import dataclasses
import datetime
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config.counts import num_class_images_of, num_steps_of
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import num_photos_in
from dreambooth.device.hardware import freed_memory_kept, gb
from dreambooth.durable import free_bytes, scratch_folder
from dreambooth.errors import TrainingError
from dreambooth.events import Controls, Event, ModelSaved, PhaseProgress
from dreambooth.forecast.cards import cards_sentence
from dreambooth.forecast.constants import DeviceKind
from dreambooth.forecast.counts import counts_of_base, state_interval_s
from dreambooth.forecast.disk import DiskNeed, disk_need
from dreambooth.forecast.memory import MemoryNeed, memory_need
from dreambooth.forecast.shape import read_shape
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.smaller import unexpected_end
from dreambooth.training.materials import RunContext

if TYPE_CHECKING:
    from dreambooth.training.materials import Materials

# The first step creates the optimizer's states and is slower; graphs and compiled code need one more.
STEPS = 3
INFER_STEPS = 2
WATCH_S = 0.2


@dataclass(frozen=True)
class Preflight:
    """What was measured of a run before its start, and what follows for the whole run."""

    peak_bytes: int
    planned: MemoryNeed
    seconds_per_step: float
    seconds_per_sampling: float
    seconds_per_scoring: float
    seconds_per_model: float
    seconds_of_last_model: float
    seconds_per_state: float
    seconds_before: float
    num_steps: int
    disk: DiskNeed
    free_disk_bytes: int
    cards: str = ""

    @property
    def seconds(self) -> float:
        """Return how long the run will take, including its preparation, samples and saves."""
        saves = self.disk.num_saves
        training_s = self.num_steps * self.seconds_per_step
        # An exact state with every model but the last, and those between, by time.
        states = saves - 1 + int(training_s / state_interval_s(self.disk.state_bytes))
        return (
            self.seconds_before
            + training_s
            + (saves + 1) * (self.seconds_per_sampling + self.seconds_per_scoring)
            + (saves - 1) * self.seconds_per_model
            + self.seconds_of_last_model
            + states * self.seconds_per_state
        )

    def finish(self, start: datetime.datetime) -> datetime.datetime:
        """Return when a run that starts then will be finished."""
        return start + datetime.timedelta(seconds=self.seconds)

    def lines(self, start: datetime.datetime) -> list[str]:
        """Return the findings as sentences, for a run that starts then."""
        disk, plan = self.disk, self.planned
        parts = {
            "weights": plan.weights, "gradients": plan.gradients, "optimizer": plan.optimizer,
            "activations": plan.activations, "other": plan.other,
        }  # fmt: skip
        return [
            f"Memory: {gb(self.peak_bytes)} GiB at most, measured; planned were {gb(plan.peak_bytes)} "
            f"({', '.join(f'{name} {gb(size)}' for name, size in parts.items())}; at most in: {plan.phase}).",
            f"Time: {self.seconds_per_step:.2f} s a step, {self.seconds_per_sampling:.1f} s for the samples of a save, "
            f"{self.seconds_per_scoring:.1f} s for its scores, {self.seconds_per_model:.1f} s for a model "
            f"({self.seconds_of_last_model:.1f} s for the last one, whose end is waited for), "
            f"{self.seconds_per_state:.1f} s for an exact state.",
            f"Disk: {gb(disk.total_bytes)} GiB at most, {gb(self.free_disk_bytes)} are free "
            f"(saved steps {disk.num_models} x {gb(disk.model_bytes)}, exact states {disk.num_states} x "
            f"{gb(disk.state_bytes)}).",
            f"{self.num_steps} steps take {datetime.timedelta(seconds=round(self.seconds))} with all that; "
            f"started now, they are done at {self.finish(start):%H:%M on %Y-%m-%d}.",
            *([self.cards] if self.cards else []),
        ]


def preflight(
    config: TrainingConfig,
    *,
    workspace: Workspace,
    manager: ModelManager,
    token: str | None,
    report: Callable[[Event], None] = lambda event: None,
    controls: Controls | None = None,
) -> Preflight | None:
    """Try these settings on the device, and return what they take; None if stopped.

    Of several processes only the first measures: None in the others, which have nothing to save.

    Raises DreamBoothError for everything that would also end the run. The caller waits meanwhile: a base is loaded, a
    batch of class images generated if some are missing, some crops encoded, then a few steps, samples and saves.
    """
    from dreambooth.training.preparation import prepare
    from dreambooth.training.trainer import Trainer

    config = dataclasses.replace(config.checked(), seed=config.seed or 0)
    kind = _kind(manager)
    clock, inner = _Clock(report), Controls()
    with (
        manager.lease("training", wait=True),
        scratch_folder(workspace.data_dir / "preflight") as folder,
        _passed_on(controls, inner),
        _explaining_too_large(config, workspace),
    ):
        memory = PeakMemory(kind)
        run = RunFolder(folder)
        short = shortened(config, run)
        # The base's own samples would only take time.
        (run.step_folder(0) / "samples").mkdir(parents=True)
        context = RunContext(run, workspace, manager, token, inner, clock)
        materials = prepare(short, context)
        if materials is None:
            return None
        clock.stop_when_kept = inner
        with freed_memory_kept(kind):
            Trainer(short, materials, context).run()
        if (controls is not None and controls.stop.is_set()) or not clock.kept_s:
            return None
        steps = num_steps_of(config, _num_photos(config), materials.batches.num_processes)
        shape = read_shape(config.pretrained_model_name_or_path, workspace.models_dir)
        return Preflight(
            peak_bytes=memory.read(),
            planned=memory_need(config, shape, kind, steps),
            seconds_per_step=clock.step_s(),
            seconds_per_sampling=clock.pictures_s("samples", config.save_infer_steps),
            seconds_per_scoring=clock.scoring_s(config.save_infer_steps),
            seconds_per_model=clock.copied_s or clock.saved_s,
            seconds_of_last_model=clock.saved_s,
            seconds_per_state=clock.kept_s,
            seconds_before=clock.before_s(config, short),
            num_steps=steps,
            disk=_disk(config, run, materials, steps),
            free_disk_bytes=free_bytes(workspace.data_dir),
            cards=cards_sentence(shape, config.method),
        )


def shortened(config: TrainingConfig, run: RunFolder) -> TrainingConfig:
    """Return settings that do once, in little time and the same memory, what the run does many times."""
    concept = config.concepts[0]
    num_class_images = min(config.num_class_images, config.sample_batch_size)
    if config.with_prior_preservation and num_photos_in([concept.class_data_dir]) < config.num_class_images:
        # With few denoising steps they are not class images worth keeping.
        concept = dataclasses.replace(concept, class_data_dir=str(run.path / "class"))
    return dataclasses.replace(
        config,
        concepts=(concept,),
        output_dir=str(run.path),
        max_train_steps=STEPS + 1,  # one more than is made: the end of a run keeps no exact state
        save_interval=STEPS,
        save_min_steps=0,
        save_total_limit=None,
        checkpointing_steps=0,
        save_infer_steps=INFER_STEPS,
        num_class_images=num_class_images,
        num_crop_variants=1,
        text_encoder_stop_step=None,
        log_interval=1,
    )


def _kind(manager: ModelManager) -> DeviceKind:
    kinds: dict[str, DeviceKind] = {"cuda": "cuda", "mps": "mps"}
    return kinds.get(manager.device.type, "cpu")


def _num_photos(config: TrainingConfig) -> int:
    return num_photos_in(concept.instance_data_dir for concept in config.concepts)


def _disk(config: TrainingConfig, run: RunFolder, materials: "Materials", steps: int) -> DiskNeed:
    """Return what the run will write, from the sizes of the trial's model and state."""
    base = materials.base
    need = disk_need(config, counts_of_base(base), steps)
    return dataclasses.replace(
        need,
        model_bytes=_size(run.step_folder(STEPS), without="samples"),
        state_bytes=_size(run.checkpoints / str(STEPS)),
    )


def _size(folder: Path, without: str = "") -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.parent.name != without)


@contextlib.contextmanager
def _passed_on(controls: Controls | None, inner: Controls) -> Iterator[None]:
    """Pass a stop request on to the trial, which also stops by itself and must not set the caller's flag."""
    done = threading.Event()

    def watch(outer: Controls) -> None:
        while not done.is_set():
            if outer.stop.wait(WATCH_S):
                inner.stop.set()
                return

    if controls is not None:
        threading.Thread(target=watch, args=(controls,), daemon=True).start()
    try:
        yield
    finally:
        done.set()


@contextlib.contextmanager
def _explaining_too_large(config: TrainingConfig, workspace: Workspace) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        end = unexpected_end(error, config, workspace.models_dir)
        raise TrainingError(end.what, end.why, end.todo) from error


class PeakMemory:
    """The peak memory from now on: on CUDA what its allocator reserved, else the growth of the process."""

    def __init__(self, kind: DeviceKind) -> None:
        self._on_cuda = kind == "cuda"
        if self._on_cuda:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        import psutil

        self._before = psutil.Process().memory_info().rss
        with contextlib.suppress(OSError):  # Linux alone can count anew; elsewhere an earlier peak may hide this one
            Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int:
        """Return the peak in bytes."""
        if self._on_cuda:
            import torch

            reserved: int = torch.cuda.max_memory_reserved()
            return reserved
        rise: int = _resident_peak() - self._before
        return max(rise, 0)


def _resident_peak() -> int:
    import psutil

    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        memory = psutil.Process().memory_info()
        peak: int = getattr(memory, "peak_wset", 0) or memory.rss
        return peak


class _Clock:
    """Times what the trial reports, passes it on, and ends the trial once its exact state is written."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self._report = report
        self._stamps: list[tuple[float, Event]] = []
        self._phase, self._phase_began_s = "", 0.0
        self._model_began_s = 0.0
        self.kept_s = self.copied_s = self.saved_s = 0.0
        self.stop_when_kept: Controls | None = None

    def __call__(self, event: Event) -> None:
        now_s = time.perf_counter()
        self._stamps.append((now_s, event))
        if isinstance(event, ModelSaved):
            self.saved_s = now_s - (self._model_began_s or self._phase_began_s)
        elif isinstance(event, PhaseProgress) and event.phase != self._phase:
            self._phase_ended(now_s - self._phase_began_s)
            self._phase, self._phase_began_s = event.phase, now_s
            if event.phase == "copying":
                self._model_began_s = now_s
        self._report(event)

    def _phase_ended(self, seconds: float) -> None:
        if self._phase == "copying":
            self.copied_s = seconds
        # The state is saved first, before the model.
        if self._phase == "saving" and not self.kept_s:
            self.kept_s = seconds
            if self.stop_when_kept is not None:
                self.stop_when_kept.stop.set()

    def _times(self, phase: str) -> list[float]:
        return [when for when, event in self._stamps if isinstance(event, PhaseProgress) and event.phase == phase]

    def _span_s(self, phase: str) -> float:
        """Return the time from the phase's first report to the first one of another phase after it."""
        times = self._times(phase)
        if not times:
            return 0.0
        after = [when for when, event in self._stamps if when > times[-1] and not _is_of(event, phase)]
        return (after[0] if after else times[-1]) - times[0]

    def step_s(self) -> float:
        """Return the seconds of the last step, because the first is slower than all others."""
        done: dict[int, float] = {}
        for when, event in self._stamps:
            if isinstance(event, PhaseProgress) and event.phase == "training":
                done.setdefault(event.done, when)
        return done[STEPS] - done[STEPS - 1]

    def pictures_s(self, phase: str, num_infer_steps: int) -> float:
        """Return how long the images of a phase would take with this many denoising steps."""
        times = self._times(phase)
        if len(times) <= INFER_STEPS:
            return self._span_s(phase)
        denoising_s = min(after - before for before, after in itertools.pairwise(times[1:]))
        return self._span_s(phase) + (num_infer_steps - INFER_STEPS) * denoising_s * max(
            1, (len(times) - 1) // INFER_STEPS
        )

    def scoring_s(self, num_infer_steps: int) -> float:
        """Return how long the probe images of a save, and their scores, would take with this many denoising steps."""
        times = self._times("scores")
        # The first half is the base's, and includes loading the encoders.
        times = times[len(times) // 2 :]
        if not times:
            return 0.0
        end_s = next((when for when, _ in self._stamps if when > times[-1]), times[-1])
        # Each batch, of one image or several, reports each of its steps.
        pairs = zip(times[::INFER_STEPS], times[1::INFER_STEPS], strict=False)
        denoising_s = sum(after - before for before, after in pairs)
        return end_s - times[0] + (num_infer_steps - INFER_STEPS) * denoising_s

    def before_s(self, config: TrainingConfig, short: TrainingConfig) -> float:
        """Return how long the run's preparation will take: loading, class images, encoding crops."""
        class_s = self.pictures_s("class images", config.save_infer_steps) if config.with_prior_preservation else 0.0
        missing = sum(
            max(config.num_class_images - num_photos_in([concept.class_data_dir]), 0) for concept in config.concepts
        )
        num_encoded = max(len(self._times("latents")) - 2, 1)
        class_crops = num_class_images_of(config) * (2 if config.hflip else 1)
        crops = _num_photos(config) * config.num_crop_variants + class_crops
        crops_s = 0.0 if config.not_cache_latents else self._span_s("latents") / num_encoded * crops
        return self._span_s("loading") + class_s * missing / short.num_class_images + crops_s


def _is_of(event: Event, phase: str) -> bool:
    return isinstance(event, PhaseProgress) and event.phase == phase
