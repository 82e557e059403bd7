"""The status line on every tab during a training: which run, its phase, time left, and Stop."""

from html import escape
from typing import Any

import gradio as gr

from dreambooth.runs.view import RunView
from ui.address import link
from ui.boundary import QUIET, Services
from ui.events import on
from ui.render import is_before_steps, phase_text, time_left_text
from ui.train.progress import whole_share

STOP = "Stop & save"


def build() -> dict[str, Any]:
    """Lay out the line, hidden while nothing runs, and return its components by name."""
    with gr.Row(visible=False, elem_id="status-line") as line:
        text = gr.HTML(elem_id="status-line-text")
        stop = gr.Button(STOP, size="sm", elem_id="status-line-stop", scale=0, min_width=120)
    return {"line": line, "line_text": text, "line_stop": stop}


def line_text(view: RunView, num_waiting: int = 0, whole_s: float | None = None) -> str:
    """Return the line's text for the run that is training: a link to it, its phase, its bar and the time left."""
    percent = round(whole_share(view) * 100)
    parts = [phase_text(view), time_left_text(view, whole_s), f"{num_waiting} waiting" if num_waiting else ""]
    rest = " \u00b7 ".join(escape(part) for part in parts if part)
    return (
        f"<div class='db-line'>{link(escape(view.name), run=view.name)} <span>{rest}</span>"
        f"<span class='db-bar db-thin'><i style='width:{percent}%'></i></span></div>"
    )


class Handlers:
    """The handler of the line's button."""

    def __init__(self, services: Services) -> None:
        self._services = services

    @on("line_stop.click", "seen", "line_stop", api_name="stop_running", **QUIET)
    def stop(self, seen: dict[str, Any]) -> Any:
        """Save and stop the run in the line; a click after its end does nothing."""
        name = (seen or {}).get("active")
        if name and name == self._services.jobs.active():
            before = self._services.jobs.view(name)
            self._services.jobs.stop(name)
            label = "Stopping..." if is_before_steps(before) else "Saving..."
            return gr.Button(label, interactive=False)
        return gr.skip()
