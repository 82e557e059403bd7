"""What the browser tests share: a training that is played instead of computed."""

import dataclasses
import threading
import time
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.data.samples import sample_folder
from dreambooth.events import ModelSaved, PhaseProgress, SamplesMade, StatusChanged, StepLoss
from dreambooth.pictures.settings_text import CHUNK, recipe_text
from dreambooth.records.workspace import RunFolder
from dreambooth.training.materials import RunContext

PLAYED_STEPS = 3000


@dataclasses.dataclass
class Played:
    """Stands in for the training: reports as the real one does, at its own pace, and ends as it is told to."""

    step_s: float = 0.05
    error: BaseException | None = None
    go_on: threading.Event = dataclasses.field(default_factory=threading.Event)
    seen: list[TrainingConfig] = dataclasses.field(default_factory=list)

    def __call__(self, config: TrainingConfig, context: RunContext) -> StatusChanged:
        run, report, controls = context.run, context.report, context.controls
        self.seen.append(config)
        report(PhaseProgress("loading"))
        report(PhaseProgress("class images", 1, 2))
        self._sample(run, 0, report)
        num_steps = config.max_train_steps or PLAYED_STEPS
        for step in range(1, num_steps + 1):
            report(PhaseProgress("training", step, num_steps))
            report(StepLoss(step, 0.2 + 0.1 * (step % 3), 0.2, None, 1e-6))
            if self.error is not None and step == 3:
                raise self.error
            if controls.save_now.is_set() or step == num_steps or controls.stop.is_set():
                controls.save_now.clear()
                self._save(run, step, report)
            if controls.stop.is_set():
                return StatusChanged("stopped", f"Stopped and saved after {step} steps.")
            if not self.go_on.is_set():
                time.sleep(self.step_s)
        return StatusChanged("done")

    def _save(self, run: RunFolder, step: int, report: Any) -> None:
        report(PhaseProgress("saving"))
        run.step_folder(step).mkdir(parents=True, exist_ok=True)
        (run.step_folder(step) / "model_index.json").write_text("{}")
        report(ModelSaved(step))
        self._sample(run, step, report)

    def _sample(self, run: RunFolder, step: int, report: Any) -> None:
        samples = run.step_folder(step) / "samples"
        samples.mkdir(parents=True, exist_ok=True)
        about = PngInfo()
        about.add_text(
            CHUNK, recipe_text(GenerationConfig(prompt="photo of zwx dog"), step, (64, 64), f"played/{step}")
        )
        for name in ("0.png", "1.png"):
            with Image.open(sample_folder() / "1.png") as image:
                image.save(samples / name, pnginfo=about)
        report(SamplesMade(step, ("0.png", "1.png")))


@pytest.fixture(scope="module")
def player() -> Played:
    """Return what plays the trainings of a file's page."""
    return Played()


@pytest.fixture
def played(player: Played) -> Played:
    """Return the player, as at its start."""
    vars(player).update(vars(Played()))
    return player
