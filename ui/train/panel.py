"""The run that is shown: its status, samples, loss and log, updated as they come."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from dreambooth.data.class_images import made_class_images
from dreambooth.errors import DreamBoothError
from dreambooth.forecast.pace import expected_seconds, usual_pace
from dreambooth.models.base import read_card
from dreambooth.models.origin import missing_base
from dreambooth.records.notes import read_notes
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.view import RunView
from dreambooth.scoring.bleed import kept_report
from ui.address import link
from ui.bases import missing_base_field, missing_base_update
from ui.boundary import Services
from ui.concepts.cards import served
from ui.events import Answer, updates_of_unseen
from ui.render import (
    bleed_text,
    is_before_steps,
    log_text,
    panel,
    sample_columns,
    sample_items,
    scores_text,
    status_card,
)
from ui.status_line import STOP
from ui.train import steps
from ui.train.loss_plot import SMOOTHING, loss_plot
from ui.train.plan import run_settings

LIVE = ("queued", "running", "stopping", "paused")
MAX_STEP_COLUMNS = 24
MAX_BEING_MADE = 12
# Their crops take so little of a run's time that they are not counted.
USUAL_PHOTOS = 5
TOY_PICTURES = "Made by the toy model at 64 px. Stable Diffusion 1.5 or SDXL on a GPU makes detailed pictures."
# The components that show a run, in the order in which a browser is updated.
PARTS = (
    "details status verdict making toy losses samples saved log settings scores chart score stop finish_now save_now "
    "sample_now resume more_steps more retry pictures delete sure bleed bled bled_picture run_base message note"
)
LOADING = "<div class='db-status'><span class='db-quiet'>Loading...</span></div>"
Announced = Literal["saves", "samples", "end", "steps"]
UNTIL = re.compile(r"data-until='(\w+) (\w+) ([^']*)'")
STOP_WORDS = {"queued": "Remove from queue"}


def build() -> dict[str, Any]:
    """Lay out the panel, and return its components by name."""
    with gr.Row(elem_classes=["db-view-head"]):
        gr.HTML(f"{link('&larr; All runs', view='runs')}<h2 class='db-spoken'>One run</h2>")
        run = gr.Dropdown([], label="Run", show_label=False, elem_id="run", allow_custom_value=True, container=False)
        gr.HTML(link("New training", view="new", style="db-button"))
    status = gr.HTML(LOADING, elem_id="run-status")
    verdict = gr.HTML(elem_id="run-verdict")
    with gr.Row(elem_id="run-buttons"):
        stop = gr.Button(STOP, visible=False, elem_id="stop")
        finish_now = gr.Button("Finish now", visible=False, elem_id="finish-now")
        save_now = gr.Button("Save now", visible=False, elem_id="save-now")
        sample_now = gr.Button("Sample now", visible=False, elem_id="sample-now")
        resume = gr.Button("Resume", variant="primary", visible=False, elem_id="resume")
        more_steps = gr.Number(
            label="Total steps", precision=0, visible=False, elem_id="more-steps", scale=0, min_width=140,
        )  # fmt: skip
        more = gr.Button("Train more steps", visible=False, elem_id="more")
        retry = gr.Button("Retry with less memory", variant="primary", visible=False, elem_id="retry")
        pictures = gr.Button("Generate pictures with it", variant="primary", visible=False, elem_id="make-pictures")
    message = gr.HTML(elem_id="run-message")
    making = gr.HTML(elem_id="run-making")
    with gr.Column(visible=False, elem_id="run-details") as details:
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                gr.HTML("<h3>Samples <span class='db-hint'>the same seeds at each step</span></h3>")
                toy = gr.HTML(elem_id="run-toy")
                samples = gr.Gallery(
                    label="Samples", show_label=False, columns=4, height="auto", elem_id="samples",
                    object_fit="contain", interactive=False, buttons=["fullscreen", "download"], visible=False,
                )  # fmt: skip
                saved = gr.HTML(elem_id="run-steps", js_on_load=steps.STEPS_JS)
            with gr.Column(scale=5, min_width=320):
                gr.HTML("<h3>Loss <span class='db-hint'>noise is normal here; judge by the samples</span></h3>")
                losses = gr.HTML(loss_plot([], 0), elem_id="losses")
                with gr.Row(equal_height=True):
                    smoothing = gr.Slider(0, 0.99, value=SMOOTHING, step=0.01, label="Smoothing", elem_id="smoothing")
                    log_scale = gr.Checkbox(False, label="Log scale", elem_id="log-scale", scale=0, min_width=130)
                scores = gr.HTML(elem_id="run-scores")
                chart = gr.HTML(elem_id="scores-chart")
                base = missing_base_field("run-base")
                score = gr.Button("Score this run", visible=False, elem_id="score-run")
                bleed = gr.Button("See what else it changed", visible=False, elem_id="bleed-run")
                bled = gr.HTML(elem_id="run-bleed")
                bled_picture = gr.Image(
                    label="The base model and the trained model side by side", show_label=False, interactive=False,
                    visible=False, elem_id="bleed-picture", buttons=["download", "fullscreen"],
                )  # fmt: skip
        note = _note_field()
        gr.HTML("<h3>Log</h3>")
        log = gr.HTML(log_text(""), elem_id="log")
        with gr.Accordion("Settings and actions of this run", open=False, elem_id="run-more"):
            settings = gr.HTML(elem_id="run-settings")
            with gr.Row():
                reuse = gr.Button("Copy these settings into the form", elem_id="reuse")
                delete = gr.Button("Delete this run", elem_id="delete-run")
            # Below, so that it is not under the pointer of a double click.
            sure = gr.Button("Delete it with everything it saved", variant="stop", visible=False, elem_id="delete-sure")
    return {
        "run": run, "details": details, "status": status, "making": making, "toy": toy,
        "verdict": verdict, "saved": saved, "smoothing": smoothing, "log_scale": log_scale,
        "losses": losses, "samples": samples, "log": log,
        "settings": settings, "scores": scores, "chart": chart, "score": score, "stop": stop,
        "finish_now": finish_now, "save_now": save_now, "sample_now": sample_now, "resume": resume,
        "more_steps": more_steps, "more": more, "retry": retry, "pictures": pictures, "delete": delete, "sure": sure,
        "bleed": bleed, "bled": bled, "bled_picture": bled_picture, "run_base": base, "message": message,
        "reuse": reuse, "note": note,
    }  # fmt: skip


def _note_field() -> gr.Textbox:
    return gr.Textbox(
        label="Notes on this run", lines=2, max_lines=12, elem_id="run-note",
        placeholder="What you tried, and what came of it", info="Kept in the run's folder.",
    )  # fmt: skip


# What is shown -------------------------------------------------------------------------------------------------------


def run_values(
    services: Services, view: RunView | None, name: str = "", smoothing: float = SMOOTHING, log_scale: bool = False
) -> dict[str, Any]:
    """Return what the panel shows of a run, as values that can be compared; for one that does not exist its name."""
    if view is None:
        return dict.fromkeys(("losses", "samples", "making"), ()) | {
            "toy": "", "verdict": "", "saved": "",
            "details": False, "status": status_card(None, name=name), "log": log_text(""), "settings": "", "live": "",
            "resume": None, "more": None, "retry": False, "pictures": False, "deletable": False, "asked": None,
            "scores": "", "chart": "", "unscored": False, "bleedable": False, "bleed": None, "standing": {},
            "missing_base": "", "notes": "",
        }  # fmt: skip
    changed = kept_report(RunFolder(view.path))
    return {
        "details": True,
        "making": _being_made(services, view),
        "toy": toy_notice(view),
        "status": status_card(view, services.device(), whole_s=expected_whole(services, view)),
        "losses": loss_plot(
            view.losses, view.total_steps, view.steps, view.at_fixed_noise, smoothing=smoothing, log_scale=log_scale
        ),
        "samples": _sample_rows(view),
        "log": log_text(view.log_tail),
        "settings": "" if view.config is None else run_settings(view.config),
        "scores": scores_text(view),
        "chart": steps.score_plot(view.scores.steps, view.recommended_step) if view.scores else "",
        "unscored": bool(view.steps) and view.scores is None and view.status not in LIVE,
        "bleedable": bool(view.steps) and view.status not in LIVE,
        "bleed": changed,
        "verdict": steps.verdict(view, changed),
        "saved": steps.steps_list(view),
        "missing_base": _missing_base(services, view),
        "notes": read_notes(RunFolder(view.path)),
        "live": view.status,
        "resume": view.resume_step,
        "more": _more_steps(view),
        "retry": view.error is not None and view.error.cause == "out of memory",
        "pictures": bool(view.steps) and view.status not in LIVE,
        "deletable": view.status not in LIVE or view.status == "paused",
        # Another run, or another status, cancels the question.
        "asked": (view.name, view.status),
        "standing": standing(view),
    }


def standing(view: RunView) -> dict[Announced, str]:
    """Return how far the run is in each thing that a button can announce."""
    goes_on = view.status in LIVE
    reached: dict[Announced, Any] = {
        "saves": len(view.steps) if goes_on else "over", "samples": len(view.samples) if goes_on else "over",
        "end": goes_on, "steps": goes_on and not is_before_steps(view),
    }  # fmt: skip
    return {thing: f"{value} {view.name}" for thing, value in reached.items()}


def run_updates(services: Services, values: Mapping[str, Any], seen: Mapping[str, Any], message: str) -> Answer:
    """Return the updates of what the page has not seen of a run yet.

    A message that announced something is removed when that has happened.
    """
    updates: dict[str, Callable[[Any], Answer]] = {
        "details": lambda is_there: {"details": gr.Column(visible=is_there)},
        "status": lambda text: {"status": text},
        "making": lambda paths: {"making": being_made(services, paths)},
        "toy": lambda text: {"toy": text},
        "losses": lambda plot: {"losses": plot or loss_plot([], 0)},
        "samples": lambda rows: {"samples": _gallery(services, *rows) if rows else gr.Gallery([])},
        "log": lambda text: {"log": text},
        "settings": lambda table: {"settings": table},
        "notes": lambda text: {"note": text},
        "scores": lambda text: {"scores": text},
        "chart": lambda drawn: {"chart": drawn},
        "verdict": lambda text: {"verdict": text},
        "saved": lambda listed: {"saved": listed},
        "unscored": lambda is_unscored: {"score": gr.Button(visible=is_unscored)},
        "live": _buttons_of_a_live_run,
        "resume": lambda step: {"resume": gr.Button(_resume_label(step), visible=step is not None)},
        "more": lambda total: {
            "more_steps": gr.Number(value=total, visible=total is not None),
            "more": gr.Button(visible=total is not None),
        },
        "retry": lambda is_of_use: {"retry": gr.Button(visible=is_of_use)},
        "pictures": lambda are_there: {"pictures": gr.Button(visible=are_there)},
        "asked": lambda _: {"delete": gr.Button(visible=values["deletable"]), "sure": gr.Button(visible=False)},
        "bleedable": lambda is_bleedable: {"bleed": gr.Button(visible=is_bleedable)},
        "bleed": lambda report: {
            "bled": bleed_text(report) if report else "",
            "bled_picture": _picture(services, report and report.picture),
        },
        "missing_base": lambda missing: {"run_base": missing_base_update(services, missing)},
    }
    answer = updates_of_unseen(updates, values, seen)
    return answer | {"message": ""} if _is_past(message, values["standing"]) else answer


def _buttons_of_a_live_run(status: str) -> Answer:
    is_running = status == "running"
    return {
        "stop": gr.Button(STOP_WORDS.get(status, STOP), visible=status in ("queued", "running")),
        **{name: gr.Button(visible=is_running) for name in ("finish_now", "save_now", "sample_now")},
    }


def _resume_label(step: int | None) -> str:
    return "Start again" if step == 0 else f"Resume at step {step}"


def _sample_rows(view: RunView) -> tuple[int, tuple[tuple[Path, str], ...]]:
    """Return how many samples make a row, and all of them: a column for each step, or for each of several prompts."""
    shown = _newest_columns(view.samples)
    prompts = view.config.sample_prompts if view.config else []
    return sample_columns(shown, prompts), tuple(sample_items(shown, prompts))


def _gallery(services: Services, columns: int, samples: Sequence[tuple[Path, str]]) -> Any:
    """Return the update of the samples."""
    copies = services.shown.copies(path for path, _ in samples)
    return gr.Gallery([(copies[path], caption) for path, caption in samples if path in copies], columns=columns or 1)


def _picture(services: Services, path: Path | None) -> Any:
    """Return the update of an image, hidden while there is none."""
    copy = next(iter(services.shown.copies([path] if path else []).values()), None)
    return gr.Image(copy, visible=copy is not None)


def _missing_base(services: Services, view: RunView) -> str:
    """Return the name of the base of the run's LoRAs if it is not on this machine, else an empty string."""
    if not view.steps or view.status in LIVE:
        return ""
    return missing_base(str(RunFolder(view.path).step_folder(view.steps[-1])), services.workspace.models_dir)


def _more_steps(view: RunView) -> int | None:
    """Return the proposed total for a run that has ended, half as many steps again; None if it cannot be extended."""
    is_over = view.status not in LIVE and bool(view.steps)
    return max(view.step, view.total_steps) * 3 // 2 if is_over else None


def announced(what: str, thing: Announced, view: RunView, why: str = "") -> str:
    """Return a note that stands until the run has progressed in this respect."""
    return panel(what, why, tone="note", until=f"{thing} {standing(view)[thing]}")


def _is_past(message: str, standing: Mapping[Any, str]) -> bool:
    """Return whether what a message announced of this run has happened."""
    until = UNTIL.search(message or "")
    if until is None:
        return False
    thing, then, name = until[1], until[2], html.unescape(until[3])
    now, _, of_run = standing.get(thing, "").partition(" ")
    return of_run == name and now != then


def expected_whole(services: Services, view: RunView) -> float | None:
    """Return how long the whole run takes, as a similar one did here; None if none was timed, or steps tell it."""
    if view.config is None or view.seconds_left is not None or view.status != "running":
        return None
    pace = usual_pace(services.workspace, view.config)
    num_class_images = view.config.num_class_images * len(view.config.concepts) * view.config.with_prior_preservation
    return None if pace is None else expected_seconds(pace, view.config, USUAL_PHOTOS, num_class_images)


def _being_made(services: Services, view: RunView) -> tuple[Path, ...]:
    """Return the newest class images while the run generates them."""
    if view.phase != "class images" or view.status not in ("running", "stopping") or view.config is None:
        return ()
    found: list[Path] = []
    for concept in view.config.concepts:
        found += made_class_images(services.workspace, concept.class_prompt or "")
    return tuple(found[-MAX_BEING_MADE:])


def being_made(services: Services, paths: Sequence[Path]) -> str:
    """Return the class images generated so far."""
    if not paths:
        return ""
    images = "".join(f"<img src='{served(services.shown.copy(path))}' alt=''>" for path in paths)
    return (
        "<h3>Class images <span class='db-hint'>made by the base model before the first step</span></h3>"
        f"<p class='db-made'>{images}</p>"
    )


def toy_notice(view: RunView) -> str:
    """Return the note beside a toy model's images that a real one makes better ones."""
    try:
        is_toy = view.config is not None and read_card(view.config.pretrained_model_name_or_path).is_toy
    except DreamBoothError:
        return ""
    return f"<p class='db-hint'>{TOY_PICTURES}</p>" if is_toy else ""


def _newest_columns(samples: dict[int, list[Any]]) -> dict[int, list[Any]]:
    """Return the base's samples and those of the newest steps: more columns would be too small."""
    steps = sorted(samples)
    kept = steps if len(steps) <= MAX_STEP_COLUMNS else [steps[0], *steps[-MAX_STEP_COLUMNS + 1 :]]
    return {step: samples[step] for step in kept}
