"""Disk usage at the bottom of the third tab: listed first, deleted only after that."""

from dataclasses import dataclass
from typing import Any, get_args

import gradio as gr

from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.records.storage import CHOICES, COST, Choice, Plan, carry_out, plan, usage
from ui.boundary import Services, shown
from ui.events import Answer, on
from ui.events import connect as connect_events
from ui.render import panel, size_in_words

MAX_ROWS = 200


@dataclass(frozen=True)
class StorageSection:
    """The section's components."""

    show: gr.Button
    table: gr.Dataframe
    choices: gr.CheckboxGroup
    ask: gr.Button
    message: gr.HTML
    planned: gr.State
    delete: gr.Button


def build() -> StorageSection:
    """Lay out the section; `connect` adds its events."""
    with gr.Accordion("Storage", open=False, elem_id="storage"):
        show = gr.Button("Show disk usage", elem_id="storage-look")
        table = gr.Dataframe(
            headers=["size", "what", "name", "delete with"], datatype="str", interactive=False, show_label=False,
            elem_id="storage-table", visible=False,
        )  # fmt: skip
        choices = gr.CheckboxGroup(
            [(f"{choice}: {COST[choice]}", choice) for choice in CHOICES], label="What to delete",
            info="Samples, logs, settings and your own files are never deleted.", elem_id="storage-choices",
        )  # fmt: skip
        ask = gr.Button("List what would be deleted", elem_id="storage-ask")
        message = gr.HTML(elem_id="storage-message")
        planned = gr.State()
        delete = gr.Button("Delete exactly these", variant="stop", visible=False, elem_id="storage-delete")
    return StorageSection(show, table, choices, ask, message, planned, delete)


def connect(section: StorageSection, services: Services) -> None:
    """Connect the section's components with their handlers."""
    handlers = Handlers(services)
    connect_events(handlers, vars(section))
    for function in (handlers.list_storage, handlers.clean_storage):
        gr.api(function, api_name=function.__name__, concurrency_limit=1)


class Handlers:
    """The section's handlers, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services

        def list_storage() -> list[dict[str, Any]]:
            """Return the disk usage, the largest first, with the choice that deletes each item."""
            return [{"kind": one.kind, "name": one.name, "bytes": one.num_bytes, "choice": one.choice}
                    for one in usage(services.workspace)]  # fmt: skip

        def clean_storage(choices: list[str], yes: bool = False) -> dict[str, Any]:
            """Return the files that these choices delete and their bytes; deletes them only with `yes`."""
            planned = self._plan(choices)
            if yes:
                services.check_training()
                carry_out(services.workspace, planned)
            files = [str(one.path) for one in planned.deletions]
            return {"files": files, "bytes": planned.num_bytes, "kept": list(planned.kept), "deleted": yes}

        self.list_storage, self.clean_storage = shown(list_storage), shown(clean_storage)

    @on("show.click", "", "table", api_name="look_at_storage", api_visibility="private")
    def rows(self) -> list[list[str]]:
        found = usage(self._services.workspace)
        rows = [[size_in_words(one.num_bytes), one.kind, one.name, one.choice or ""] for one in found[:MAX_ROWS]]
        if rest := found[MAX_ROWS:]:
            size = size_in_words(sum(one.num_bytes for one in rest))
            rows.append([size, "others", f"{len(rest)} smaller ones", ""])
        return rows

    def _plan(self, choices: list[str]) -> Plan:
        if not isinstance(choices, list):
            raise ConfigError([FieldProblem("choices", f"must be a list of some of {', '.join(CHOICES)}.")])
        unknown = [
            FieldProblem("choices", f"has no {choice!r}.") for choice in choices if choice not in get_args(Choice)
        ]
        if unknown:
            raise ConfigError(unknown)
        return plan(self._services.workspace, [choice for choice in CHOICES if choice in choices])

    @on("ask.click", "choices", "message planned delete", api_name="ask_storage", api_visibility="private")
    def ask(self, choices: list[str]) -> Answer:
        planned = self._plan(choices or [])
        size = size_in_words(planned.num_bytes)
        if not planned.deletions:
            message = panel("There is nothing to delete.", " ".join(planned.kept), tone="note")
            return {"message": message, "planned": planned, "delete": gr.Button(visible=False)}
        first = ", ".join(str(one.path.relative_to(self._services.workspace.data_dir)) for one in planned.deletions[:8])
        more = f" and {len(planned.deletions) - 8} more" if len(planned.deletions) > 8 else ""
        message = panel(
            f"{len(planned.deletions)} files and folders, {size}.",
            f"{first}{more}. {' '.join(planned.kept)}",
            tone="note",
        )
        button = gr.Button(f"Delete exactly these ({size})", visible=True)
        return {"message": message, "planned": planned, "delete": button}

    @on("delete.click", "planned", "message planned delete table", api_name="delete_storage", api_visibility="private")
    def delete(self, planned: Plan | None) -> Answer:
        self._services.check_training()
        freed = carry_out(self._services.workspace, planned) if planned is not None else 0
        message = panel(f"{size_in_words(freed)} freed.", "", tone="good")
        return {"message": message, "planned": None, "delete": gr.Button(visible=False), "table": self.rows()}
