"""What measurements add to the planner's counts, for each kind of device."""

from dataclasses import dataclass
from typing import Literal

from dreambooth.config.training import MethodName
from dreambooth.formats.layout import FamilyName

DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True)
class Constants:
    """What measurements add to the counts.

    `measured` says on what and when, nothing when they are not measured yet, and `measured_of` of which families and
    methods.
    `fixed_bytes` is there whatever is trained; `slack` is what the allocator holds per byte of what stays, `keeping`
    per byte of activations, `recomputing` the same where units are recomputed; `workspace` is how many of a unit's
    widest tensors are at work beside what is kept, `inference` in a forward without gradients; `vae` the same of the
    VAE's widest picture. `left_bytes` is what lies idle in the heap when steps begin, at most a third of the base:
    gradients and moments fill it, where there are as many.
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
    # Of six plans at 512 px; other sizes are counted, and not measured yet.
    "cuda": Constants("NVIDIA H200, 2026-11-27, 512 px", 64 << 20, 1.03, 1.18, 1.5, 1.0, 2.0, 3.5, 0, OF_SD1[:1]),
    "mps": Constants("", 64 << 20, 1.03, 1.18, 1.5, 1.0, 2.0, 3.5, 0),
}
