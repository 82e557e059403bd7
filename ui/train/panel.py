"""The run that is shown: its status, samples, loss and log as they come, and what can be done with it."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gradio as gr

from dreambooth.config.limits import shortly
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.jobs import RunView
from dreambooth.scoring.bleed import BleedReport, kept_report
from dreambooth.scoring.recommendation import NOTHING_MEASURED
from ui.boundary import QUIET, Services, shown
from ui.render import (
    bleed_text,
    is_before_steps,
    log_text,
    panel,
    sample_items,
    scores_text,
    size_in_words,
    status_card,
)
from ui.train.loss_plot import loss_plot
from ui.train.plan import changes, run_settings

LIVE = ("queued", "running", "stopping", "paused")
MAX_STEP_COLUMNS = 24
STOP = "Stop & save"
Announced = Literal["saves", "samples", "end", "steps"]
UNTIL = re.compile(r"data-until='(\w+) (\w+) ([^']*)'")
STOP_WORDS = {"queued": "Take it out of the line"}


@dataclass(frozen=True)
class RunPanel:
    """The panel's components."""

    run: gr.Dropdown
    details: gr.Column
    status: gr.HTML
    stop: gr.Button
    finish_now: gr.Button
    save_now: gr.Button
    sample_now: gr.Button
    resume: gr.Button
    more_steps: gr.Number
    more: gr.Button
    retry: gr.Button
    pictures: gr.Button
    message: gr.HTML
    samples: gr.Gallery
    losses: gr.HTML
    scores: gr.HTML
    chart: gr.Image
    score: gr.Button
    bleed: gr.Button
    bled: gr.HTML
    bled_picture: gr.Image
    log: gr.HTML
    settings: gr.HTML
    reuse: gr.Button
    delete: gr.Button
    sure: gr.Button

    @property
    def parts(self) -> list[Any]:
        """Return what shows the run, in the order of `run_updates`."""
        return [
            self.details, self.status, self.losses, self.samples, self.log, self.settings, self.scores, self.chart,
            self.score, self.stop, self.finish_now, self.save_now, self.sample_now, self.resume,
            self.more_steps, self.more, self.retry, self.pictures, self.delete, self.sure, self.bleed, self.bled,
            self.bled_picture, self.message,
        ]  # fmt: skip


def build() -> RunPanel:
    """Lay out the panel; `connect` gives it life."""
    run = gr.Dropdown([], label="Run shown", elem_id="run", allow_custom_value=True)
    status = gr.HTML(status_card(None), elem_id="run-status")
    with gr.Row(elem_id="run-buttons"):
        stop = gr.Button(STOP, visible=False, elem_id="stop")
        finish_now = gr.Button("Finish now", visible=False, elem_id="finish-now")
        save_now = gr.Button("Save now", visible=False, elem_id="save-now")
        sample_now = gr.Button("Sample now", visible=False, elem_id="sample-now")
        resume = gr.Button("Resume", variant="primary", visible=False, elem_id="resume")
        more_steps = gr.Number(
            label="Steps in all", precision=0, visible=False, elem_id="more-steps", scale=0, min_width=140,
        )  # fmt: skip
        more = gr.Button("Train more steps", visible=False, elem_id="more")
        retry = gr.Button("Retry with the plan that fits", variant="primary", visible=False, elem_id="retry")
        pictures = gr.Button("Make pictures with it", variant="primary", visible=False, elem_id="make-pictures")
    message = gr.HTML(elem_id="run-message")
    with gr.Column(visible=False, elem_id="run-details") as details:
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=320):
                gr.HTML("<h3>What it makes <span class='db-hint'>each row one seed, from step to step</span></h3>")
                samples = gr.Gallery(
                    label="Samples", show_label=False, columns=4, height="auto", elem_id="samples",
                    object_fit="contain", interactive=False, buttons=["fullscreen", "download"],
                )  # fmt: skip
            with gr.Column(scale=5, min_width=320):
                gr.HTML("<h3>Loss <span class='db-hint'>it wobbles, that is normal: judge by the pictures</span></h3>")
                losses = gr.HTML(loss_plot([], 0), elem_id="losses")
                scores = gr.HTML(elem_id="run-scores")
                chart = gr.Image(
                    label="Likeness and drift of the saved steps", show_label=False, interactive=False, visible=False,
                    elem_id="scores-chart", buttons=["download", "fullscreen"],
                )  # fmt: skip
                score = gr.Button("Score this run", visible=False, elem_id="score-run")
                bleed = gr.Button("See what else it changed", visible=False, elem_id="bleed-run")
                bled = gr.HTML(elem_id="run-bleed")
                bled_picture = gr.Image(
                    label="The base and the taught model side by side", show_label=False, interactive=False,
                    visible=False, elem_id="bleed-picture", buttons=["download", "fullscreen"],
                )  # fmt: skip
        gr.HTML("<h3>Log</h3>")
        log = gr.HTML(log_text(""), elem_id="log")
        with gr.Accordion("Settings of this run, and what to do with it", open=False, elem_id="run-more"):
            settings = gr.HTML(elem_id="run-settings")
            with gr.Row():
                reuse = gr.Button("Take these settings over into the form", elem_id="reuse")
                delete = gr.Button("Delete this run", elem_id="delete-run")
                sure = gr.Button(
                    "Yes, delete it and all it saved", variant="stop", visible=False, elem_id="delete-sure"
                )
    return RunPanel(
        run, details, status, stop, finish_now, save_now, sample_now, resume, more_steps, more, retry, pictures,
        message, samples, losses, scores, chart, score, bleed, bled, bled_picture, log, settings, reuse, delete, sure,
    )  # fmt: skip


# What is shown -------------------------------------------------------------------------------------------------------


def run_values(services: Services, view: RunView | None) -> dict[str, Any]:
    """Return what each of `RunPanel.parts` shows, as values that can be compared."""
    if view is None:
        return dict.fromkeys(("losses", "samples"), ()) | {
            "details": False, "status": status_card(None), "log": log_text(""), "settings": "", "live": "",
            "resume": None, "more": None, "retry": False, "pictures": False, "deletable": False, "asked": None,
            "scores": "", "chart": None, "unscored": False, "bleedable": False, "bleed": None, "standing": {},
        }  # fmt: skip
    return {
        "details": True,
        "status": status_card(view, services.device()),
        "losses": loss_plot(view.losses, view.total_steps, view.steps, view.at_fixed_noise),
        "samples": tuple(sample_items(_newest_columns(view.samples))),
        "log": log_text(view.log_tail),
        "settings": "" if view.config is None else run_settings(view.config),
        "scores": scores_text(view),
        "chart": _chart(view),
        "unscored": bool(view.steps) and view.scores is None and view.status not in LIVE,
        "bleedable": bool(view.steps) and view.status not in LIVE,
        "bleed": kept_report(RunFolder(view.path)),
        "live": view.status,
        "resume": view.resume_step,
        "more": _more_steps(view),
        "retry": view.error is not None and view.error.cause == "out of memory",
        "pictures": bool(view.steps) and view.status not in LIVE,
        "deletable": view.status not in LIVE or view.status == "paused",
        # Another run, or another standing of it, takes the question back.
        "asked": (view.name, view.status),
        "standing": _standing(view),
    }


def _standing(view: RunView) -> dict[Announced, str]:
    """Return how far the run is in each thing that a button can announce."""
    goes_on = view.status in LIVE
    reached: dict[Announced, Any] = {
        "saves": len(view.steps) if goes_on else "over", "samples": len(view.samples) if goes_on else "over",
        "end": goes_on, "steps": goes_on and not is_before_steps(view),
    }  # fmt: skip
    return {thing: f"{value} {view.name}" for thing, value in reached.items()}


def run_updates(services: Services, values: Mapping[str, Any], seen: Mapping[str, Any], message: str) -> list[Any]:
    """Return the updates of `RunPanel.parts`, leaving out what the page has seen already.

    A message that announced something goes when that is there.
    """

    def unless_seen(name: str, update: Any) -> Any:
        return gr.skip() if name in seen and seen[name] == values[name] else update

    pictures = [(services.shown.copy(path), caption) for path, caption in values["samples"]]
    columns = len({caption for _, caption in values["samples"]}) or 1
    live, resume = values["live"], values["resume"]
    chart = services.shown.copy(values["chart"][0]) if values["chart"] else None
    again = "Start again" if resume == 0 else f"Resume at step {resume}"
    return [
        unless_seen("details", gr.Column(visible=values["details"])),
        unless_seen("status", values["status"]),
        unless_seen("losses", values["losses"] or loss_plot([], 0)),
        unless_seen("samples", gr.Gallery(value=pictures, columns=columns)),
        unless_seen("log", values["log"]),
        unless_seen("settings", values["settings"]),
        unless_seen("scores", values["scores"]),
        unless_seen("chart", gr.Image(value=chart, visible=chart is not None)),
        unless_seen("unscored", gr.Button(visible=values["unscored"])),
        unless_seen("live", gr.Button(STOP_WORDS.get(live, STOP), visible=live in ("queued", "running"))),
        *(unless_seen("live", gr.Button(visible=live == "running")) for _ in range(3)),
        unless_seen("resume", gr.Button(again, visible=resume is not None)),
        unless_seen("more", gr.Number(value=values["more"], visible=values["more"] is not None)),
        unless_seen("more", gr.Button(visible=values["more"] is not None)),
        unless_seen("retry", gr.Button(visible=values["retry"])),
        unless_seen("pictures", gr.Button(visible=values["pictures"])),
        unless_seen("asked", gr.Button(visible=values["deletable"])),
        unless_seen("asked", gr.Button(visible=False)),
        unless_seen("bleedable", gr.Button(visible=values["bleedable"])),
        unless_seen("bleed", bleed_text(values["bleed"]) if values["bleed"] else ""),
        unless_seen("bleed", _bled_picture(services, values["bleed"])),
        "" if _is_past(message, values["standing"]) else gr.skip(),
    ]


def _more_steps(view: RunView) -> int | None:
    """Return the total that is proposed for a run that has ended, half as many steps again; None where it cannot be."""
    is_over = view.status not in LIVE and bool(view.steps)
    return max(view.step, view.total_steps) * 3 // 2 if is_over else None


def _announced(what: str, thing: Announced, view: RunView, why: str = "") -> str:
    """Return a note that stands until the run is further in this thing than it is now."""
    return panel(what, why, tone="note", until=f"{thing} {_standing(view)[thing]}")


def _is_past(message: str, standing: Mapping[Any, str]) -> bool:
    """Return whether what a message announced of this run has come."""
    until = UNTIL.search(message or "")
    if until is None:
        return False
    thing, then, name = until[1], until[2], html.unescape(until[3])
    now, _, of_run = standing.get(thing, "").partition(" ")
    return of_run == name and now != then


def _bled_picture(services: Services, report: BleedReport | None) -> Any:
    there = report is not None and report.picture.is_file()
    return gr.Image(value=services.shown.copy(report.picture) if report and there else None, visible=there)


def _chart(view: RunView) -> tuple[Path, int] | None:
    """Return the picture of the scores and when it was drawn, which tells a page that there is a newer one."""
    path = RunFolder(view.path).scores_chart_path
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return None


def _newest_columns(samples: dict[int, list[Any]]) -> dict[int, list[Any]]:
    """Return the base's samples and those of the newest steps: more columns than that show nothing."""
    steps = sorted(samples)
    kept = steps if len(steps) <= MAX_STEP_COLUMNS else [steps[0], *steps[-MAX_STEP_COLUMNS + 1 :]]
    return {step: samples[step] for step in kept}


# Events --------------------------------------------------------------------------------------------------------------


def connect(parts: RunPanel, services: Services) -> None:
    """Join the panel's buttons to what they do."""
    handlers = Handlers(services)
    quiet = QUIET
    for button, act, name in (
        (parts.stop, handlers.stop, "stop_shown_run"),
        (parts.finish_now, handlers.finish_now, "finish_shown_run"),
        (parts.save_now, handlers.save_now, "save_shown_run"),
        (parts.sample_now, handlers.sample_now, "sample_shown_run"),
        (parts.resume, handlers.resume, "resume_shown_run"),
    ):
        button.click(act, parts.run, parts.message, api_name=name, **quiet)
    parts.score.click(
        handlers.score, parts.run, parts.message, api_name="score_shown_run", api_visibility="private",
        concurrency_limit=1, show_progress_on=parts.scores,
    )  # fmt: skip
    parts.bleed.click(
        handlers.bleed, parts.run, parts.message, api_name="bleed_shown_run", api_visibility="private",
        concurrency_limit=1, show_progress_on=parts.bled,
    )  # fmt: skip
    parts.retry.click(handlers.retry, parts.run, [parts.message, parts.run], api_name="retry_shown_run", **quiet)
    parts.delete.click(lambda: gr.Button(visible=True), None, parts.sure, api_name="ask_delete_run", **quiet)
    parts.sure.click(
        handlers.delete, parts.run, [parts.message, parts.run, parts.sure], api_name="delete_shown_run", **quiet
    )


def whole_steps(number: object) -> int:
    """Return a number of steps as a field or a program gives it; raises ConfigError for what is no whole number."""
    if isinstance(number, int | float) and not isinstance(number, bool) and number == number // 1:
        return int(number)
    raise ConfigError([FieldProblem("max_train_steps", f"is {shortly(number)}: it must be a whole number.")])


def _which_step(view: RunView) -> str:
    return "its next step" if is_before_steps(view) else "this step"


class Handlers:
    """What the panel does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.stop = shown(self._stop)
        self.finish_now = shown(self._finish_now)
        self.score, self.bleed = shown(self._score), shown(self._bleed)
        self.save_now = shown(self._save_now)
        self.sample_now = shown(self._sample_now)
        self.resume = shown(self._resume)
        self.train_more = shown(self._train_more)
        self.retry = shown(self._retry)
        self.delete = shown(self._delete)

    def _stop(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.stop(name)
        if before.status == "queued":
            return panel("It was taken out of the line.", tone="note")
        if not is_before_steps(before):
            return _announced("The run finishes its step, saves, and stops.", "end", before)
        saved = "what it has saved stays" if before.step else "there is nothing to save yet"
        looks = "Pictures of the untaught base are made to their end." if before.phase in ("samples", "scores") else ""
        return _announced(f"The run stops before its {'next' if before.step else 'first'} step: {saved}.", "end",
                          before, looks)  # fmt: skip

    def _finish_now(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.finish_now(name)
        why = "A model that ends at rate zero is better than one stopped amid its steps."
        words = "The run ends well: its learning rate falls to zero over a few steps, then it saves."
        return _announced(words, "end", before, why)

    def _score(self, name: str, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        self._services.check_training()
        jobs = self._services.jobs
        progress(None, desc="Scoring")
        scores = jobs.score(name, lambda done, total: progress((done, total), "Making pictures to score"))
        why = jobs.view(name).why_recommended or NOTHING_MEASURED
        return panel(f"{name} is scored.", f"{why} {scores.note}".strip(), tone="good")

    def _bleed(self, name: str, progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        self._services.check_training()
        progress(None, desc="Looking for what else changed")
        jobs = self._services.jobs
        ranked = jobs.bleed(name, lambda done, total: progress((done, total), "Making pictures to compare"))
        most = ranked[0].prompt or "a picture without words"
        return panel("What else it changed stands beside the scores.", f"Most of all: {most}.", tone="good")

    def _save_now(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.save_now(name)
        return _announced(f"The model is saved after {_which_step(before)}.", "saves", before)

    def _sample_now(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.sample_now(name)
        return _announced(f"Sample pictures are made after {_which_step(before)}.", "samples", before)

    def _resume(self, name: str) -> str:
        self._services.check_training()
        before = self._services.jobs.view(name)
        self._services.jobs.resume(name)
        place = self._services.jobs.view(name).queue_place
        words = f"It waits in line, at place {place}." if place else "The run goes on where it was."
        return _announced(words, "steps", before)

    def _train_more(self, name: str, num_steps: float | None) -> tuple[str, Any]:
        """Train a run further, to this many steps in all; without its exact state, offer its last step as the base."""
        self._services.check_training()
        jobs = self._services.jobs
        before = jobs.view(name)
        if before.more_from is None and before.steps:
            last = str(before.path / str(before.steps[-1]))
            todo = f"Its step {before.steps[-1]} is the base model of the form now: start a new training from it."
            return panel(f"{name} cannot go on.", "Its exact state is gone.", todo, tone="note"), gr.Dropdown(
                value=last
            )
        total = whole_steps(num_steps)
        jobs.train_more(name, total)
        place = jobs.view(name).queue_place
        words = f"It waits in line, at place {place}." if place else f"The run goes on to step {total}."
        return _announced(words, "steps", before), gr.skip()

    def _retry(self, name: str) -> tuple[str, Any]:
        self._services.check_training()
        jobs = self._services.jobs
        new = jobs.retry_with_less(name)
        before, now = jobs.view(name).config, jobs.view(new).config
        changed = changes(before, now) if before and now else ""
        return panel(f"{new} begins, with settings that need less memory.", changed, tone="note"), gr.Dropdown(
            value=new
        )

    def _delete(self, name: str) -> tuple[str, Any, Any]:
        self._services.check_training()
        removed = self._services.jobs.remove(name)
        left = f"{len(removed.left)} files that are not its own stay in its folder." if removed.left else ""
        told = panel(f"{name} was deleted: {size_in_words(removed.num_bytes)} are free.", left, tone="good")
        others = [run.name for run in self._services.workspace.runs()]
        return told, gr.Dropdown(value=others[0] if others else None), gr.Button(visible=False)
