"""All runs in one table: what they were, how they ended, what they take; a row chosen is the run that is shown."""

import time
from typing import Any

import gradio as gr

from dreambooth.config.methods import METHODS
from dreambooth.events import FINAL_STATUSES
from dreambooth.records.runlog import RunState, read_config, read_state
from dreambooth.records.storage import size_of
from dreambooth.records.workspace import RunFolder
from ui.boundary import Services
from ui.events import on
from ui.render import STATUSES, size_in_words

HEADERS = ["run", "started", "status", "steps", "base", "method", "words", "size"]
MAX_ROWS = 200
# The size of a run that trains is news for so long.
SIZE_AGE_S = 30.0


def build() -> gr.Dataframe:
    """Lay out the section, and return its table."""
    with gr.Accordion("My runs", open=False, elem_id="my-runs"):
        gr.HTML("<p class='db-hint'>Choose a row to see that run above, with all that can be done with it.</p>")
        return gr.Dataframe(
            headers=HEADERS, datatype="str", interactive=False, show_label=False, elem_id="runs-table", label="My runs",
            column_widths=["21%", "13%", "10%", "10%", "13%", "8%", "16%", "9%"], max_height=340, buttons=[],
        )  # fmt: skip


class RunsTable:
    """The table's rows, with sizes that are not counted anew at every look."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._sizes: dict[str, tuple[Any, float, str]] = {}

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """Return a row for every run, newest first."""
        return tuple(self._row(run) for run in self._services.workspace.runs()[:MAX_ROWS])

    def _row(self, run: RunFolder) -> tuple[str, ...]:
        state, config = read_state(run), read_config(run)
        started_s = run.config_path.stat().st_mtime
        steps = f"{state.step} of {state.total_steps}" if state.total_steps else str(state.step)
        method = "" if config is None else METHODS[config.method].title
        base = "" if config is None else config.pretrained_model_name_or_path.rstrip("/\\").replace("\\", "/")
        words = "" if config is None or not config.concepts else config.concepts[0].instance_prompt
        return (
            run.name, time.strftime("%d %b, %H:%M", time.localtime(started_s)), STATUSES[state.status], steps,
            base.rsplit("/", 1)[-1], method, words, self._size(run, state),
        )  # fmt: skip

    def _size(self, run: RunFolder, state: RunState) -> str:
        standing = (state.status, run.steps())
        known, counted_s, text = self._sizes.get(run.name, (None, 0.0, ""))
        is_over = state.status in FINAL_STATUSES or state.status == "interrupted"
        if known != standing or (not is_over and time.monotonic() - counted_s > SIZE_AGE_S):
            text = size_in_words(size_of(run.path))
            self._sizes[run.name] = (standing, time.monotonic(), text)
        return text


class Handlers:
    """What the section does, as functions of values."""

    @on("table.select", outputs="run", api_name="choose_run", api_visibility="private", show_progress="hidden")
    def choose(self, event: gr.SelectData) -> Any:
        """Have a row that is chosen shown."""
        row = event.row_value or []
        return gr.Dropdown(value=str(row[0])) if row else gr.skip()
