"""Which preset fits cards of common sizes, for each family and method, as planned, with what was measured."""

from dataclasses import dataclass

from dreambooth.config.presets import resolve
from dreambooth.config.recipes import MIN_PX, OUTCOMES
from dreambooth.config.training import MethodName
from dreambooth.device.hardware import GIB, Device, gb
from dreambooth.forecast.memory import memory_need, room_bytes
from dreambooth.forecast.offers import FROM_FAST_TO_LEAN
from dreambooth.forecast.shape import ModelShape, usual_shape
from dreambooth.formats.layout import LAYOUTS, FamilyName

CARDS_GB = (8, 12, 16, 24)
# CUDA's own share of a card: 0.75 to 0.87 GiB were measured (docs/gpu.md).
CONTEXT_BYTES = 9 * GIB // 10
NOT_MEASURED = "not measured on a card"


@dataclass(frozen=True)
class CardPlan:
    """The fastest preset that fits a card, with samples and class images: resolution in pixels and memory in bytes."""

    preset: str
    resolution: int
    need_bytes: int
    measured: str

    def __str__(self) -> str:
        return f"`{self.preset}` at {self.resolution} px, {gb(self.need_bytes)} GiB"


def plan_for_card(shape: ModelShape, method: MethodName, card_gb: int) -> CardPlan | None:
    """Return what fits an otherwise empty card of this size; None if nothing does.

    The resolution is lowered only as a last resort, and not below what is useful for the family.
    """
    family = shape.layout.family
    total = card_gb * GIB
    room = room_bytes(Device("cuda", "", total, total - CONTEXT_BYTES))
    lower_px = shape.native_px * 3 // 4
    for resolution in (shape.native_px, *([lower_px] if lower_px >= MIN_PX[family] else [])):
        for name in FROM_FAST_TO_LEAN:
            asked = {"method": method, "resolution": resolution, "save_sample_prompt": "photo"}
            config = resolve(asked, None, name, family)
            need = memory_need(config, shape, "cuda")
            if need.peak_bytes <= room:
                return CardPlan(name, resolution, need.peak_bytes, need.measured)
    return None


def cards_sentence(shape: ModelShape, method: MethodName) -> str:
    """Return which presets fit which cards for models like this one and this method."""
    plans = {size: plan_for_card(shape, method, size) for size in CARDS_GB}
    fits = "; ".join(f"{size} GB: {plan or 'none'}" for size, plan in plans.items())
    measured = next((plan.measured for plan in plans.values() if plan and plan.measured), "")
    by_what = f"by constants of {measured}" if measured else NOT_MEASURED
    return f"Presets that fit cards, for {OUTCOMES[method]} with class images and samples (planned, {by_what}): {fits}."


def cards_table(families: tuple[FamilyName, ...] = ("sd1", "sdxl")) -> str:
    """Return the table of presets and cards in Markdown, for the documentation."""
    rows = ["| trained | " + " | ".join(f"{size} GB" for size in CARDS_GB) + " |", "|---" * (1 + len(CARDS_GB)) + "|"]
    for family in families:
        shape = usual_shape(LAYOUTS[family])
        for method in OUTCOMES:
            plans = [str(plan_for_card(shape, method, size) or "none") for size in CARDS_GB]
            rows.append(f"| {LAYOUTS[family].short_title}, {method} | " + " | ".join(plans) + " |")
    return "\n".join(rows)
