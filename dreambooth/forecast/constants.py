"""Measured constants of the memory planner, for each kind of device."""

from dataclasses import dataclass
from typing import Literal

from dreambooth.config.training import MethodName
from dreambooth.formats.layout import FamilyName

DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True)
class Constants:
    """Measured additions to the counts.

    `measured` says on what and when, empty if not yet measured, and `measured_of` for which families and methods.
    `fixed_bytes` is needed whatever is trained; `slack` is what the allocator holds per byte of permanent memory,
    `keeping` per byte of activations, `recomputing` the same with checkpointing; `workspace` is how many of a unit's
    widest tensors are in use beside what is kept, `inference` in a forward without gradients; `vae` the same for the
    VAE's widest feature map. `left_bytes` is what lies idle in the heap when steps begin, at most a third of the base:
    gradients and moments fill it, if there are enough.
    """

    measured: str
    fixed_bytes: int
    slack: float
    keeping: float
    recomputing: float
    workspace: float
    inference: float
    vae: float
    left_bytes: int
    measured_of: tuple[tuple[FamilyName, MethodName], ...] = ()


OF_SD1: tuple[tuple[FamilyName, MethodName], ...] = (("sd1", "full"), ("sd1", "lora"))
CONSTANTS: dict[DeviceKind, Constants] = {
    "cpu": Constants("two cores of a Xeon, 2026-11-27", 60 << 20, 1.04, 1.1, 2.5, 0.0, 2.0, 3.5, 50 << 20, OF_SD1),
    # From six plans at 512 px; other resolutions are computed, not measured yet.
    "cuda": Constants("NVIDIA H200, 2026-11-27, 512 px", 64 << 20, 1.03, 1.18, 1.5, 1.0, 2.0, 3.5, 0, OF_SD1[:1]),
    "mps": Constants("", 64 << 20, 1.03, 1.18, 1.5, 1.0, 2.0, 3.5, 0),
}
