"""The loss over the steps as an HTML drawing: every step faint, the smoothed curve clear, saved steps marked.

It shows the losses at fixed noise, which can be compared from step to step; without them, the smoothed raw loss.

Our own drawing follows the page's colours in light and dark, and needs no plotting library in the browser.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dreambooth.events import FixedNoiseLosses, StepLoss

SMOOTHING = 0.95
GAP = "A widening gap between your photos and the held-out views means overfitting."
# A logarithmic scale shows at most this many powers of ten.
MAX_DECADES = 3
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


def thinned(
    losses: Sequence[StepLoss], max_points: int = MAX_POINTS, weight: float = SMOOTHING
) -> list[tuple[int, float, float]]:
    """Return (step, loss, smoothed loss), at most `max_points` of them, including the first and last step."""
    averages = smoothed([loss.loss for loss in losses], weight)
    stride = max(1, -(-len(losses) // max(max_points - 1, 1)))
    kept = list(range(0, len(losses), stride))
    if losses and kept[-1] != len(losses) - 1:
        kept.append(len(losses) - 1)
    return [(losses[place].step, losses[place].loss, averages[place]) for place in kept]


@dataclass(frozen=True)
class Curve:
    """One curve over the steps: its CSS class, its title, and its points (step, value)."""

    style: str
    title: str
    points: Sequence[tuple[int, float]]


def curves_of(losses: Sequence[FixedNoiseLosses]) -> list[Curve]:
    """Return the finite losses at fixed noise as curves."""
    named = (("seen", "your photos"), ("unseen", "held-out views"), ("drift", "drift from the base"))
    return [
        Curve(
            f"db-{name}", title,
            [(one.step, value) for one in losses if math.isfinite(value := getattr(one, name))],
        )
        for name, title in named
    ]  # fmt: skip


def loss_plot(
    losses: Sequence[StepLoss],
    total_steps: int,
    saved_steps: Sequence[int] = (),
    at_fixed_noise: Sequence[FixedNoiseLosses] = (),
    *,
    smoothing: float = SMOOTHING,
    log_scale: bool = False,
) -> str:
    """Return the drawing; without losses, a sentence. `smoothing` is the weight of earlier values, 0 to below 1."""
    raw = thinned([loss for loss in losses if math.isfinite(loss.loss)], weight=smoothing)
    if not raw:
        return "<div class='db-plot db-empty'>The curve starts with the first steps.</div>"
    curves = [curve for curve in curves_of(at_fixed_noise) if len(curve.points) > 1]
    course = Curve("db-course", "smoothed", [(step, average) for step, _, average in raw])
    if curves:
        top = _round_up(max(max(value for curve in curves for _, value in curve.points) * 1.1, 1e-9))
        description = ", ".join(f"{curve.points[-1][1]:.4f} {curve.title}" for curve in curves)
        description = f"At fixed noise, step {curves[0].points[-1][0]}: {description}."
        keys = "".join(f"<span class='db-key {curve.style}'>{curve.title}</span>" for curve in curves)
        note = f"{keys}<br>{escape(description)} {GAP}"
        behind = [Curve("db-smooth", course.title, course.points)] if smoothing else []
    else:
        top = _top([loss for _, loss, _ in raw], [average for _, _, average in raw])
        (first, _, start), (step, _, average) = raw[0], raw[-1]
        curves, behind = [course], []
        description = f"Loss at step {step}: {average:.4f}, smoothed; it was {start:.4f} at step {first}."
        note = escape(description)
    faint = Curve("db-raw", "every step", [(step, loss) for step, loss, _ in raw])
    low = _low([faint, *curves], top) if log_scale else 0.0
    frame = Frame(max(total_steps, raw[-1][0], 1), top, low)
    lines = "".join(frame.line(curve.style, curve.points) for curve in (faint, *behind))
    drawn = "".join(frame.line(curve.style, curve.points) + frame.dot(curve) for curve in curves)
    picture = frame.svg(description, frame.marks(saved_steps) + lines + drawn)
    return f"<figure class='db-plot'>{picture}<figcaption>{note}</figcaption></figure>"


@dataclass(frozen=True)
class Frame:
    """The coordinates of a step and a value in the drawing; values above the top are drawn on it.

    With a `low` above zero the scale is logarithmic, and values below it are drawn on it.
    """

    last: int
    top: float
    low: float = 0.0

    def x(self, step: float) -> float:
        """Return the horizontal position of a step."""
        return LEFT + (WIDTH - LEFT - RIGHT) * step / self.last

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        value = max(min(value, self.top), self.low)
        share = math.log(value / self.low) / math.log(self.top / self.low) if self.low else value / self.top
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    def svg(self, description: str, drawn: str) -> str:
        """Return the whole drawing; `told` is its description in words."""
        head = f"<svg viewBox='0 0 {WIDTH:g} {HEIGHT:g}' role='img' aria-label='{escape(description)}'>"
        return f"{head}{self.grid()}{drawn}</svg>"

    def line(self, style: str, points: Sequence[tuple[int, float]]) -> str:
        """Return a line through these points."""
        places = " ".join(f"{self.x(step):.1f},{self.y(value):.1f}" for step, value in points)
        return f"<polyline class='{style}' points='{places}'/>"

    def dot(self, curve: Curve) -> str:
        """Return the mark of a curve's current value."""
        step, value = curve.points[-1]
        return f"<circle class='db-now {curve.style}' cx='{self.x(step):.1f}' cy='{self.y(value):.1f}' r='4'/>"

    def grid(self) -> str:
        """Return the lines and numbers behind the curves."""
        rows = "".join(
            f"<line x1='{LEFT:g}' x2='{WIDTH - RIGHT:g}' y1='{self.y(value):.1f}' y2='{self.y(value):.1f}'/>"
            f"<text x='{LEFT - 6:g}' y='{self.y(value) + 4:.1f}' text-anchor='end'>{_number(value)}</text>"
            for value in self._levels()
        )
        ticks = "".join(
            f"<text x='{self.x(step):.1f}' y='{HEIGHT - 8:g}' text-anchor='{_anchor(step, self.last)}'>{step}</text>"
            for step in _ticks(self.last)
        )
        return f"<g class='db-grid'>{rows}{ticks}</g>"

    def _levels(self) -> list[float]:
        """Return the values with a grid line: quarters, or powers of ten."""
        if not self.low:
            return [self.top * share for share in (0, 0.25, 0.5, 0.75, 1)]
        first = math.ceil(math.log10(self.low) - 1e-9)
        return [10.0**power for power in range(first, math.floor(math.log10(self.top) + 1e-9) + 1)]

    def marks(self, steps: Sequence[int], what: str = "saved at") -> str:
        """Return a line at each of these steps, by default those whose model was saved."""
        return "".join(
            f"<line class='db-saved' x1='{self.x(step):.1f}' x2='{self.x(step):.1f}' y1='{TOP:g}' "
            f"y2='{HEIGHT - BOTTOM:g}'><title>{what} step {step}</title></line>"
            for step in steps
            if 0 < step <= self.last
        )


def _low(curves: Sequence[Curve], top: float) -> float:
    """Return the bottom of a logarithmic scale: the power of ten below the least value, within some decades."""
    least = min((value for curve in curves for _, value in curve.points if value > 0), default=top / 10)
    return max(10.0 ** math.floor(math.log10(least)), top / 10**MAX_DECADES) if least < top else top / 10


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
