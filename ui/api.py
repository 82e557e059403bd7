"""The page as an API: what its buttons do, for programs, in plain values; files and images are the tabs' events."""

from collections.abc import Mapping
from typing import Any

import gradio as gr

from dreambooth.errors import DreamBoothError
from dreambooth.models.base import STARTER
from dreambooth.records.notes import keep_notes, read_notes
from dreambooth.records.workspace import RunFolder
from ui.boundary import Services, shown
from ui.render import phase_text
from ui.train.actions import whole_steps
from ui.train.programs import Programs, start_sample


def publish(services: Services) -> None:
    """Give programs a named function for everything that can be done with runs."""
    trainer, jobs = Programs(services), services.jobs

    def start_training(
        photo_set: str, base: str = STARTER, preset: str = "recommended", settings: dict[str, Any] | None = None,
        method: str = "full",
    ) -> str:  # fmt: skip
        """Start a run on an uploaded photo set and return its name; `settings` overrides what base and preset set.

        `method` is full (a whole model) or lora (a small file that adds to models like the base).
        """
        return trainer.start_set(photo_set, base, preset, _with_method(settings, method))[0]

    def plan_training(
        photo_set: str, base: str = STARTER, preset: str = "recommended", settings: dict[str, Any] | None = None,
        method: str = "full",
    ) -> dict[str, Any]:  # fmt: skip
        """Return what that run would take: photos, steps, seconds, memory and disk; its command line and settings."""
        return trainer.plan_set(photo_set, base, preset, _with_method(settings, method))

    def training_status(run: str = "") -> dict[str, Any]:
        """Return the status of a run; by default the one that is training, else the newest."""
        return _status(services, _chosen(services, run))

    def stop_training(run: str = "") -> str:
        """Ask a run to save and stop, and return its name; by default the one that is training."""
        name = _training(services, run)
        jobs.stop(name)
        return name

    def save_now(run: str = "") -> str:
        """Ask a run to save its model after this step, and return its name; by default the one that is training."""
        name = _training(services, run)
        jobs.save_now(name)
        return name

    def finish_now(run: str = "") -> str:
        """Ask a run to finish early: a cool-down to rate zero, a save; by default the one that is training."""
        name = _training(services, run)
        jobs.finish_now(name)
        return name

    def score_run(run: str = "") -> dict[str, Any]:
        """Score a run's saved steps and return the recommended one, and why; by default the newest run's."""
        services.check_training()
        name = _chosen(services, run)
        jobs.score(name)
        view = jobs.view(name)
        return {"run": name, "recommended_step": view.recommended_step, "why": view.why_recommended}

    def bleed_report(run: str = "") -> list[dict[str, Any]]:
        """Return what a run changed besides its subject, the most changed prompt first; by default the newest run."""
        services.check_training()
        return [vars(one) for one in jobs.bleed(_chosen(services, run))]

    def sample_now(run: str = "") -> str:
        """Ask a run for samples after this step, and return its name; by default the one that is training."""
        name = _training(services, run)
        jobs.sample_now(name)
        return name

    def resume_training(run: str = "") -> str:
        """Queue a run that ended before its last step, to continue; return its name; by default the newest."""
        services.check_training()
        name = _chosen(services, run)
        jobs.resume(name)
        return name

    def train_more_steps(max_train_steps: int, run: str = "") -> str:
        """Queue a run that has ended to train further, to this many steps in all; return its name.

        By default the newest run. A finished run needs its exact state, which is kept if there is room.
        """
        services.check_training()
        name = _chosen(services, run)
        jobs.train_more(name, whole_steps(max_train_steps))
        return name

    def retry_with_less_memory(run: str) -> str:
        """Start a new run with the settings of one that ran out of memory, changed to need less; return its name."""
        services.check_training()
        return jobs.retry_with_less(run)

    def delete_run(run: str, yes: bool = False) -> dict[str, Any]:
        """Delete a run and everything that the program wrote into its folder; only with `yes`."""
        services.check_training()
        if not yes:
            raise DreamBoothError(f"{run} stays.", "A run is deleted only with yes=True.", "")
        removed = jobs.remove(run)
        return {"run": run, "bytes": removed.num_bytes, "left": [str(path) for path in removed.left]}

    def set_notes(run: str, notes: str = "") -> str:
        """Store notes on a run in its folder, and return them; an empty text removes them."""
        services.check_training()
        keep_notes(services.workspace.run(run), notes)
        return read_notes(services.workspace.run(run))

    def list_runs() -> list[dict[str, Any]]:
        """Return every run, newest first."""
        return [_status(services, run.name) for run in services.workspace.runs()]

    def list_models() -> list[dict[str, str]]:
        """Return every model that can generate, newest steps first."""
        return [{"label": label, "model": value} for label, value in jobs.models()]

    def try_sample() -> str:
        """Start training the bundled sample subject on the starter model, and return the run's name."""
        return start_sample(services)[0]

    for function in (
        start_training, plan_training, training_status, stop_training, finish_now, save_now, sample_now,
        resume_training, train_more_steps, score_run, bleed_report, retry_with_less_memory, delete_run, list_runs,
        list_models, try_sample, set_notes,
    ):  # fmt: skip
        gr.api(shown(function), api_name=function.__name__, concurrency_limit=None)


def _with_method(settings: dict[str, Any] | None, method: str) -> dict[str, Any]:
    """Return the settings including the method; anything but a mapping is refused with all other mistakes."""
    if settings is not None and not isinstance(settings, Mapping):
        return settings
    return {"method": method, **(settings or {})}


def _training(services: Services, run: str) -> str:
    name = run or services.jobs.active()
    if not name:
        raise DreamBoothError("Nothing is training.", "", "")
    return name


def _chosen(services: Services, run: str) -> str:
    name = run or services.jobs.active() or next((run.name for run in services.workspace.runs()), "")
    if not name:
        raise DreamBoothError("There is no run yet.", "", "Start one first.")
    return name


def _status(services: Services, name: str) -> dict[str, Any]:
    view = services.jobs.view(name)
    error = None if view.error is None else {"what": view.error.what, "why": view.error.why, "todo": view.error.todo}
    return {
        "run": view.name,
        "status": view.status,
        "text": phase_text(view),
        "step": view.step,
        "total_steps": view.total_steps,
        "phase": view.phase,
        "seconds_left": view.seconds_left,
        "phase_seconds_left": view.phase_seconds_left,
        "queue_place": view.queue_place,
        "resume_step": view.resume_step,
        "more_from": view.more_from,
        "silent_seconds": round(view.silent_s, 1),
        "loss": view.losses[-1].loss if view.losses else None,
        "steps": view.steps,
        "recommended_step": view.recommended_step,
        "why_recommended": view.why_recommended,
        "models": [str(view.path / str(step)) for step in view.steps],
        "error": error,
        "notes": read_notes(RunFolder(view.path)),
    }
