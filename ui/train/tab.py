"""The second tab: what a run starts from, its settings, what it will take, and the start; then the running run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.config.fields import GROUP_TITLES, FieldInfo
from dreambooth.forecast.offers import proposed_config
from dreambooth.models.base import STARTER
from dreambooth.runs.shell_line import CONFIG_FILE
from ui.address import link
from ui.boundary import Services
from ui.draft import keep_in_browser
from ui.events import connect as connect_events
from ui.fields import (
    MAIN_FIELDS,
    field_component,
    form_infos,
    has_effect,
    shown_value,
)
from ui.late_answers import Fillable, fillable
from ui.train import actions as run_actions
from ui.train import find_setting
from ui.train import panel as run_panel
from ui.train import runs as runs_section
from ui.train.current_plan import close_start_while_stale, open_start_after
from ui.train.handlers import Handlers, base_notice
from ui.train.plan import method_choices, preset_choices


@dataclass(frozen=True)
class TrainTab:
    """The tab's components that others read or that events fill."""

    base: gr.Dropdown
    preset: gr.Radio
    preset_note: gr.HTML
    notice: gr.HTML
    fields: dict[str, Any]
    proposals: Fillable
    marked: gr.State
    advanced: gr.Accordion
    plan: gr.HTML
    planned: gr.Textbox
    start: gr.Button
    message: gr.HTML
    command: gr.Code
    as_json: gr.Code
    panel: dict[str, Any]
    runs: dict[str, Any]


def build(services: Services) -> TrainTab:
    """Lay out the tab; `connect` adds its events."""
    infos = form_infos()
    config = proposed_config(STARTER, "recommended", "pet", 5, {}, services.device())
    made: dict[str, Any] = {}

    def field(name: str) -> None:
        made[name] = field_component(infos[name], getattr(config, name))
        made[name].visible = has_effect(infos[name], config.method)

    with gr.Column(elem_id="runs-view"):
        listed = runs_section.build()
    with gr.Column(elem_id="run-view"):
        shown_run = run_panel.build()
    with gr.Column(elem_id="new-view"):
        with gr.Row(elem_classes=["db-view-head"]):
            gr.HTML(link("&larr; All runs", view="runs"))
            gr.HTML("<h2>New training</h2>")
        made["method"] = gr.Radio(
            method_choices(infos["method"].choices), value=config.method, label="Method", elem_id="field-method",
            info="What the training produces. `method`",
        )  # fmt: skip
        base = gr.Dropdown(
            base_choices(services), value=STARTER, label="Base model", allow_custom_value=True, elem_id="base",
            info="The model to start from. You can also enter a Hub id, a folder or a file.",
        )  # fmt: skip
        notice = gr.HTML(base_notice(STARTER), elem_id="base-notice")
        preset = gr.Radio(
            preset_choices([]), value="recommended", label="Preset", elem_id="preset",
            info="Same recipe, different memory use.",
        )  # fmt: skip
        note = gr.HTML(elem_id="preset-note")
        for row in (
            ("max_train_steps", "learning_rate", "save_interval", "resolution"),
            ("train_text_encoder", "with_prior_preservation", "num_class_images", "seed"),
            ("lora_rank", "lora_targets"),
        ):
            with gr.Row(equal_height=False):
                for name in row:
                    field(name)
        with gr.Row(equal_height=False):
            field("save_sample_prompt")
            field("stop_when_good")
        made["save_sample_prompt"].placeholder = "Leave empty to use the instance prompt"
        advanced = _advanced(infos, field)
        command, as_json = _as_command()
        with gr.Row(elem_id="start-row", equal_height=True):
            plan = gr.HTML(elem_id="plan")
            planned = gr.Textbox("", visible=False, label="Settings the plan is for")
            start_button = gr.Button("Start training", variant="primary", elem_id="start", scale=0, min_width=220)
        message = gr.HTML(elem_id="start-message")
    # Its fields follow the declaration's order, whatever the layout.
    fields = {name: made[name] for name in infos}
    proposed = {name: shown_value(info, getattr(config, name)) for name, info in infos.items()}
    proposals = fillable({"preset": preset, **fields}, {"preset": "recommended", **proposed})
    return TrainTab(
        base, preset, note, notice, fields, proposals, gr.State([]), advanced, plan, planned, start_button, message,
        command, as_json, shown_run, listed,
    )  # fmt: skip


def _advanced(infos: Mapping[str, FieldInfo], field: Callable[[str], None]) -> gr.Accordion:
    """Lay out all settings that are not among the main ones, in groups that can be searched."""
    with gr.Accordion("Advanced", open=False, elem_id="advanced") as advanced:
        find_setting.build()
        for group, title in GROUP_TITLES.items():
            names = [name for name, info in infos.items() if info.group == group and name not in MAIN_FIELDS]
            with gr.Column(elem_classes=["db-group"]):
                gr.Markdown(f"#### {title}")
                for start in range(0, len(names), 3):
                    with gr.Row(equal_height=False):
                        for name in names[start : start + 3]:
                            field(name)
    return advanced


def _as_command() -> tuple[gr.Code, gr.Code]:
    """Lay out the settings as a command line and as JSON."""
    with gr.Accordion("As a command line and as JSON", open=False, elem_id="as-command"):
        command = gr.Code(
            label="Command line", language="shell", interactive=False, elem_id="command", wrap_lines=True,
            show_line_numbers=False, buttons=["copy"], visible=False,
        )  # fmt: skip
        as_json = gr.Code(
            label=f"Settings as JSON, for --config {CONFIG_FILE}", language="json", interactive=False,
            elem_id="as-json", max_lines=14, buttons=["copy", "download"], visible=False,
        )  # fmt: skip
    return command, as_json


# Settings ------------------------------------------------------------------------------------------------------------


def base_choices(services: Services) -> list[tuple[str, str]]:
    """Return what a run can start from: everything except a run's own steps."""
    runs = str(services.workspace.runs_dir)
    return [(label, value) for label, value in services.jobs.models() if not value.startswith(runs)]


# Events --------------------------------------------------------------------------------------------------------------


def connect(
    tab: TrainTab,
    services: Services,
    *,
    page: gr.Blocks,
    photo_set: gr.Textbox,
    photos: gr.HTML,
    masked: gr.Textbox,
    kind: gr.Radio,
    prompts: dict[str, gr.Textbox],
    place: gr.JSON,
    events: Mapping[str, Any],
) -> None:
    """Connect the tab's components with their handlers; some follow `events` of other tabs."""
    notes = {name: str(component.info or "") for name, component in prompts.items()}
    handlers = Handlers(services, notes)
    shown_run = tab.panel | tab.runs | {"base": tab.base, "place": place}
    connect_events(run_actions.Handlers(services), shown_run)
    form = vars(tab) | {
        "place": place,
        "photo_set": photo_set, "photos": photos, "masked": masked, "kind": kind, "prompts": prompts,
        "proposed": tab.proposals.filled, "answer": tab.proposals.answer, "run": tab.panel["run"],
        "reuse": tab.panel["reuse"], "run_message": tab.panel["message"], "method": tab.fields["method"],
        "of_a_method": {name: tab.fields[name] for name, info in form_infos().items() if info.method},
    }  # fmt: skip
    kept = {"base": tab.base, "filled": tab.proposals.filled, **tab.proposals.fields}
    # A plan follows every change of theirs, once for many: to listen to each of sixty fields would busy the browser.
    keep_in_browser(page, "dreambooth-form", [tab.planned.change], kept)
    close_start_while_stale(form)
    made = connect_events(handlers, form, events)
    open_start_after(made["propose_settings"], form)
