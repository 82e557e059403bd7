"""What preparation hands to the loop, and how the loop tells of its work."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.events import Event
from dreambooth.models.base import Base
from dreambooth.training.batches import BatchMaker
from dreambooth.training.captions import CaptionStates
from dreambooth.training.gauges import Gauges

if TYPE_CHECKING:
    from torch import Tensor

Report = Callable[[Event], None]


@dataclass(frozen=True)
class Materials:
    """Everything a step reads; `alpha_bar` (timesteps,) lies on the device."""

    base: Base
    batches: BatchMaker
    caption_states: CaptionStates
    alpha_bar: "Tensor"
    seed: int
    num_steps: int
    photo_files: list[Path]
    gauges: Gauges | None = None
