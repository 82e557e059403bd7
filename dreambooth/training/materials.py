"""What preparation hands to the loop, and how the loop tells of its work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.events import Event
from dreambooth.models.base import Base
from dreambooth.training.batches import BatchMaker
from dreambooth.training.captions import CaptionConditions
from dreambooth.training.full import FullFineTuning
from dreambooth.training.gauges import Gauges
from dreambooth.training.method import Method

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[[Event], None]


@dataclass(frozen=True)
class Materials:
    """Everything a step reads; `alpha_bar` (timesteps,) lies on the device.

    `photo_files`, the `captions` with the roles of their pictures, and `base_key` say what a resumed run has to share.
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
    gauges: Gauges | None = None
    method: Method = FullFineTuning()
