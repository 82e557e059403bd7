"""Keeps every open page up to date: reads the runs from disk, and sends each page what it has not seen."""

import threading
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from dreambooth.device.hardware import device_line
from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError
from dreambooth.runs.view import RunView
from ui.address import RUN_OF_THE_ADDRESS, landing
from ui.boundary import QUICK, Services
from ui.convert.handlers import convertible
from ui.events import Answer, on, updates_of_unseen
from ui.header import Doing, header
from ui.status_line import STOP, line_text
from ui.train import panel as run_panel
from ui.train.advice import Advice, preselected
from ui.train.loss_plot import SMOOTHING
from ui.train.runs import RunsTable, runs_list

BUSY_POLL_S, IDLE_POLL_S = 1.0, 5.0
FOLLOWED = (
    f"header line line_text line_stop run {run_panel.PARTS} table convert_model generate_model advised timer seen"
)
# Pages that ask at the same moment share one read of the disk.
SHARED_S = 0.4


def keeps_files(settings: Settings) -> bool:
    """Return whether the data folder survives a restart of the machine."""
    if settings.drive_dir is not None:
        return True
    if settings.on_space:
        return settings.data_dir.is_relative_to("/data")
    return not settings.on_colab or settings.data_dir.is_relative_to("/content/drive")


class Follower:
    """Answers the pages' timers; a page says what it has seen."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._advice = Advice(services)
        self._table = RunsTable(services, self._advice)
        self._lock = threading.Lock()
        self._recent: dict[str, tuple[float, Any]] = {}

    @on("page.load", "run", f"{FOLLOWED} place", api_name="first_look", js=RUN_OF_THE_ADDRESS, **QUICK)
    def first_update(self, asked: str | None = "") -> Answer:
        """Return everything for a newly opened page: the run of its address, else the current or the newest one."""
        # Such a page has seen nothing, whatever the session remembers: after a reload everything is sent.
        active = self._services.jobs.active()
        begins = landing("runs" if self._services.workspace.runs() else "new", active or "")
        return {**self._answer_for(asked or None, {}, ""), "place": begins}

    @on(
        "timer.tick run.change smoothing.change log_scale.change", "run seen message smoothing log_scale", FOLLOWED,
        api_name="look", **QUICK,
    )  # fmt: skip
    def update(
        self, name: str | None, seen: dict[str, Any], message: str, smoothing: float = SMOOTHING,
        log_scale: bool = False,
    ) -> Answer:  # fmt: skip
        if not seen and not name:
            # On a slow machine the timer asks before the page's own first load is answered: that one selects the run.
            return {}
        return self._answer_for(name, seen, message, min(max(float(smoothing or 0), 0.0), 0.99), bool(log_scale))

    def _answer_for(
        self, name: str | None, seen: dict[str, Any], message: str, smoothing: float = SMOOTHING,
        log_scale: bool = False,
    ) -> Answer:  # fmt: skip
        active = self._services.jobs.active()
        runs = self._shared("runs", lambda: tuple(run.name for run in self._services.workspace.runs()))
        is_chosen = bool(name)
        name = name or active or next(iter(runs), "")
        view = self._view(name)
        at_work = self._view(active)
        values: dict[str, Any] = {
            "header": self._header(at_work),
            "active": active,
            "line": self._line(at_work) if at_work else "",
            "stopping": at_work is not None and at_work.status == "stopping",
            "runs": runs,
            "run": name,
            "table": self._shared("table", self._table.rows),
            "models": self._shared("models", lambda: tuple(self._services.jobs.models())),
            "convertible": self._shared("convertible", lambda: tuple(convertible(self._services))),
            "advised": self._shared("advised", self._advice.models),
            "poll_s": BUSY_POLL_S if active else IDLE_POLL_S,
            **run_panel.run_values(self._services, view, name, smoothing, log_scale),
        }
        first: dict[str, Any] = {} if seen and is_chosen else {"value": name or None}
        updates: dict[str, Callable[[Any], Answer]] = {
            "header": lambda text: {"header": text},
            "active": lambda active: {"line": gr.Row(visible=active is not None)},
            "line": lambda text: {"line_text": text},
            "stopping": lambda is_stopping: {
                "line_stop": gr.Button("Stopping..." if is_stopping else STOP, interactive=not is_stopping)
            },
            "runs": lambda names: {"run": gr.Dropdown(choices=list(names), **first)},
            "table": lambda rows: {"table": runs_list(rows)},
            "advised": lambda models: {"advised": models},
            "poll_s": lambda seconds: {"timer": gr.Timer(value=seconds)},
        }
        return {
            **updates_of_unseen(updates, values, seen),
            **run_panel.run_updates(self._services, values, seen, message),
            **_model_list("convertible", "convert_model", values, seen),
            **_model_list("models", "generate_model", values, seen),
            "seen": values,
        }

    def _line(self, at_work: RunView) -> str:
        whole_s = run_panel.expected_whole(self._services, at_work)
        return line_text(at_work, len(self._services.jobs.waiting()), whole_s)

    def _header(self, at_work: RunView | None) -> str:
        jobs, settings = self._services.jobs, self._services.settings
        doing = Doing(at_work, len(jobs.waiting()), jobs.makes_pictures())
        device = self._services.device()
        return header(device_line(device), doing, settings.data_dir, keeps_files(settings), device.unused_card)

    def _view(self, name: str | None) -> RunView | None:
        if not name:
            return None

        def read() -> RunView | None:
            try:
                return self._services.jobs.view(name)
            except DreamBoothError:
                # The folder of a run that a page still shows was deleted: it then shows none.
                return None

        view: RunView | None = self._shared(f"run {name}", read)
        return view

    def _shared(self, what: str, read: Callable[[], Any]) -> Any:
        """Return what was read a moment ago, or read it."""
        with self._lock:
            if len(self._recent) > 100:
                self._recent.clear()
            read_s, value = self._recent.get(what, (0.0, None))
            if time.monotonic() - read_s > SHARED_S:
                value = read()
                self._recent[what] = (time.monotonic(), value)
            return value


def _model_list(part: str, component: str, values: dict[str, Any], seen: dict[str, Any]) -> Answer:
    """Return the update of a list of models: the existing ones, with the awaited step selected."""
    if all(name in seen and seen[name] == values[name] for name in (part, "advised")):
        return {}
    here, before = ([value for _, value in state.get(part, ())] for state in (values, seen))
    chosen = preselected(here, before, values["advised"], seen.get("advised", ()))
    return {component: gr.Dropdown(choices=list(values[part]), **({"value": chosen} if chosen else {}))}
