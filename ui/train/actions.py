"""Actions on the run that is shown: its buttons, as functions of values."""

from typing import Any

import gradio as gr

from dreambooth.config.limits import as_written
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.records.notes import keep_notes, read_notes
from dreambooth.runs.view import RunView
from dreambooth.scoring.recommendation import NOTHING_MEASURED
from ui.address import to
from ui.bases import offered_base
from ui.boundary import QUIET, Services
from ui.events import Answer, on
from ui.render import is_before_steps, panel, phase_text, size_in_words
from ui.train.advice import Advice
from ui.train.panel import announced
from ui.train.plan import changes
from ui.train.runs import RunsTable, runs_list


def whole_steps(number: object) -> int:
    """Return a number of steps from a field or a program; raises ConfigError if it is not a whole number."""
    if isinstance(number, int | float) and not isinstance(number, bool) and number == number // 1:
        return int(number)
    raise ConfigError([FieldProblem("max_train_steps", f"is {as_written(number)}: it must be a whole number.")])


def _which_step(view: RunView) -> str:
    return "its next step" if is_before_steps(view) else "this step"


def _queued_words(view: RunView, otherwise: str) -> str:
    return f"{phase_text(view)}." if view.queue_place else otherwise


class Handlers:
    """The panel's handlers, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._table = RunsTable(services, Advice(services))

    @on("stop.click", "run", "message", api_name="stop_shown_run", **QUIET)
    def stop(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.stop(name)
        if before.status == "queued":
            return panel("The run was removed from the queue.", tone="note")
        if not is_before_steps(before):
            return announced("The run finishes its step, saves, and stops.", "end", before)
        saved = "what it has saved stays" if before.step else "there is nothing to save yet"
        more = "The pictures of the base model are finished first." if before.phase in ("samples", "scores") else ""
        return announced(f"The run stops before its {'next' if before.step else 'first'} step; {saved}.", "end",
                          before, more)  # fmt: skip

    @on("finish_now.click", "run", "message", api_name="finish_shown_run", **QUIET)
    def finish_now(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.finish_now(name)
        why = "This usually gives a better model than stopping abruptly."
        words = "Finishing early: the learning rate ramps down to zero, then the model is saved."
        return announced(words, "saves", before, why)

    @on(
        "score.click", "run run_base", "message", api_name="score_shown_run", api_visibility="private",
        concurrency_limit=1, show_progress_on="scores",
    )  # fmt: skip
    def score(self, name: str, base: str = "", progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        self._services.check_training()
        jobs = self._services.jobs
        progress(None, desc="Scoring")
        scores = jobs.score(
            name, lambda done, total: progress((done, total), "Making pictures to score"),
            base=offered_base(self._services, base) or None,
        )  # fmt: skip
        why = jobs.view(name).why_recommended or NOTHING_MEASURED
        return panel(f"{name} is scored.", f"{why} {scores.note}".strip(), tone="good")

    @on(
        "bleed.click", "run run_base", "message", api_name="bleed_shown_run", api_visibility="private",
        concurrency_limit=1, show_progress_on="bled",
    )  # fmt: skip
    def bleed(self, name: str, base: str = "", progress: gr.Progress = gr.Progress()) -> str:  # noqa: B008
        self._services.check_training()
        progress(None, desc="Measuring what else changed")
        jobs = self._services.jobs
        ranked = jobs.bleed(
            name, lambda done, total: progress((done, total), "Making pictures to compare"),
            base=offered_base(self._services, base) or None,
        )  # fmt: skip
        most = ranked[0].prompt or "a picture without words"
        return panel("See What else it changed, next to the scores.", f"Most of all: {most}.", tone="good")

    @on("note.blur", "run note", "message", api_name="keep_shown_notes", **QUIET)
    def keep_notes(self, name: str, text: str) -> Any:
        """Store the notes on the run; the message says if that failed."""
        run = self._services.workspace.run(name) if name else None
        if run is None or (text or "") == read_notes(run):
            return gr.skip()
        keep_notes(run, text or "")
        return gr.skip()

    @on("save_now.click", "run", "message", api_name="save_shown_run", **QUIET)
    def save_now(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.save_now(name)
        return announced(f"The model is saved after {_which_step(before)}.", "saves", before)

    @on("sample_now.click", "run", "message", api_name="sample_shown_run", **QUIET)
    def sample_now(self, name: str) -> str:
        before = self._services.jobs.view(name)
        self._services.jobs.sample_now(name)
        return announced(f"Sample pictures are made after {_which_step(before)}.", "samples", before)

    @on("resume.click", "run", "message", api_name="resume_shown_run", **QUIET)
    def resume(self, name: str) -> str:
        self._services.check_training()
        before = self._services.jobs.view(name)
        self._services.jobs.resume(name)
        words = _queued_words(self._services.jobs.view(name), "The run continues where it stopped.")
        return announced(words, "steps", before)

    @on("more.click", "run more_steps", "message base", api_name="train_more_shown_run", **QUIET)
    def train_more(self, name: str, num_steps: float | None) -> Answer:
        """Train a run further, to this many steps in all; without its exact state, offer its last step as the base."""
        self._services.check_training()
        jobs = self._services.jobs
        before = jobs.view(name)
        if before.more_from is None and before.steps:
            last = str(before.path / str(before.steps[-1]))
            todo = f"Its step {before.steps[-1]} is now the base model in the form: start a new training from it."
            message = panel(f"{name} cannot be continued.", "Its exact state is gone.", todo, tone="note")
            return {"message": message, "base": gr.Dropdown(value=last)}
        total = whole_steps(num_steps)
        jobs.train_more(name, total)
        words = _queued_words(jobs.view(name), f"The run continues to step {total}.")
        return {"message": announced(words, "steps", before)}

    @on("retry.click", "run", "message place", api_name="retry_shown_run", **QUIET)
    def retry(self, name: str) -> Answer:
        self._services.check_training()
        jobs = self._services.jobs
        new = jobs.retry_with_less(name)
        before, now = jobs.view(name).config, jobs.view(new).config
        changed = changes(before, now) if before and now else ""
        message = panel(f"{new} starts with settings that need less memory.", changed, tone="note")
        return {"message": message, "place": to("train", run=new)}

    @on("delete.click", outputs="sure", api_name="ask_delete_run", **QUIET)
    def ask_to_delete(self) -> Any:
        return gr.Button(visible=True)

    @on("sure.click", "run", "runs_message message table run place sure", api_name="delete_shown_run", **QUIET)
    def delete(self, name: str) -> Answer:
        self._services.check_training()
        removed = self._services.jobs.remove(name)
        left = f"{len(removed.left)} files that do not belong to the run stay in its folder." if removed.left else ""
        message = panel(f"{name} was deleted; {size_in_words(removed.num_bytes)} freed.", left, tone="good")
        others = [run.name for run in self._services.workspace.runs()]
        chosen = gr.Dropdown(value=others[0] if others else None)
        return {
            "runs_message": message, "message": "", "run": chosen, "place": to("train", view="runs"),
            "sure": gr.Button(visible=False), "table": runs_list(self._table.rows()),
        }  # fmt: skip
