"""The progress of a run as a whole, and its phases: those before the first step, then training and saving in turns.

Pure functions, no Gradio. There is one bar for everything, so that it never restarts at zero; the weights of its parts
were measured on the starter, in training steps. An image's denoising step and a training step have about the same ratio
for larger bases.
"""

from collections.abc import Mapping
from html import escape

from dreambooth.events import FINAL_STATUSES
from dreambooth.runs.view import RunView

STEPS_OF_LOADING = 25.0
# A denoising step of one image, and the crops of one photo, in training steps.
STEPS_OF_DENOISING = 0.14
STEPS_OF_CROP = 0.15
# A run reports these in this order before its first step.
BEFORE_STEPS = ("loading", "class images", "latents", "samples", "scores")
SHORT_PHASES = {
    "loading": "Loading",
    "class images": "Class images",
    "latents": "Photos",
    "training": "Training",
    "saving": "Saving",
    "copying": "Copying",
    "samples": "Samples",
    "scores": "Scores",
    "lent": "Pictures",
}
ONCE = ("loading", "class images", "latents")
CYCLE = ("training", "saving", "samples", "scores")
# Told of while they last.
SOMETIMES = ("copying", "lent")


def whole_share(view: RunView) -> float:
    """Return the progress of the whole run, 0 to 1, including the phases before its first step."""
    if view.status == "done":
        return 1.0
    over = view.status in FINAL_STATUSES or view.status == "interrupted"
    if not view.total_steps or (over and not view.step):
        return 0.0
    before = _work_before(view)
    if view.step or view.phase not in before:
        done = sum(before.values()) * (view.step > 0 or view.phase == "training") + view.step
    else:
        place = list(before).index(view.phase)
        part = min(view.phase_done / view.phase_total, 1.0) if view.phase_total else 0.0
        done = sum(list(before.values())[:place]) + part * before[view.phase]
    return float(min(done / (sum(before.values()) + view.total_steps), 1.0))


def planned_seconds_left(view: RunView, whole_s: float) -> float:
    """Return the time left of a run planned to take `whole_s`, increased by its delay so far.

    The current phase counts as done, unless it has a count: a phase that takes longer than planned shows as a delay.
    """
    share, reached = whole_share(view), whole_share(view)
    before = _work_before(view)
    if not view.phase_total and view.phase in before and not view.step:
        names = list(before)
        through = sum(before[name] for name in names[: names.index(view.phase) + 1])
        reached = through / (sum(before.values()) + view.total_steps)
    behind = max(view.elapsed_s / (whole_s * reached), 1.0) if reached and whole_s else 1.0
    return float(max(whole_s * (1 - share) * behind, view.phase_seconds_left or 0.0))


def _work_before(view: RunView) -> Mapping[str, float]:
    """Return the weight of each phase before the first step, in training steps, in order."""
    config = view.config
    if config is None:
        return dict.fromkeys(BEFORE_STEPS, 0.0)
    num_class_images = config.num_class_images * max(len(config.concepts), 1) * config.with_prior_preservation
    picture = config.save_infer_steps * STEPS_OF_DENOISING
    return {
        "loading": STEPS_OF_LOADING,
        "class images": num_class_images * picture,
        "latents": view.phase_total * STEPS_OF_CROP if view.phase == "latents" else 90 * STEPS_OF_CROP,
        "samples": config.num_sample_pictures * picture,
        "scores": config.num_probe_pictures * picture,
    }


def phase_list(view: RunView) -> str:
    """Return the phases: those of the beginning in order, then the repeated ones as a cycle."""
    if view.status in ("queued", "interrupted"):
        return ""
    once = [name for name in ONCE if name != "class images" or _makes_class_images(view)]
    cycle = [name for name in CYCLE if name != "scores" or _scores(view)]
    if view.phase in SOMETIMES:
        cycle.append(view.phase)
    over = view.status in FINAL_STATUSES
    if view.status == "done":
        behind = [*once, *cycle]
    else:
        behind = once[: once.index(view.phase)] if view.phase in once else once if view.phase else []
    parts = {name: _phase(view, name, over=over, behind=name in behind) for name in (*once, *cycle)}
    beginning, again = ("".join(parts[name] for name in names) for names in (once, cycle))
    return (
        f"<ol class='db-phases' aria-label='Phases of the run'>{beginning}<li class='db-cycle'>"
        f"<span aria-hidden='true'>&#8635;</span><ol aria-label='Again and again until the last step'>{again}</ol>"
        "</li></ol>"
    )


def _phase(view: RunView, name: str, *, over: bool, behind: bool) -> str:
    kind = "done" if behind else "now" if name == view.phase and not over else "next"
    is_counted = kind == "now" and view.phase_total and name != "training"
    count = f" {view.phase_done} of {view.phase_total}" if is_counted else ""
    current = " aria-current='step'" if kind == "now" else ""
    return f"<li class='db-{kind}'{current}>{escape(SHORT_PHASES[name])}{escape(count)}</li>"


def _makes_class_images(view: RunView) -> bool:
    return view.config is None or view.config.with_prior_preservation or view.phase == "class images"


def _scores(view: RunView) -> bool:
    return view.phase == "scores" or (view.config is not None and bool(view.config.num_probe_pictures))
