"""The page as a whole: the header, the four tabs, what keeps them up to date, and the functions of its API."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.errors import DreamBoothError
from dreambooth.hardware import device_summary
from dreambooth.jobs import Jobs, RunView
from dreambooth.models.base import STARTER
from dreambooth.settings import Settings
from dreambooth.workspace import Workspace
from ui import concepts_tab, convert_tab, generate_tab, train_tab
from ui.boundary import Page, Services, Shown, shown
from ui.render import error_panel, header, phase_text

BUSY_POLL_S, IDLE_POLL_S = 1.0, 5.0
DEVICE_POLL_S = 10.0
CACHE_SWEEP_S, CACHE_AGE_S = 3600, 86400
ONE_HOUSEHOLD = "One app, one household: whoever can open this page sees every run, photo and picture in it."


def build_page(
    jobs: Jobs,
    workspace: Workspace,
    settings: Settings,
    copies_dir: Path,
    training_refusal: DreamBoothError | None = None,
) -> gr.Blocks:
    """Return the page; `copies_dir` is a temporary folder for the copies of pictures that browsers are given."""
    services = Services(jobs, workspace, settings, Shown(copies_dir), training_refusal)
    # A download is then sent as it lies there instead of being copied into Gradio's cache first.
    gr.set_static_paths([workspace.exports_dir])
    page = Page(title="DreamBooth", analytics_enabled=False, delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S), fill_width=True)
    with page:
        top = gr.HTML(header("", None, settings.data_dir, keeps_files(settings)), elem_id="header")
        with gr.Tabs(selected="concepts") as tabs:
            with gr.Tab("Upload & Concepts", id="concepts"):
                concepts = concepts_tab.build()
            with gr.Tab("Train", id="train"):
                train = train_tab.build(services)
            with gr.Tab("Convert", id="convert"):
                convert = convert_tab.build(services)
            with gr.Tab("Generate", id="generate"):
                generate = generate_tab.build(services)
        gr.HTML(f"<p class='db-hint' id='one-household'>{ONE_HOUSEHOLD}</p>")
        if training_refusal is not None:
            gr.HTML(error_panel(training_refusal), elem_id="training-refusal")
        concepts_tab.connect(concepts, services, train.fields["resolution"])
        train_tab.connect(
            train, services, photo_set=concepts.photo_set, kind=concepts.kind,
            prompts=[concepts.instance_prompt, concepts.class_prompt],
        )  # fmt: skip
        convert_tab.connect(convert, services)
        generate_tab.connect(generate, services, page)
        _connect_whole(page, services, top, tabs, concepts, train, convert, generate)
        _publish(services)
    return page


def keeps_files(settings: Settings) -> bool:
    """Return whether the data folder survives a restart of the machine."""
    if settings.drive_dir is not None:
        return True
    if settings.on_space:
        return settings.data_dir.is_relative_to("/data")
    return not settings.on_colab or settings.data_dir.is_relative_to("/content/drive")


# Keeping up to date --------------------------------------------------------------------------------------------------


def _connect_whole(
    page: gr.Blocks,
    services: Services,
    top: gr.HTML,
    tabs: gr.Tabs,
    concepts: concepts_tab.ConceptsTab,
    train: train_tab.TrainTab,
    convert: convert_tab.ConvertTab,
    generate: generate_tab.GenerateTab,
) -> None:
    quiet: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
    follower = Follower(services)
    seen, timer = gr.State({}), gr.Timer(BUSY_POLL_S)
    followed = [top, train.run, *train.run_parts, convert.model, generate.model, timer, seen]
    # A fresh page has seen nothing, whatever the session remembers: a reload is sent everything.
    gr.on([timer.tick, train.run.input], follower.look, [train.run, seen], followed, api_name="look", **quiet)
    page.load(follower.first_look, None, [*followed, train.settings], api_name="first_look", **quiet)

    handlers = concepts_tab.Handlers(services)
    page.load(shown(handlers.newest), train.fields["resolution"], concepts.contents, api_name="newest_photos", **quiet)
    concepts.go_on.click(lambda: gr.Tabs(selected="train"), None, tabs, api_name="go_on", **quiet)

    def sample() -> list[Any]:
        name, config = _start_sample(services)
        contents = handlers.contents(concepts_tab.SAMPLE_SET, config.resolution)
        shown_run = [gr.Dropdown(value=name), train_tab.folded(True)]
        return [gr.Tabs(selected="train"), *shown_run, STARTER, *contents]

    started = [tabs, train.run, train.settings, train.base, *concepts.contents]
    concepts.sample.click(shown(sample), None, started, api_name="sample_button", **quiet)


class Follower:
    """Reads the runs from disk for every open page, and sends each page what it has not seen."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._device, self._device_read_s = "", 0.0
        self.look = shown(self._look)

    def first_look(self) -> list[Any]:
        """Return everything, for a page that was just opened: the run that trains, else the newest."""
        return [*self.look(None, {}), train_tab.folded(bool(self._services.jobs.active()))]

    def _look(self, name: str | None, seen: dict[str, Any]) -> list[Any]:
        active = self._services.jobs.active()
        if not seen and not name:
            # On a slow machine the timer's first look can come before the page's own: both choose the same run.
            name = active or next((run.name for run in self._services.workspace.runs()), "")
        active_view = self._view(active)
        view = active_view if name == active else self._view(name)
        models = tuple(self._services.jobs.models())
        values: dict[str, Any] = {
            "header": header(
                self._device_line(), active_view, self._services.settings.data_dir, keeps_files(self._services.settings)
            ),
            "runs": tuple(run.name for run in self._services.workspace.runs()),
            "run": name,
            "models": models,
            "convertible": tuple(convert_tab.convertible(self._services)),
            "poll_s": BUSY_POLL_S if active else IDLE_POLL_S,
            **train_tab.run_values(self._services, view),
        }

        def unless_seen(part: str, update: Callable[[], Any]) -> Any:
            return gr.skip() if part in seen and seen[part] == values[part] else update()

        first: dict[str, Any] = {} if seen else {"value": name or None}
        return [
            unless_seen("header", lambda: values["header"]),
            unless_seen("runs", lambda: gr.Dropdown(choices=list(values["runs"]), **first)),
            *train_tab.run_updates(self._services, values, seen),
            unless_seen("convertible", lambda: _newest_first(values["convertible"], seen.get("convertible", ()))),
            unless_seen("models", lambda: _newest_first(models, seen.get("models", ()))),
            unless_seen("poll_s", lambda: gr.Timer(value=values["poll_s"])),
            values,
        ]

    def _view(self, name: str | None) -> RunView | None:
        try:
            return self._services.jobs.view(name) if name else None
        except DreamBoothError:
            # The folder of a run that a page still names was deleted: it then shows none.
            return None

    def _device_line(self) -> str:
        # Asking the driver takes a process; free memory is news for ten seconds.
        if time.monotonic() - self._device_read_s > DEVICE_POLL_S or not self._device:
            self._device, self._device_read_s = device_summary(), time.monotonic()
        return self._device


def _newest_first(choices: tuple[tuple[str, str], ...], before: tuple[tuple[str, str], ...]) -> Any:
    """Return the update of a list of models; a step that was just saved is chosen, since it is what one waits for."""
    known = {value for _, value in before}
    new = [value for _, value in choices if value not in known]
    return gr.Dropdown(choices=list(choices), **({"value": new[0]} if new else {}))


# The API -------------------------------------------------------------------------------------------------------------


def _start_sample(services: Services) -> Any:
    """Start the bundled sample subject on the starter; returns the run's name and its settings."""
    kept = concepts_tab.Handlers(services).sample_set()
    return train_tab.Handlers(services).start_set(kept.name, STARTER, "recommended", {}, "sample")


def _publish(services: Services) -> None:
    """Give programs what the buttons do, in plain values; uploads, files and pictures are the tabs' own events."""
    trainer = train_tab.Handlers(services)

    def start_training(
        photo_set: str, base: str = STARTER, preset: str = "recommended", settings: dict[str, Any] | None = None
    ) -> str:
        """Start a run on an uploaded photo set and return its name; `settings` overrides what base and preset say."""
        return trainer.start_set(photo_set, base, preset, settings or {})[0]

    def training_status(run: str = "") -> dict[str, Any]:
        """Return where a run stands; without a name the one that trains, else the newest."""
        return _status(services, _chosen(services, run))

    def stop_training(run: str = "") -> str:
        """Ask a run to save and stop, and return its name; without a name the one that trains."""
        name = run or services.jobs.active()
        if not name:
            raise DreamBoothError("Nothing is training.", "", "")
        services.jobs.stop(name)
        return name

    def list_runs() -> list[dict[str, Any]]:
        """Return every run, newest first."""
        return [_status(services, run.name) for run in services.workspace.runs()]

    def list_models() -> list[dict[str, str]]:
        """Return every model pictures can be made with, newest steps first."""
        return [{"label": label, "model": value} for label, value in services.jobs.models()]

    def try_sample() -> str:
        """Start training the bundled sample subject on the starter model, and return the run's name."""
        name: str = _start_sample(services)[0]
        return name

    for function in (start_training, training_status, stop_training, list_runs, list_models, try_sample):
        gr.api(shown(function), api_name=function.__name__, concurrency_limit=None)


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
        "loss": view.losses[-1].loss if view.losses else None,
        "steps": view.steps,
        "models": [str(view.path / str(step)) for step in view.steps],
        "error": error,
    }
