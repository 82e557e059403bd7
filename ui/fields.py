"""Form fields from the settings' descriptions: one place decides how a setting is presented."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from dreambooth.config.fields import FieldInfo, describe
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import FieldProblem
from ui.render import field_label, field_note

MAIN_FIELDS = (
    "max_train_steps", "learning_rate", "train_text_encoder", "with_prior_preservation", "num_class_images",
    "resolution", "save_interval", "seed", "save_sample_prompt", "stop_when_good", "method", "lora_rank",
    "lora_targets",
)  # fmt: skip
# Asked for elsewhere on the page, or useless there: a run of the page is always in the data folder.
NOT_IN_THE_FORM = ("pretrained_model_name_or_path", "output_dir", "logging_dir")

STRENGTHS = ("unet_strength", "text_encoder_strength")
STRENGTH_STEP = 0.05


def strength_sliders(tab: str) -> dict[str, Any]:
    """Return the strength sliders of UNet and text encoder, by setting."""
    infos = {info.name: info for info in describe(GenerationConfig)}
    return {
        name: gr.Slider(
            infos[name].low, infos[name].high, value=infos[name].default, step=STRENGTH_STEP,
            label=field_label(name), info=field_note(infos[name]), elem_id=f"{tab}-{name}", min_width=170,
        )
        for name in STRENGTHS
    }  # fmt: skip


def form_infos() -> dict[str, FieldInfo]:
    """Return the settings of the Train tab's form by name, in the order of their declaration."""
    return {info.name: info for info in describe(TrainingConfig) if info.name not in NOT_IN_THE_FORM}


def has_effect(info: FieldInfo, method: str) -> bool:
    """Return whether a training by this method reads the setting."""
    return info.method in ("", method)


def field_component(info: FieldInfo, value: Any, tab: str = "field") -> Any:
    """Return the component for a setting.

    Ranges are shown, not enforced by the browser: it would stop at the first mistake, and all should be shown at once.
    """
    common: dict[str, Any] = {
        "label": field_label(info.name), "info": field_note(info), "elem_id": f"{tab}-{info.name}", "min_width": 170,
    }  # fmt: skip
    if info.type is bool:
        return gr.Checkbox(value=value, **common)
    if info.choices:
        return gr.Dropdown(list(info.choices), value=value, **common)
    if info.type in (int, float) and not info.optional:
        return gr.Number(value=value, precision=0 if info.type is int else None, **common)
    if info.type in (int, float):
        # A number field cannot be empty, and would round a large seed.
        return gr.Textbox(value=shown_value(info, value), placeholder="automatic", max_lines=1, **common)
    lines = 2 if "prompt" in info.name else 1
    return gr.Textbox(value=shown_value(info, value), lines=lines, **common)


def shown_value(info: FieldInfo, value: Any) -> Any:
    """Return a setting's value for its field: optional ones are shown as text."""
    if not info.optional:
        return value
    return "" if value is None else str(value)


def read_fields(infos: Mapping[str, FieldInfo], values: Sequence[Any]) -> dict[str, Any]:
    """Return the form's values by setting; an empty field is None if the setting is optional."""
    return {info.name: read_field(info, value) for info, value in zip(infos.values(), values, strict=True)}


def read_field(info: FieldInfo, value: Any) -> Any:
    """Return a field's value as the setting's type; text that cannot be parsed stays, for the check to report it."""
    if not info.optional or not isinstance(value, str):
        return value
    text = value.strip()
    if not text or info.type is str:
        return text or None
    try:
        return info.type(text)
    except ValueError:
        return text


# Mistakes at their fields ---------------------------------------------------------------------------------------------


def marks(
    names: Collection[str], notes: Mapping[str, str], problems: Iterable[FieldProblem], marked: Iterable[str]
) -> dict[str, Any]:
    """Return the updates that mark every field with a problem, and unmark those fixed since, by field.

    `notes` are the fields' usual notes; `marked` are the currently marked fields.
    """
    messages = {problem.field: problem.message for problem in problems}
    before = set(marked)

    wrong = {
        name: gr.update(info=f"{field_label(name)} {_plain(messages[name])}", elem_classes=["db-wrong"])
        for name in names if name in messages
    }  # fmt: skip
    mended = {name: gr.update(info=notes[name], elem_classes=[]) for name in names if name in before - set(messages)}
    return wrong | mended


def _plain(text: str) -> str:
    """Return the text without characters that Gradio's notes interpret as markup; they escape HTML themselves."""
    return text.replace("`", "'").replace("*", chr(0x2217)).replace("_", " ")
