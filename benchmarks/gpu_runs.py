"""Short trainings on one device, each measured: memory by phase, seconds a step, and where the time of a step goes."""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.events import Event, PhaseProgress
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.shape import read_shape
from dreambooth.models.base import Base, load_base
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.training import preparation
from dreambooth.training.materials import RunContext
from dreambooth.training.trainer import Trainer

GIB = 2**30
NUM_CLASS_IMAGES = 4
NUM_WARM_STEPS = 5


@dataclass(frozen=True)
class Ground:
    """What all runs of a benchmark share: the base, its folder, pictures, and where they write."""

    base: Base
    base_dir: Path
    photos: Path
    class_images: Path
    work: Path
    device: str
    side_px: int


@dataclass
class Measured:
    """One short training. Bytes are those of torch's allocator; `context_bytes` what the process holds beside it."""

    name: str
    settings: dict[str, Any]
    step_s: float = 0.0
    reserved_bytes: int = 0
    allocated_bytes: int = 0
    context_bytes: int = 0
    predicted_bytes: int = 0
    phase_bytes: dict[str, int] = field(default_factory=dict)
    failed: str = ""

    def row(self) -> str:
        """Return the line of a Markdown table."""
        if self.failed:
            return f"| {self.name} | {self.failed} | | | | |"
        reserved, allocated, predicted, context = (
            f"{number / GIB:.2f}"
            for number in (self.reserved_bytes, self.allocated_bytes, self.predicted_bytes, self.context_bytes)
        )
        return f"| {self.name} | {reserved} | {allocated} | {predicted} | {context} | {1 / self.step_s:.2f} |"


HEAD = (
    "| plan | GiB reserved | allocated | predicted | context beside | steps/s |\n| --- | --- | --- | --- | --- | --- |"
)


class Enough(Exception):
    """Ends a run that was started to be measured."""


def write_pictures(folder: Path, num_pictures: int, side_px: int) -> Path:
    """Write that many different square pictures of colored gradients into the folder."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_pictures):
        ramp = Image.linear_gradient("L").resize((side_px, side_px)).rotate(90 * (number % 4))
        channels = [ramp, ramp.rotate(180), Image.new("L", ramp.size, 40 * number % 256)]
        Image.merge("RGB", channels).save(folder / f"{number}.png")
    return folder


def ground(base_dir: Path, work: Path, device: str, side_px: int) -> Ground:
    """Load the base once, and make the pictures."""
    photos = write_pictures(work / "photos", 5, side_px + 64)
    classes = write_pictures(work / "class", NUM_CLASS_IMAGES, side_px)
    return Ground(load_base(str(base_dir)), base_dir, photos, classes, work, device, side_px)


def settings_of(here: Ground, num_steps: int, **changes: Any) -> TrainingConfig:
    """Return the settings of a run: text encoder and prior preservation on, batch 1, at the base's own size."""
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(here.base_dir),
        "concepts": (Concept("photo of zwx dog", str(here.photos), "photo of dog", str(here.class_images)),),
        "resolution": here.side_px, "train_batch_size": 1, "max_train_steps": num_steps, "learning_rate": 1e-6,
        "seed": 7, "with_prior_preservation": True, "num_class_images": NUM_CLASS_IMAGES, "train_text_encoder": True,
        "num_crop_variants": 2, "log_interval": 10, "pad_tokens": True, "save_infer_steps": 8,
    }  # fmt: skip
    return TrainingConfig(**(values | changes)).checked()


class Watch:
    """Takes a run's reports: when each step ended, and the most memory of each phase."""

    def __init__(self, num_steps: int, to_the_end: bool) -> None:
        self._num_steps, self._to_the_end = num_steps, to_the_end
        self._phase = ""
        self.step_ends_s: list[float] = []
        self.phase_bytes: dict[str, int] = {}
        self.reserved_bytes = 0

    def __call__(self, event: Event) -> None:
        """Note the event; raises Enough after the last step of a run that is not to be finished."""
        if not isinstance(event, PhaseProgress):
            return
        if torch.cuda.is_available():
            most = max(self.phase_bytes.get(self._phase, 0), torch.cuda.max_memory_allocated())
            self.phase_bytes[self._phase] = most
            self.reserved_bytes = max(self.reserved_bytes, torch.cuda.max_memory_reserved())
        if event.phase != self._phase:
            self._phase = event.phase
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        if event.phase == "training" and event.done:
            if not self.step_ends_s or event.done > len(self.step_ends_s):
                self.step_ends_s.append(time.perf_counter())
            if event.done == self._num_steps and not self._to_the_end:
                raise Enough

    @property
    def step_s(self) -> float:
        """Return the median of the seconds between two steps, the first ones left out."""
        ends = self.step_ends_s[min(NUM_WARM_STEPS, len(self.step_ends_s) - 2) :]
        return statistics.median(later - earlier for earlier, later in zip(ends, ends[1:], strict=False))


@contextmanager
def prepared(here: Ground, config: TrainingConfig, watch: Watch, tweak: Callable[[Base], None]) -> Iterator[Trainer]:
    """Yield a trainer over a copy of the base, and free all of it afterwards."""
    own = copy.deepcopy(here.base)
    manager = ModelManager(here.device)
    original = preparation.load

    def loaded(*names: Any, copied: Base = own, **options: Any) -> Base:
        return copied

    preparation.load = loaded
    run = RunFolder(here.work / "runs" / str(time.time_ns()))
    context = RunContext(run, Workspace(here.work / "data"), manager, report=watch)
    try:
        materials = preparation.prepare(config, context)
    finally:
        preparation.load = original
    assert materials is not None
    tweak(own)
    trainer = Trainer(config, materials, context)
    try:
        yield trainer
    finally:
        # The caller's name for it stays until it has returned: what is large goes now.
        trainer.__dict__.clear()
        del trainer, materials, own, loaded
        torch._dynamo.reset()
        collect()


def collect() -> None:
    """Free what nothing uses any more, on the device too, and forget the peaks."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measured(
    here: Ground,
    name: str,
    num_steps: int = 20,
    to_the_end: bool = False,
    tweak: Callable[[Base], None] = lambda base: None,
    **changes: Any,
) -> Measured:
    """Train a few steps under these settings; `to_the_end` also samples and saves, and counts their memory."""
    collect()
    config = settings_of(here, num_steps, **changes)
    watch = Watch(num_steps, to_the_end)
    result = Measured(name, changes)
    kind: Any = "cuda" if here.device == "cuda" else "cpu"
    result.predicted_bytes = memory_need(config, read_shape(str(here.base_dir)), kind).peak_bytes
    try:
        with prepared(here, config, watch, tweak) as trainer:
            with suppress(Enough):
                trainer.run()
            if torch.cuda.is_available():
                free, total = torch.cuda.mem_get_info()
                result.context_bytes = total - free - torch.cuda.memory_reserved()
    except torch.OutOfMemoryError as error:
        result.failed = str(error).split(". ")[0]
        return result
    result.step_s = watch.step_s
    result.phase_bytes = watch.phase_bytes
    result.allocated_bytes = max(watch.phase_bytes.values(), default=0)
    result.reserved_bytes = watch.reserved_bytes
    return result


def as_json(found: list[Measured]) -> list[dict[str, Any]]:
    """Return the measurements as plain values."""
    return [asdict(one) for one in found]
