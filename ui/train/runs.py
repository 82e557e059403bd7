"""All runs in one list: what they are, their state, their size; each is a link to the view of that run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config.methods import METHODS
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import find_photos
from dreambooth.errors import DreamBoothError
from dreambooth.events import FINAL_STATUSES, Status
from dreambooth.records.runlog import RunState, read_config, read_state
from dreambooth.records.storage import size_of
from dreambooth.records.workspace import RunFolder
from ui.address import link
from ui.boundary import Services
from ui.render import STATUSES, size_in_words
from ui.train.advice import Advice

HEADERS = ("Run", "State", "Photos", "Base model", "Method", "Steps", "Best step", "Size", "Started")
MAX_ROWS = 200
# How long the size of a run in progress counts as current.
SIZE_AGE_S = 30.0
NO_RUNS = "No runs yet. Choose photos on the first tab, then start a training."


@dataclass(frozen=True)
class Row:
    """What the list shows of a run."""

    name: str
    status: Status
    photos: str
    base: str
    method: str
    steps: str
    best: str
    size: str
    when: str


def build() -> dict[str, Any]:
    """Lay out the list, and return its components by name."""
    with gr.Row(elem_classes=["db-view-head"]):
        gr.HTML("<h2>Runs</h2>")
        gr.HTML(link("New training", view="new", style="db-button"), elem_id="new-training", elem_classes=["db-end"])
    return {"runs_message": gr.HTML(elem_id="runs-message"), "table": gr.HTML(elem_id="runs-list")}


def runs_list(rows: Sequence[Row]) -> str:
    """Return the list as a table; on a narrow screen every run is a card of its own."""
    if not rows:
        return f"<p class='db-hint'>{NO_RUNS}</p>"
    heads = "".join(f"<th scope='col'>{title}</th>" for title in HEADERS)
    lines = "".join(map(_line, rows))
    return f"<table class='db-table db-runs'><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table>"


def _line(row: Row) -> str:
    chip = f"<span class='db-chip db-chip-{row.status}'>{escape(STATUSES[row.status])}</span>"
    texts = (row.photos, row.base, row.method, row.steps, row.best, row.size, row.when)
    cells = [f"<th scope='row'>{link(escape(row.name), run=row.name)}</th>", f"<td>{chip}</td>"]
    cells += [
        f"<td data-label='{title}'>{escape(text) or '&ndash;'}</td>"
        for title, text in zip(HEADERS[2:], texts, strict=True)
    ]
    return f"<tr data-run='{escape(row.name)}'>{''.join(cells)}</tr>"


class RunsTable:
    """The list's rows, with cached sizes and numbers of photos."""

    def __init__(self, services: Services, advice: Advice) -> None:
        self._services, self._advice = services, advice
        self._sizes: dict[str, tuple[Any, float, str]] = {}
        self._photos: dict[str, tuple[Any, int]] = {}

    def rows(self) -> tuple[Row, ...]:
        """Return a row for every run, newest first."""
        return tuple(self._row(run) for run in self._services.workspace.runs()[:MAX_ROWS])

    def _row(self, run: RunFolder) -> Row:
        state, config = read_state(run), read_config(run)
        base = "" if config is None else config.pretrained_model_name_or_path.rstrip("/\\").replace("\\", "/")
        pick = self._advice.pick(run)
        return Row(
            name=run.name,
            status=state.status,
            photos="" if config is None else self._photos_of(config),
            base=base.rsplit("/", 1)[-1],
            method="" if config is None else METHODS[config.method].title,
            steps=f"{state.step} of {state.total_steps}" if state.total_steps else str(state.step),
            best=str(pick.step) if pick and pick.step is not None else "",
            size=self._size(run, state),
            when=time.strftime("%d %b, %H:%M", time.localtime(run.config_path.stat().st_mtime)),
        )

    def _photos_of(self, config: TrainingConfig) -> str:
        """Return how many photos a run has and its instance prompt."""
        if not config.concepts:
            return ""
        count = sum(self._count(concept.instance_data_dir) for concept in config.concepts)
        prompt = config.concepts[0].instance_prompt
        return f"{count} \u00b7 {prompt}" if count else prompt

    def _count(self, folder: str) -> int:
        """Return the number of photos in a folder, 0 where it is gone."""
        try:
            changed_ns = Path(folder).stat().st_mtime_ns
            known, count = self._photos.get(folder, (None, 0))
            if known != changed_ns:
                count = len(find_photos(Path(folder)).photos)
                self._photos[folder] = (changed_ns, count)
        except (OSError, DreamBoothError):
            return 0
        return count

    def _size(self, run: RunFolder, state: RunState) -> str:
        standing = (state.status, run.steps())
        known, counted_s, text = self._sizes.get(run.name, (None, 0.0, ""))
        is_over = state.status in FINAL_STATUSES or state.status == "interrupted"
        if known != standing or (not is_over and time.monotonic() - counted_s > SIZE_AGE_S):
            text = size_in_words(size_of(run.path))
            self._sizes[run.name] = (standing, time.monotonic(), text)
        return text
