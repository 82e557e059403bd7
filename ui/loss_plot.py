"""The loss over the steps as a drawing in HTML: every step faint, their smoothed course clear, saved steps marked.

A drawing of our own follows the page's colors in light and dark, and needs no plotting library in the browser.
"""

import math
from collections.abc import Sequence
from html import escape

from dreambooth.events import StepLoss

SMOOTHING = 0.95
MAX_POINTS = 500
WIDTH, HEIGHT = 640.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 10.0, 26.0
# Outliers would flatten the rest: the scale ends above this share of the steps.
SHOWN_SHARE = 0.98


def smoothed(values: Sequence[float], weight: float = SMOOTHING) -> list[float]:
    """Return the moving average, corrected for its start at zero as in Adam (arXiv:1412.6980, section 3)."""
    averages, average, share = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        share = weight * share + (1 - weight)
        averages.append(average / share)
    return averages


def thinned(losses: Sequence[StepLoss], max_points: int = MAX_POINTS) -> list[tuple[int, float, float]]:
    """Return (step, loss, smoothed loss), at most `max_points` of them, the first and last step among them."""
    averages = smoothed([loss.loss for loss in losses])
    stride = max(1, -(-len(losses) // max(max_points - 1, 1)))
    kept = list(range(0, len(losses), stride))
    if losses and kept[-1] != len(losses) - 1:
        kept.append(len(losses) - 1)
    return [(losses[place].step, losses[place].loss, averages[place]) for place in kept]


def loss_plot(losses: Sequence[StepLoss], total_steps: int, saved_steps: Sequence[int] = ()) -> str:
    """Return the drawing; without losses, a sentence."""
    points = thinned([loss for loss in losses if math.isfinite(loss.loss)])
    if not points:
        return "<div class='db-plot db-empty'>The curve begins with the first steps.</div>"
    top = _top([loss for _, loss, _ in points], [average for _, _, average in points])
    last = max(total_steps, points[-1][0], 1)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, top) / top)

    rows = [top * share for share in (0, 0.25, 0.5, 0.75, 1)]
    grid = "".join(
        f"<line x1='{LEFT:g}' x2='{WIDTH - RIGHT:g}' y1='{y(value):.1f}' y2='{y(value):.1f}'/>"
        f"<text x='{LEFT - 6:g}' y='{y(value) + 4:.1f}' text-anchor='end'>{_number(value)}</text>"
        for value in rows
    )
    ticks = "".join(
        f"<text x='{x(step):.1f}' y='{HEIGHT - 8:g}' text-anchor='{_anchor(step, last)}'>{step}</text>"
        for step in _ticks(last)
    )
    marks = "".join(
        f"<line class='db-saved' x1='{x(step):.1f}' x2='{x(step):.1f}' y1='{TOP:g}' y2='{HEIGHT - BOTTOM:g}'>"
        f"<title>saved at step {step}</title></line>"
        for step in saved_steps
        if 0 < step <= last
    )
    raw = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss, _ in points)
    course = " ".join(f"{x(step):.1f},{y(average):.1f}" for step, _, average in points)
    step, _, average = points[-1]
    told = f"Loss at step {step}: {average:.4f}, smoothed; it was {points[0][2]:.4f} at step {points[0][0]}."
    return (
        f"<figure class='db-plot'><svg viewBox='0 0 {WIDTH:g} {HEIGHT:g}' role='img' aria-label='{escape(told)}'>"
        f"<g class='db-grid'>{grid}{ticks}</g>{marks}<polyline class='db-raw' points='{raw}'/>"
        f"<polyline class='db-course' points='{course}'/>"
        f"<circle class='db-now' cx='{x(step):.1f}' cy='{y(average):.1f}' r='4'/></svg>"
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def _top(losses: list[float], averages: list[float]) -> float:
    high = sorted(losses)[min(int(len(losses) * SHOWN_SHARE), len(losses) - 1)]
    return _round_up(max(high, max(averages), 1e-9))


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 2.5, 4, 5 or 8 times a power of ten, so that the marks are plain numbers."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 4, 5, 8, 10) if factor * power >= value * (1 - 1e-9))


def _number(value: float) -> str:
    return f"{value:.3g}"


def _ticks(last: int) -> list[int]:
    stride = max(1, int(_round_up(max(last / 6, 1))))
    ticks = list(range(0, last + 1, stride))
    return ticks if last - ticks[-1] < stride / 2 and ticks[-1] == last else [*_apart(ticks, last, stride), last]


def _apart(ticks: list[int], last: int, stride: int) -> list[int]:
    return [tick for tick in ticks if last - tick >= stride / 2]


def _anchor(step: int, last: int) -> str:
    return "end" if step == last else "start" if step == 0 else "middle"
