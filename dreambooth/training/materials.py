"""The context of a run: its folder and controls, and what preparation passes to the loop."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.events import Controls, Event, Notice
from dreambooth.models.base import Base
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.training.batches import BatchMaker
from dreambooth.training.captions import CaptionConditions
from dreambooth.training.fixed_noise import FixedNoiseEvaluation
from dreambooth.training.method import Method

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[[Event], None]


def _ignored(event: Event) -> None:
    """Discard an event."""


@dataclass(frozen=True)
class RunContext:
    """Where a run works, its controls and its reports: the same from its start to its end.

    A run that `is_resumed` continues from its newest exact state, or from that of `state_step`. `explicit` names the
    settings that were given; None for all that differ from their defaults.
    """

    run: RunFolder
    workspace: Workspace
    manager: ModelManager
    token: str | None = None
    controls: Controls = field(default_factory=Controls)
    report: Report = _ignored
    is_resumed: bool = False
    state_step: int | None = None
    explicit: Collection[str] | None = None

    def warn(self, text: str) -> None:
        """Report a warning."""
        self.report(Notice(text, "warning"))


@dataclass(frozen=True)
class Materials:
    """Everything a step reads; `alpha_bar` (timesteps,) is on the device.

    `photo_files`, the `captions` with the roles of their images, and `base_key` identify what a resumed run must share.
    """

    base: Base
    batches: BatchMaker
    conditions: CaptionConditions
    alpha_bar: "Tensor"
    seed: int
    planned_steps: int
    photo_files: list[Path]
    captions: list[tuple[str, str]]
    base_key: str
    method: Method
    fixed_noise: FixedNoiseEvaluation | None = None
