"""The chart of a run's scores: over the steps, and likeness against drift; the recommended step is marked."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.durable import new_file
from dreambooth.scoring.recommendation import Recommendation, StepScores
from dreambooth.scoring.records import RunScores

if TYPE_CHECKING:
    from PIL import Image

PANEL_PX, LEFT_PX, RIGHT_PX = (440, 220), 60, 150
# A panel's margins for title and axis labels, and the font: legible at half a page's width.
ROW_PX, TOP_PX, FONT_PX = 320, 45, 16
INK, FAINT, PICK = "#30303a", "#d8d8de", "#b03a2e"
# Distinguishable without colour too: by the shape of the marks and the names at their ends.
CURVES = (
    ("fidelity", "likeness", "#1f6fb4"),
    ("prompt", "prompts followed", "#2e8b57"),
    ("drift", "side effects", "#b8860b"),
)


def write_chart(scores: RunScores, pick: Recommendation | None, path: Path) -> bool:
    """Write the chart as a PNG; returns False, writing none, if no step has a likeness."""
    steps = [one for one in scores.steps if one.step and one.fidelity is not None]
    if not steps:
        return False
    image = chart(steps, pick.step if pick else None)
    with new_file(path) as temporary:
        image.save(temporary, format="PNG")
    return True


def chart(steps: Sequence[StepScores], picked: int | None) -> "Image.Image":
    """Return both panels of these steps, whose scores run from 0 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (LEFT_PX + PANEL_PX[0] + RIGHT_PX, 2 * ROW_PX), "white")
    draw = ImageDraw.Draw(image)
    draw.font = ImageFont.load_default(FONT_PX)
    _over_steps(draw, steps, picked, (LEFT_PX, TOP_PX))
    _against_drift(draw, steps, picked, (LEFT_PX, TOP_PX + ROW_PX))
    return image


def _over_steps(draw: Any, steps: Sequence[StepScores], picked: int | None, corner: tuple[int, int]) -> None:
    _frame(draw, corner, "figures over the steps", "step")
    last = max(one.step for one in steps)
    for name, title, colour in CURVES:
        points = [
            (*_place(corner, one.step / last, value), one.step)
            for one in steps
            if (value := getattr(one, name)) is not None
        ]
        if points:
            _line(draw, [point[:2] for point in points], colour)
            draw.text((points[-1][0] + 8, points[-1][1] - FONT_PX // 2), title, colour)
    last_x = -FONT_PX * 3.0
    for one in steps:
        x, y = _place(corner, one.step / last, 0)
        if one.step == picked:
            draw.line([(x, y), _place(corner, one.step / last, 1)], PICK, 1)
        # If saves are close together, not each of them is labelled.
        if x - last_x >= FONT_PX * 3:
            draw.text((x - 12, y + 4), str(one.step), PICK if one.step == picked else INK)
            last_x = x


def _against_drift(draw: Any, steps: Sequence[StepScores], picked: int | None, corner: tuple[int, int]) -> None:
    _frame(draw, corner, "likeness against side effects: up and left is better", "side effects")
    known = [one for one in steps if one.drift is not None]
    # Zoomed to the data, since a run with prior preservation drifts by hundredths.
    widest = max([0.05, *(one.drift or 0.0 for one in known)])
    points = [_place(corner, (one.drift or 0.0) / widest, one.fidelity or 0.0) for one in known]
    _line(draw, points, FAINT)
    for one, (x, y) in zip(known, points, strict=True):
        colour, radius = (PICK, 6) if one.step == picked else ("#1f6fb4", 3)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour)
        draw.text((x + 8, y - FONT_PX), str(one.step), colour)
    x, y = _place(corner, 1, 0)
    draw.text((x - 24, y + 4), f"{widest:.2f}", INK)


def _frame(draw: Any, corner: tuple[int, int], title: str, below: str) -> None:
    left, top = corner
    width, height = PANEL_PX
    draw.rectangle((left, top, left + width, top + height), outline=FAINT)
    draw.text((left, top - 28), title, INK)
    draw.text((left + width // 2 - 16, top + height + 22), below, INK)
    for share in (0, 0.5, 1):
        x, y = _place(corner, 0, share)
        draw.line([(x, y), (x + width, y)], FAINT)
        draw.text((x - 34, y - FONT_PX // 2), f"{share:.1f}", INK)


def _place(corner: tuple[int, int], across: float, up: float) -> tuple[float, float]:
    left, top = corner
    return left + across * PANEL_PX[0], top + (1 - min(max(up, 0.0), 1.0)) * PANEL_PX[1]


def _line(draw: Any, points: Sequence[tuple[float, float]], colour: str) -> None:
    if len(points) > 1:
        draw.line(list(points), colour, 2)
    for x, y in points:
        draw.rectangle((x - 2, y - 2, x + 2, y + 2), colour)
