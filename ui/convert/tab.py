"""The third tab: a saved step as files for other tools, their downloads, the Hub, and disk usage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.export.weights_file import FILE_KINDS
from dreambooth.formats.lora_keys import LORA_TARGETS
from ui.bases import missing_base_field
from ui.boundary import Services
from ui.convert import storage as storage_section
from ui.convert.handlers import FORMATS, OWN, Handlers, convertible
from ui.convert.opens_in import opens_in
from ui.events import connect as connect_events
from ui.fields import strength_sliders

BAKED_IN = (
    "The file becomes base + strength x change; below 1 it weakens an overtrained model. "
    "Uploads to the Hub keep the trained strength."
)
LORA_SIZE = (
    "Set one of these to choose the size of the LoRA. "
    "After it is written, the page shows how much of the change it lacks."
)
# (label, placeholder) by the setting.
LORA_SIZES = {
    "rank": ("Rank", "16"),
    "max_mb": ("Size limit in MB", "such as 20"),
    "max_error": ("Largest error", "0 to 1, such as 0.3"),
}


@dataclass(frozen=True)
class ConvertTab:
    """The tab's components that others read or that events fill."""

    model: gr.Dropdown
    advice: gr.HTML
    suffix: gr.Radio
    half: gr.Checkbox
    weaker: gr.Accordion
    strengths: dict[str, gr.Slider]
    kind: gr.Radio
    lora_part: gr.Column
    lora_size: dict[str, gr.Textbox]
    targets: gr.Dropdown
    base: gr.Dropdown
    prepare: gr.Button
    message: gr.HTML
    room: gr.HTML
    exports: gr.HTML
    ready: gr.Column
    download: gr.DownloadButton
    repo_id: gr.Textbox
    private: gr.Checkbox
    single_file: gr.Checkbox
    push: gr.Button
    pushed: gr.HTML
    storage: storage_section.StorageSection


def build(services: Services) -> ConvertTab:
    """Lay out the tab; `connect` adds its events."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            asked = _build_request(services)
        with gr.Column(scale=7, min_width=320):
            message = gr.HTML(
                "<div class='db-status'><span class='db-quiet'>The file is written, read again and compared with the "
                "model tensor by tensor. Only then is it offered.</span></div>",
                elem_id="convert-message",
            )  # fmt: skip
            with gr.Column(visible=False) as ready:
                download = gr.DownloadButton("Download the file", variant="primary", elem_id="download")
            exports = gr.HTML(elem_id="exports")
    gr.HTML(
        f"<p class='db-hint'>Files are saved in <code>{services.workspace.exports_dir}</code> "
        "and anyone who can open this page can download them.</p>"
    )
    with gr.Accordion("Opens in", open=False, elem_id="opens-in"):
        gr.Markdown(opens_in())
    with gr.Accordion("Share on the Hub", open=False, elem_id="share"):
        with gr.Row():
            repo_id = gr.Textbox(
                label="Repository", placeholder="owner/name, or a name of your own account", elem_id="repo-id",
                info="Existing repositories are updated; their name and visibility stay.",
            )  # fmt: skip
            private = gr.Checkbox(True, label="Private", info="Only you can see it.", elem_id="push-private")
            single_file = gr.Checkbox(True, label="Also upload one .safetensors file for web UIs", elem_id="push-file")
        push = gr.Button("Upload", elem_id="push")
        pushed = gr.HTML(elem_id="push-message")
    storage = storage_section.build()
    return ConvertTab(
        **asked, message=message, exports=exports, ready=ready, download=download, repo_id=repo_id, private=private,
        single_file=single_file, push=push, pushed=pushed, storage=storage,
    )  # fmt: skip


def _build_request(services: Services) -> dict[str, Any]:
    """Lay out the request's fields, and return the components by name."""
    choices = convertible(services)
    model = gr.Dropdown(
        choices, value=choices[0][1], label="Model", allow_custom_value=True, elem_id="convert-model",
        info="A saved step of a run, or a model folder.",
    )  # fmt: skip
    advice = gr.HTML(elem_id="convert-advice")
    suffix = gr.Radio(
        [(label, value) for value, label in FORMATS.items()], value=".safetensors", label="What to write",
        elem_id="convert-format",
    )  # fmt: skip
    # A program may choose any; the page offers those that suit the model.
    kind = gr.Radio(list(FILE_KINDS), value=OWN, label="Kind of file", elem_id="convert-kind", visible=False)
    half = gr.Checkbox(
        True, label="Half precision (fp16)", elem_id="convert-half",
        info="Half the size of fp32, and what most tools use.",
    )  # fmt: skip
    with gr.Accordion("Adjust strength", open=False, elem_id="convert-weaker") as weaker:
        gr.HTML(f"<p class='db-hint'>{BAKED_IN}</p>")
        with gr.Row(equal_height=False):
            strengths = strength_sliders("convert")
    with gr.Column(visible=False, elem_id="convert-lora") as lora_part:
        gr.HTML(f"<p class='db-hint'>{LORA_SIZE}</p>")
        with gr.Row(equal_height=False):
            lora_size = {name: _lora_size_field(name) for name in LORA_SIZES}
        targets = gr.Dropdown(
            list(LORA_TARGETS), value="linear", label="LoRA targets", elem_id="convert-lora_targets",
            info="Attention layers, all linear layers, or convolutions too.",
        )  # fmt: skip
    base = missing_base_field("convert-base")
    room = gr.HTML(elem_id="convert-room")
    prepare = gr.Button("Prepare the file", variant="primary", elem_id="prepare")
    return {
        "model": model, "advice": advice, "suffix": suffix, "half": half, "weaker": weaker, "strengths": strengths,
        "kind": kind, "lora_part": lora_part, "lora_size": lora_size, "targets": targets, "base": base,
        "prepare": prepare, "room": room,
    }  # fmt: skip


def _lora_size_field(name: str) -> gr.Textbox:
    label, placeholder = LORA_SIZES[name]
    return gr.Textbox("", label=label, placeholder=placeholder, max_lines=1, elem_id=f"convert-{name}", min_width=120)


def connect(tab: ConvertTab, services: Services, events: Mapping[str, Any]) -> None:
    """Connect the tab's components with their handlers; some follow `events` of other tabs."""
    handlers = Handlers(services)
    connect_events(handlers, vars(tab), events)
    gr.api(handlers.list_sizes, api_name="list_sizes", concurrency_limit=1)
    storage_section.connect(tab.storage, services)
