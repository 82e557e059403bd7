"""The second tab: what a run starts from, its settings, and the run itself as it goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
import pandas as pd

from dreambooth.config import Concept, TrainingConfig
from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem
from dreambooth.jobs import RunView
from dreambooth.models.base import STARTER, read_card
from dreambooth.presets import PRESETS, recommended_num_steps, resolve
from ui.boundary import Services, shown
from ui.fields import (
    GROUP_TITLES,
    MAIN_FIELDS,
    field_component,
    form_infos,
    read_fields,
    shown_value,
)
from ui.photo_sets import photo_set
from ui.render import error_panel, log_text, loss_rows, panel, sample_items, status_card

PRESET_LABELS = {
    "minimum": "Minimum memory",
    "recommended": "Recommended",
    "high_speed": "High speed",
    "full_precision": "Full precision",
    "lean": "Lean",
    "leanest": "Leanest",
}
TOY_NOTICE = "A toy model that shows the way; for real results take Stable Diffusion 1.5 and a GPU."
ON_THE_STARTER = {"mixed_precision": "no", "use_8bit_adam": False}


@dataclass(frozen=True)
class TrainTab:
    """The tab's components that others read or that events fill."""

    base: gr.Dropdown
    preset: gr.Radio
    notice: gr.HTML
    fields: dict[str, Any]
    proposed: gr.State
    settings: gr.Accordion
    start: gr.Button
    stop: gr.Button
    save_now: gr.Button
    sample_now: gr.Button
    resume: gr.Button
    message: gr.HTML
    run: gr.Dropdown
    status: gr.HTML
    samples: gr.Gallery
    losses: gr.LinePlot
    log: gr.HTML

    @property
    def run_parts(self) -> list[Any]:
        """Return what shows the viewed run."""
        return [
            self.status,
            self.losses,
            self.samples,
            self.log,
            self.stop,
            self.save_now,
            self.sample_now,
            self.resume,
        ]


def build(services: Services) -> TrainTab:
    """Lay out the tab; `connect` gives it life."""
    infos = form_infos()
    config = proposed_config(STARTER, "recommended", "pet", 5, {})
    made: dict[str, Any] = {}

    def field(name: str) -> None:
        made[name] = field_component(infos[name], getattr(config, name))

    with gr.Row(equal_height=False):
        base = gr.Dropdown(
            base_choices(services), value=STARTER, label="Base model", allow_custom_value=True, elem_id="base",
            info="What the training starts from. A Hub id, a folder or one file can be typed in too.",
        )  # fmt: skip
        preset = gr.Radio(
            [(PRESET_LABELS[name], name) for name in PRESETS], value="recommended", label="Preset", elem_id="preset",
            info="The same recipe, fitted to the memory there is.",
        )  # fmt: skip
    notice = gr.HTML(base_notice(STARTER), elem_id="base-notice")
    with gr.Accordion("Settings", open=True, elem_id="settings") as settings:
        with gr.Row(equal_height=False):
            for name in ("max_train_steps", "learning_rate", "save_interval", "resolution"):
                field(name)
        with gr.Row(equal_height=False):
            for name in ("train_text_encoder", "with_prior_preservation", "num_class_images", "seed"):
                field(name)
        field("save_sample_prompt")
        made["save_sample_prompt"].placeholder = "The words for your photos, when left empty"
        with gr.Accordion("Advanced", open=False):
            for group, title in GROUP_TITLES.items():
                names = [name for name, info in infos.items() if info.group == group and name not in MAIN_FIELDS]
                gr.Markdown(f"#### {title}")
                for start in range(0, len(names), 3):
                    with gr.Row(equal_height=False):
                        for name in names[start : start + 3]:
                            field(name)
    message = gr.HTML(elem_id="start-message")
    with gr.Row():
        start = gr.Button("Start training", variant="primary", elem_id="start")
        stop = gr.Button("Stop & save", interactive=False, elem_id="stop")
        save_now = gr.Button("Save now", interactive=False, elem_id="save-now")
        sample_now = gr.Button("Sample now", interactive=False, elem_id="sample-now")
        resume = gr.Button("Resume", visible=False, elem_id="resume")
    with gr.Row(equal_height=False):
        status = gr.HTML(status_card(None), elem_id="run-status")
    with gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=320):
            gr.HTML("<b>What it makes</b> <span class='db-hint'>from the same seeds at every save</span>")
            samples = gr.Gallery(
                label="Samples", show_label=False, columns=4, height=330, elem_id="samples",
                object_fit="contain", interactive=False, buttons=["fullscreen"],
            )  # fmt: skip
        with gr.Column(scale=5, min_width=320):
            gr.HTML("<b>Loss</b> <span class='db-hint'>it wobbles, that is normal: judge by the pictures</span>")
            losses = gr.LinePlot(
                x="step", y="loss", color="series", label="Loss", show_label=False, height=330, color_title="",
                elem_id="losses", buttons=["fullscreen"],
                color_map={"each step": "#b9d5d0", "smoothed": "#0f6b63"}, y_lim=[0, None], tooltip="axis",
            )  # fmt: skip
    log = gr.HTML(log_text(""), elem_id="log")
    run = gr.Dropdown([], label="Run shown", elem_id="run", allow_custom_value=True)
    # Its fields follow the declaration's order, whatever the layout.
    fields = {name: made[name] for name in infos}
    proposed = gr.State({name: shown_value(info, getattr(config, name)) for name, info in infos.items()})
    return TrainTab(
        base, preset, notice, fields, proposed, settings, start, stop, save_now, sample_now, resume, message,
        run, status, samples, losses, log,
    )  # fmt: skip


# Settings ------------------------------------------------------------------------------------------------------------


def base_choices(services: Services) -> list[tuple[str, str]]:
    """Return what a run can start from: everything that is not itself a run's step."""
    runs = str(services.workspace.runs_dir)
    return [(label, value) for label, value in services.jobs.models() if not value.startswith(runs)]


def base_notice(base: str) -> str:
    """Return the panel that says before the start what this base is good for."""
    try:
        card = read_card(base)
    except DreamBoothError as error:
        return error_panel(error)
    if card.is_toy:
        return panel(card.notice or TOY_NOTICE, tone="note")
    return panel(card.notice, tone="note") if card.notice else ""


def proposed_config(
    base: str, preset_name: str, kind: str, num_photos: int, explicit: Mapping[str, Any]
) -> TrainingConfig:
    """Return the settings the form proposes: what was typed, then the base's card, then the preset."""
    card = read_card(base)
    known: dict[str, Any] = {"resolution": card.native_px}
    if card.is_toy:
        known |= ON_THE_STARTER
    else:
        known["max_train_steps"] = recommended_num_steps(kind, num_photos)  # type: ignore[arg-type]
    return resolve({"pretrained_model_name_or_path": base, **explicit}, known | dict(card.recipe), preset_name)


def run_config(concept: Concept, base: str, typed: Mapping[str, Any]) -> TrainingConfig:
    """Return the settings of a run as the form has them; raises ConfigError with every mistake."""
    values = dict(typed)
    values["save_sample_prompt"] = values.get("save_sample_prompt") or concept.instance_prompt
    if not values.get("train_text_encoder"):
        # The form may have proposed them while the box was ticked.
        values |= {"text_encoder_lr": None, "text_encoder_stop_step": None}
    return TrainingConfig(concepts=(concept,), pretrained_model_name_or_path=base.strip(), **values).checked()


def folded(while_training: bool) -> Any:
    """Return the update of the settings: out of the way while a run is watched."""
    return gr.Accordion(open=not while_training)


# The run shown -------------------------------------------------------------------------------------------------------


def run_values(services: Services, view: RunView | None) -> dict[str, Any]:
    """Return what each of `TrainTab.run_parts` shows, as values that can be compared."""
    if view is None:
        return {"status": status_card(None), "losses": (), "samples": (), "log": log_text(""), "live": False,
                "resume": None}  # fmt: skip
    return {
        "status": status_card(view),
        "losses": tuple(loss_rows(view.losses)),
        "samples": tuple(sample_items(view.samples)),
        "log": log_text(view.log_tail),
        "live": view.status in ("queued", "running"),
        "resume": view.resume_step,
    }


def run_updates(services: Services, values: Mapping[str, Any], seen: Mapping[str, Any]) -> list[Any]:
    """Return the updates of `TrainTab.run_parts`, leaving out what the page has seen already."""

    def unless_seen(name: str, update: Any) -> Any:
        return gr.skip() if name in seen and seen[name] == values[name] else update

    live = values["live"]
    # An empty frame makes the plot compute with infinite limits.
    rows = list(values["losses"])
    plot = pd.DataFrame(rows, columns=["step", "loss", "series"]) if rows else None
    pictures = [(services.shown.copy(path), caption) for path, caption in values["samples"]]
    return [
        unless_seen("status", values["status"]),
        unless_seen("losses", plot),
        unless_seen("samples", pictures),
        unless_seen("log", values["log"]),
        *(unless_seen("live", gr.Button(interactive=live)) for _ in range(3)),
        unless_seen("resume", _resume_button(values["resume"])),
    ]


def _resume_button(step: int | None) -> Any:
    text = "Start again" if step == 0 else f"Resume at step {step}"
    return gr.Button(text, visible=step is not None)


# Events --------------------------------------------------------------------------------------------------------------


def connect(
    tab: TrainTab, services: Services, *, photo_set: gr.Textbox, kind: gr.Radio, prompts: list[gr.Textbox]
) -> Any:
    """Join the tab's components to what they do; returns the start event, for what follows it."""
    handlers = Handlers(services)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    fields = list(tab.fields.values())
    gr.on(
        [tab.base.change, tab.preset.change, kind.change, photo_set.change], handlers.propose,
        [tab.base, tab.preset, kind, photo_set, tab.proposed, *fields], [tab.notice, tab.proposed, *fields],
        trigger_mode="always_last", api_name="propose_settings", **quiet,
    )  # fmt: skip
    for button, act, name in (
        (tab.stop, handlers.stop, "stop_shown_run"),
        (tab.save_now, handlers.save_now, "save_now"),
        (tab.sample_now, handlers.sample_now, "sample_now"),
        (tab.resume, handlers.resume, "resume_shown_run"),
    ):
        button.click(act, tab.run, tab.message, api_name=name, **quiet)
    return tab.start.click(
        handlers.start, [photo_set, *prompts, tab.base, *fields], [tab.message, tab.run, tab.settings],
        api_name="start_shown_settings", **quiet,
    )  # fmt: skip


class Handlers:
    """What the tab does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._infos = form_infos()
        self.propose = shown(self._propose)
        self.start = shown(self._start)
        self.stop = shown(self._stop)
        self.save_now = shown(self._save_now)
        self.sample_now = shown(self._sample_now)
        self.resume = shown(self._resume)

    def _propose(
        self, base: str, preset_name: str, kind: str, photo_set_name: str, proposed: Mapping[str, Any], *values: Any
    ) -> list[Any]:
        typed = read_fields(self._infos, values)
        shown_now = {name: shown_value(self._infos[name], value) for name, value in typed.items()}
        explicit = {name: value for name, value in typed.items() if shown_now[name] != proposed.get(name)}
        try:
            num_photos = self._num_photos(photo_set_name)
            config = proposed_config(base, preset_name, kind, num_photos, explicit)
        except DreamBoothError as error:
            return [error_panel(error), gr.skip(), *(gr.skip() for _ in values)]
        new = {name: shown_value(info, getattr(config, name)) for name, info in self._infos.items()}
        # What a person typed stays theirs: only proposals are remembered as such.
        kept = {name: proposed.get(name) if name in explicit else value for name, value in new.items()}
        updates = [gr.skip() if shown_now[name] == value else value for name, value in new.items()]
        return [base_notice(base), kept, *updates]

    def _num_photos(self, name: str) -> int:
        return len(photo_set(self._services.workspace, name).photos()) if name else 0

    def _start(
        self, photo_set_name: str, instance_prompt: str, class_prompt: str, base: str, *values: Any
    ) -> tuple[str, Any, Any]:
        try:
            self._services.check_training()
            if not self._num_photos(photo_set_name):
                problem = FieldProblem("instance_data_dir", "holds no photos: drop some on the first tab.")
                raise ConfigError([problem])
            chosen = photo_set(self._services.workspace, photo_set_name)
            concept = chosen.concept(instance_prompt, class_prompt)
            config = run_config(concept, base or "", read_fields(self._infos, values))
            name = self._services.jobs.start(config, f"{chosen.words().identifier}-{chosen.words().class_word}")
        except DreamBoothError as error:
            return error_panel(error), gr.skip(), gr.skip()
        return "", gr.Dropdown(value=name), folded(True)

    def start_set(
        self, name: str, base: str, preset_name: str, explicit: Mapping[str, Any], wish: str = ""
    ) -> tuple[str, TrainingConfig]:
        """Start a run on a photo set under its own words, with proposed settings where none are given."""
        self._services.check_training()
        chosen = photo_set(self._services.workspace, name)
        words = chosen.words()
        config = proposed_config(base, preset_name, words.kind, len(chosen.photos()), {})
        unknown = [FieldProblem(str(key), "is no setting of this form.") for key in explicit if key not in self._infos]
        if not chosen.photos():
            unknown.append(FieldProblem("instance_data_dir", f"the photo set {name!r} holds no photos."))
        if unknown:
            raise ConfigError(unknown)
        typed = {key: getattr(config, key) for key in self._infos} | dict(explicit)
        config = run_config(chosen.concept(words.instance_prompt, words.class_prompt), base, typed)
        return self._services.jobs.start(config, wish or f"{words.identifier}-{words.class_word}"), config

    def _stop(self, name: str) -> str:
        self._services.jobs.stop(name)
        return panel("The run finishes its step, saves, and stops.", tone="note")

    def _save_now(self, name: str) -> str:
        self._services.jobs.save_now(name)
        return panel("The model is saved after this step.", tone="note")

    def _resume(self, name: str) -> str:
        self._services.check_training()
        self._services.jobs.resume(name)
        return panel("The run goes on where it was.", tone="note")

    def _sample_now(self, name: str) -> str:
        self._services.jobs.sample_now(name)
        return panel("Sample pictures are made after this step.", tone="note")
