"""The recommended step, and the reason in one sentence: a function of the scores alone.

Three scores count, each from 0 to 1: fidelity (from the base model to the real photos among each other), prompt (how
well prompts are still followed) and drift (how far images that should not have changed became the subject).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dreambooth.config.checks import PATIENCE

# Two steps that differ by less cannot be distinguished with a dozen images: the later one, with more training, is
# recommended. A likeness below it cannot be distinguished from the base model's.
TOLERANCE = 0.01
NOTHING_MEASURED = "No step can be recommended: its likeness was not measured."
SEEN_LOSS, UNSEEN_LOSS, DRIFT_LOSS = "loss on photos", "loss on unseen views", "loss against base"


@dataclass(frozen=True)
class StepScores:
    """One saved step's scores; None for those that could not be measured. `measures` has all raw ones, by name."""

    step: int
    fidelity: float | None = None
    prompt: float | None = None
    drift: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recommendation:
    """The recommended step, None if none is worth it, and the sentence that says why."""

    step: int | None
    why: str


def merit(fidelity: float | None, prompt: float | None, drift: float | None) -> float | None:
    """Return one score for a step, the geometric mean of fidelity, prompt and (1 - drift); None without fidelity.

    A mean of products: a step that has lost one of the three completely is worthless, whatever the others are.
    """
    if fidelity is None:
        return None
    parts = [fidelity, *([] if prompt is None else [prompt]), *([] if drift is None else [1 - drift])]
    product = 1.0
    for part in parts:
        product *= min(max(part, 0.0), 1.0)
    return float(product ** (1 / len(parts)))


def recommended(scores: Sequence[StepScores], available: Sequence[int] | None = None) -> Recommendation | None:
    """Return the recommendation among the `available` steps (by default all); None if nothing was measured.

    If no step is like the photos, or each has lost prompts or prior completely, its step is None.
    """
    ordered = sorted((one for one in scores if one.step), key=lambda one: one.step)
    merits = smoothed_merits(ordered)
    choices = [
        (one, value)
        for one, value in zip(ordered, merits, strict=True)
        if value is not None and (available is None or one.step in available)
    ]
    if not choices:
        return _by_losses(ordered, available)
    best = max(value for _, value in choices)
    steps = [one for one, _ in choices]
    if best < TOLERANCE or not any(map(_is_like, steps)):
        return Recommendation(None, _why_none(steps))
    chosen = next(one for one, value in reversed(choices) if value >= best - TOLERANCE)
    return Recommendation(chosen.step, _why(chosen, steps))


def _is_like(one: StepScores) -> bool:
    return one.fidelity is not None and one.fidelity >= TOLERANCE


def _by_losses(ordered: Sequence[StepScores], available: Sequence[int] | None) -> Recommendation | None:
    """Return the recommendation without an examiner: by the losses at fixed noise alone.

    Views of the photos that are never trained on are denoised better while the subject is learned, and worse once the
    photos are memorized.
    """
    known = [
        (one.step, one.measures[UNSEEN_LOSS])
        for one in ordered
        if UNSEEN_LOSS in one.measures and (available is None or one.step in available)
    ]
    if not known:
        return None
    lowest = min(loss for _, loss in known)
    step, loss = next(pair for pair in reversed(known) if pair[1] <= lowest * (1 + TOLERANCE))
    why = f"Step {step} has the lowest loss on held-out views of the photos ({loss:.4f} at fixed noise)"
    return Recommendation(step, f"{why}; no encoder has scored its pictures.")


def is_past_best(scores: Sequence[StepScores]) -> bool:
    """Return whether none of the newest saves improved on an earlier one, which is then the best."""
    steps = sorted(one.step for one in scores if one.step)
    found = recommended(scores)
    best = found.step if found else None
    return best is not None and sum(step > best for step in steps) >= PATIENCE


def smoothed_merits(ordered: Sequence[StepScores]) -> list[float | None]:
    """Return the merit of each step from its own scores and, at half the weight, those of its two neighbours.

    Each score comes from a few images; the true value changes little from one saved step to the next.
    """
    smooth = {
        name: _smoothed([getattr(one, name) for one in ordered]) for name in ("fidelity", "prompt", "drift")
    }  # fmt: skip
    return [merit(*(smooth[name][row] for name in ("fidelity", "prompt", "drift"))) for row in range(len(ordered))]


def _smoothed(values: Sequence[float | None]) -> list[float | None]:
    found: list[float | None] = []
    for row, value in enumerate(values):
        if value is None:
            found.append(None)
            continue
        near = [(2.0, value)] + [
            (1.0, other)
            for place in (row - 1, row + 1)
            if 0 <= place < len(values) and (other := values[place]) is not None
        ]
        found.append(sum(weight * one for weight, one in near) / sum(weight for weight, _ in near))
    return found


def _why_none(steps: Sequence[StepScores]) -> str:
    """Return why no step is recommended, and what to do instead."""
    likest = max(steps, key=lambda one: one.fidelity or 0.0)
    who = f"Step {likest.step}, the only one that was scored," if len(steps) == 1 else "Every saved step"
    if _is_like(likest):
        lost = f"{who} no longer follows prompts or changes other pictures too much ({_figures(likest)})"
        return f"{lost}: train for fewer steps, at a lower learning rate, or with prior preservation."
    subject = f"{who} does not look" if len(steps) == 1 else "No saved step looks"
    figure = f"likeness {likest.fidelity or 0.0:.2f} of 1{' at most' if len(steps) > 1 else ''}"
    return f"{subject} like the photos yet ({figure}): train longer, at a higher learning rate, or with other photos."


def _figures(one: StepScores) -> str:
    figures = []
    if one.fidelity is not None:
        far = ", less than halfway to the photos" if one.fidelity < 0.5 else ""
        figures.append(f"likeness {one.fidelity:.2f} of 1{far}")
    figures += [f"prompts followed {one.prompt:.2f}"] if one.prompt is not None else []
    figures += [f"side effects {one.drift:.2f}"] if one.drift is not None else []
    return ", ".join(figures)


def _why(chosen: StepScores, all_steps: Sequence[StepScores]) -> str:
    figures = _figures(chosen)
    if len(all_steps) == 1:
        return f"Step {chosen.step} is the only one that was scored ({figures})."
    last = all_steps[-1]
    if chosen is last:
        return f"Step {chosen.step}, the last, is the best: no earlier one is clearly better ({figures})."
    return f"Step {chosen.step} is the best overall ({figures}); {_what_later_steps_lose(chosen, last)}."


def _what_later_steps_lose(chosen: StepScores, last: StepScores) -> str:
    losses = {
        "follows prompts less": _difference(chosen.prompt, last.prompt),
        "changes other pictures more": _difference(last.drift, chosen.drift),
        "is less like the photos": _difference(chosen.fidelity, last.fidelity),
    }
    what = max(losses, key=lambda name: losses[name])
    if losses[what] <= 0.005:
        return f"step {last.step} is no better"
    return f"step {last.step} {what}"


def _difference(more: float | None, less: float | None) -> float:
    return 0.0 if more is None or less is None else more - less
