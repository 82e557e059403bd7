"""A run's saved steps: the recommendation, what each can be used for, and the scores over the steps.

Pure functions, no Gradio.
"""

from collections.abc import Sequence
from html import escape

from dreambooth.events import FINAL_STATUSES
from dreambooth.runs.view import RunView
from dreambooth.scoring.bleed import BleedReport
from dreambooth.scoring.recommendation import NOTHING_MEASURED, StepScores
from ui.render import NONE_RECOMMENDED, panel
from ui.train.loss_plot import Curve, Frame

MAX_STEPS_LISTED = 24
# From here on a prompt's images are more like the subject than like before.
MUCH = 0.5
ACTS = (("use", "Make pictures"), ("convert", "Convert"), ("compare", "Compare"))
SCORES = (
    ("fidelity", "likeness", "db-seen"), ("prompt", "prompts followed", "db-unseen"),
    ("drift", "side effects", "db-drift"),
)  # fmt: skip

STEPS_JS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button) trigger('click', {act: button.dataset.act, step: button.dataset.step});
});
"""


def verdict(view: RunView, changed: BleedReport | None) -> str:
    """Return the recommended step and its side effects, as one panel; empty if nothing was scored."""
    is_over = view.status in FINAL_STATUSES or view.status == "interrupted"
    if view.steps and view.phase == "scores" and not is_over:
        so_far = f"So far: {view.why_recommended}" if view.why_recommended else ""
        return panel(f"Step {view.steps[-1]} is being scored.", so_far, tone="note")
    if not view.steps or view.scores is None:
        return ""
    why = view.why_recommended or NOTHING_MEASURED
    if not is_over:
        # What is not measured yet may be in a moment.
        return panel(f"So far: {why}", tone="note") if view.why_recommended else ""
    if view.recommended_step is None:
        return panel(NONE_RECOMMENDED, why, tone="note")
    named = f"Step {view.recommended_step} is recommended"
    if changed is None or changed.step != view.recommended_step or not changed.ranked:
        return panel(f"{named}.", why, tone="good")
    worst = max(changed.ranked, key=lambda one: one.became_subject or 0.0)
    share, prompt = worst.became_subject or 0.0, worst.prompt or "no words"
    if share >= MUCH:
        side = f'Other prompts changed too: "{prompt}" now looks like your subject ({share:.2f} of 1).'
        todo = "For pictures of other things use an earlier step or a lower strength."
        return panel(f"{named} for your subject, with side effects.", f"{why} {side}", todo, tone="note")
    kept = f'Other prompts are unchanged: at most {share:.2f} of 1 became the subject ("{prompt}").'
    return panel(f"{named}.", f"{why} {kept}", tone="good")


def steps_list(view: RunView) -> str:
    """Return every saved step, newest first, with a button for each thing that can be done with it."""
    steps = sorted(view.steps, reverse=True)[:MAX_STEPS_LISTED]
    if not steps:
        return ""
    items = "".join(_item(step, is_best=step == view.recommended_step) for step in steps)
    return f"<h3>Saved steps</h3><ul class='db-steps'>{items}</ul>"


def _item(step: int, *, is_best: bool) -> str:
    buttons = "".join(
        f"<button type='button' class='db-act' data-act='{act}' data-step='{step}' "
        f"aria-label='{label}: step {step}'>{label}</button>"
        for act, label in ACTS
    )
    best = " <span class='db-chip db-chip-done'>recommended</span>" if is_best else ""
    return f"<li><b>Step {step}</b>{best}<span class='db-step-acts'>{buttons}</span></li>"


def score_plot(scores: Sequence[StepScores], best: int | None) -> str:
    """Return the scores over the steps, drawn like the loss; empty before there are two saves to compare."""
    saved = sorted((one for one in scores if one.step), key=lambda one: one.step)
    drawn = [
        Curve(style, title, [(one.step, value) for one in saved if (value := getattr(one, name)) is not None])
        for name, title, style in SCORES
    ]
    curves = [curve for curve in drawn if len(curve.points) > 1]
    if not curves:
        return ""
    frame = Frame(saved[-1].step, 1.0)
    newest = ", ".join(f"{curve.title} {curve.points[-1][1]:.2f}" for curve in curves)
    description = f"Scores of step {saved[-1].step}, each from 0 to 1: {newest}."
    keys = "".join(f"<span class='db-key {curve.style}'>{curve.title}</span>" for curve in curves)
    lines = "".join(frame.line(curve.style, curve.points) + frame.dot(curve) for curve in curves)
    return (
        f"<figure class='db-plot'>{frame.svg(description, frame.marks([best] if best else [], 'recommended') + lines)}"
        f"<figcaption>{keys}<br>{escape(description)}</figcaption></figure>"
    )
