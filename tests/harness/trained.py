"""One way to prepare and train a run on a tiny base, and to look at what it did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.events import Controls, Event, StepLoss, read_events
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.training.checkpoint import Checkpoint, newest_checkpoint
from dreambooth.training.materials import Materials, RunContext
from dreambooth.training.preparation import prepare
from dreambooth.training.trainer import Trainer


def quick_settings(base: Path, photos: Path, **changes: Any) -> TrainingConfig:
    """Return the settings of two quick steps, as `changes` make them."""
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(base),
        "concepts": (Concept("photo of zwx dog", str(photos), "photo of dog"),),
        "resolution": 32, "train_batch_size": 1, "max_train_steps": 2, "learning_rate": 1e-3, "seed": 7,
        "num_class_images": 2, "save_infer_steps": 2, "num_crop_variants": 2, "log_interval": 1,
    }  # fmt: skip
    return TrainingConfig(**(values | changes)).checked()


class Run:
    """A run in `folder`/run, over the data folder `folder`/data: what it reported, and what it was prepared with."""

    def __init__(
        self, config: TrainingConfig, folder: Path, device: str = "cpu", materials: Materials | None = None
    ) -> None:
        self.config, self.folder = config, RunFolder(folder / "run")
        self.controls, self.events = Controls(), list[Event]()
        self.press: Callable[[Event], None] = lambda event: None
        self.context = RunContext(
            self.folder, Workspace(folder / "data"), ModelManager(device), controls=self.controls, report=self._report
        )
        self.trainer: Trainer | None = None
        self._materials = materials

    def _report(self, event: Event) -> None:
        self.events.append(event)
        self.press(event)

    @property
    def materials(self) -> Materials:
        """Return what the loop reads, prepared when first asked for."""
        return self._materials or self.prepare()

    def prepare(self) -> Materials:
        """Prepare anew, as another process would."""
        self._materials = prepare(self.config, self.context)
        assert self._materials is not None
        return self._materials

    def train(self, state: Checkpoint | None = None) -> int:
        """Train what is prepared, from this state if one is given, and return the number of steps."""
        return Trainer(self.config, self.materials, self.context, state).run()

    def train_anew(self, state: Checkpoint | None = None) -> Trainer:
        """Prepare anew and train, and return the trainer, which is also at hand when the training raises."""
        self.trainer = Trainer(self.config, self.prepare(), self.context, state)
        self.trainer.run()
        return self.trainer

    def newest_state(self) -> Checkpoint:
        """Return the newest exact state, which must be whole."""
        found = newest_checkpoint(self.folder, _refuse)
        assert found is not None
        return found

    @property
    def losses(self) -> list[float]:
        """Return the losses that were reported."""
        return [event.loss for event in self.events if isinstance(event, StepLoss)]

    def weights(self, part: str = "unet") -> dict[str, torch.Tensor]:
        """Return a copy of the weights of a part, as they are now."""
        return {name: tensor.clone() for name, tensor in getattr(self.materials.base, part).state_dict().items()}


def losses_in(folder: Path) -> list[float]:
    """Return the losses that the records of a run's folder tell."""
    return [event.loss for _, event in read_events(RunFolder(folder).events_path) if isinstance(event, StepLoss)]


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> int:
    """Return how many tensors differ."""
    return sum(not torch.equal(before[name], after[name]) for name in before)


def _refuse(text: str) -> None:
    raise AssertionError(text)
