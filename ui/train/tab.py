"""The second tab: what a run starts from, its settings, what it will take, and the start; then the run as it goes."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.forecast.offers import proposed_config
from dreambooth.models.base import STARTER
from dreambooth.runs.shell_line import CONFIG_FILE
from ui.boundary import QUIET, Services
from ui.fields import (
    GROUP_TITLES,
    MAIN_FIELDS,
    field_component,
    form_infos,
    shown_value,
)
from ui.generate.late_answers import Fillable, fillable
from ui.train import panel as run_panel
from ui.train import runs as runs_section
from ui.train.handlers import Handlers, base_notice
from ui.train.plan import preset_choices


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
    settings: gr.Accordion
    advanced: gr.Accordion
    plan: gr.HTML
    start: gr.Button
    message: gr.HTML
    command: gr.Code
    as_json: gr.Code
    panel: run_panel.RunPanel
    runs: runs_section.RunsSection

    @property
    def run(self) -> gr.Dropdown:
        """Return the list of runs, whose choice is the run that is shown."""
        return self.panel.run

    @property
    def told(self) -> list[Any]:
        """Return what says what the form's run will take."""
        return [self.preset, self.preset_note, self.plan, self.command, self.as_json]


def build(services: Services) -> TrainTab:
    """Lay out the tab; `connect` gives it life."""
    infos = form_infos()
    config = proposed_config(STARTER, "recommended", "pet", 5, {}, services.device())
    made: dict[str, Any] = {}

    def field(name: str) -> None:
        made[name] = field_component(infos[name], getattr(config, name))

    with gr.Accordion("New training", open=True, elem_id="settings") as settings:
        base = gr.Dropdown(
            base_choices(services), value=STARTER, label="Base model", allow_custom_value=True, elem_id="base",
            info="What the training starts from. A Hub id, a folder or one file can be typed in too.",
        )  # fmt: skip
        notice = gr.HTML(base_notice(STARTER), elem_id="base-notice")
        preset = gr.Radio(
            preset_choices([]), value="recommended", label="Preset", elem_id="preset",
            info="The same recipe, fitted to the memory there is.",
        )  # fmt: skip
        note = gr.HTML(elem_id="preset-note")
        for row in (
            ("max_train_steps", "learning_rate", "save_interval", "resolution"),
            ("train_text_encoder", "with_prior_preservation", "num_class_images", "seed"),
        ):
            with gr.Row(equal_height=False):
                for name in row:
                    field(name)
        with gr.Row(equal_height=False):
            field("save_sample_prompt")
            field("stop_when_good")
        made["save_sample_prompt"].placeholder = "The words for your photos, when left empty"
        with gr.Accordion("Advanced", open=False, elem_id="advanced") as advanced:
            for group, title in GROUP_TITLES.items():
                names = [name for name, info in infos.items() if info.group == group and name not in MAIN_FIELDS]
                gr.Markdown(f"#### {title}")
                for start in range(0, len(names), 3):
                    with gr.Row(equal_height=False):
                        for name in names[start : start + 3]:
                            field(name)
        with gr.Accordion("The same as a command line and as JSON", open=False, elem_id="as-command"):
            command = gr.Code(
                label="Command line", language="shell", interactive=False, elem_id="command", wrap_lines=True,
                show_line_numbers=False, buttons=["copy"],
            )  # fmt: skip
            as_json = gr.Code(
                label=f"Settings as JSON, for --config {CONFIG_FILE}", language="json", interactive=False,
                elem_id="as-json", max_lines=14, buttons=["copy", "download"],
            )  # fmt: skip
        with gr.Row(elem_id="start-row", equal_height=True):
            plan = gr.HTML(elem_id="plan")
            start_button = gr.Button("Start training", variant="primary", elem_id="start", scale=0, min_width=220)
        message = gr.HTML(elem_id="start-message")
    shown_run = run_panel.build()
    runs = runs_section.build()
    # Its fields follow the declaration's order, whatever the layout.
    fields = {name: made[name] for name in infos}
    proposed = {name: shown_value(info, getattr(config, name)) for name, info in infos.items()}
    proposals = fillable({"preset": preset, **fields}, {"preset": "recommended", **proposed})
    return TrainTab(
        base, preset, note, notice, fields, proposals, gr.State([]), settings, advanced, plan, start_button, message,
        command, as_json, shown_run, runs,
    )  # fmt: skip


# Settings ------------------------------------------------------------------------------------------------------------


def base_choices(services: Services) -> list[tuple[str, str]]:
    """Return what a run can start from: everything that is not itself a run's step."""
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
    kind: gr.Radio,
    prompts: list[gr.Textbox],
) -> Any:
    """Join the tab's components to what they do; returns the start event, for what follows it."""
    notes = [component.info or "" for component in prompts]
    handlers = Handlers(services, dict(zip(("instance_prompt", "class_prompt"), notes, strict=True)))
    quiet = QUIET
    latest: dict[str, Any] = {"trigger_mode": "always_last", "concurrency_limit": None, **quiet}
    fields = list(tab.fields.values())
    form = [photo_set, *prompts, tab.base, *fields]
    proposed = tab.proposals.filled
    # One event, so that no two answers are on their way: what is asked meanwhile is asked after the first.
    tab.proposals.after(gr.on(
        [tab.base.change, kind.change, photo_set.change, tab.preset.input], handlers.propose,
        [tab.base, tab.preset, kind, photo_set, proposed, *fields], [tab.proposals.answer, tab.notice],
        api_name="propose_settings", **latest,
    ))  # fmt: skip
    told_by = [proposed, tab.preset, tab.base, kind, photos, *fields, *prompts]
    gr.on(
        [page.load, *(one.change for one in told_by)], handlers.tell, [tab.preset, kind, proposed, *form], tab.told,
        api_name="tell_plan", **latest,
    )  # fmt: skip
    marked = [tab.marked, *fields, *prompts]
    gr.on(
        [field.change for field in (*fields, *prompts)], handlers.recheck, [tab.marked, *form], marked,
        api_name="recheck_settings", **latest,
    )  # fmt: skip
    run_panel.connect(tab.panel, services)
    runs_section.connect(tab.runs, tab.run)
    tab.panel.more.click(
        run_panel.Handlers(services).train_more, [tab.run, tab.panel.more_steps], [tab.panel.message, tab.base],
        api_name="train_more_shown_run", **quiet,
    )  # fmt: skip
    tab.panel.reuse.click(
        handlers.reuse, [tab.run, tab.preset], [tab.panel.message, tab.base, proposed, tab.settings, *fields],
        api_name="reuse_settings", **quiet,
    )  # fmt: skip
    return tab.start.click(
        handlers.start, [tab.marked, tab.preset, *form], [tab.message, tab.run, tab.settings, tab.advanced, *marked],
        api_name="start_shown_settings", **quiet,
    )  # fmt: skip
