"""The third tab: a saved step as one file for other tools, and its download."""

import re
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from dreambooth.errors import ExportError
from dreambooth.models.base import STARTER
from dreambooth.models.original_file import starter_folder
from ui.boundary import Services, shown
from ui.render import panel, size_in_words

FORMATS = {".safetensors": ".safetensors (A1111, ComfyUI and most others)", ".ckpt": ".ckpt (older tools)"}


@dataclass(frozen=True)
class ConvertTab:
    """The tab's components that others read or that events fill."""

    model: gr.Dropdown
    suffix: gr.Radio
    half: gr.Checkbox
    prepare: gr.Button
    message: gr.HTML
    ready: gr.Column
    download: gr.DownloadButton


def build(services: Services) -> ConvertTab:
    """Lay out the tab; `connect` gives it life."""
    choices = convertible(services)
    with gr.Row(equal_height=False):
        model = gr.Dropdown(
            choices, value=choices[0][1], label="Model", allow_custom_value=True, elem_id="convert-model",
            info="A saved step of a run, or a model folder.",
        )  # fmt: skip
        with gr.Column():
            suffix = gr.Radio(
                [(label, value) for value, label in FORMATS.items()], value=".safetensors", label="File",
                elem_id="convert-format",
            )  # fmt: skip
            half = gr.Checkbox(
                True, label="Half precision (fp16)", elem_id="convert-half",
                info="What most tools compute in, at half the size of fp32.",
            )  # fmt: skip
    prepare = gr.Button("Prepare the file", variant="primary", elem_id="prepare")
    message = gr.HTML(elem_id="convert-message")
    with gr.Column(visible=False) as ready:
        download = gr.DownloadButton("Download the file", elem_id="download")
    gr.HTML(
        f"<p class='db-hint'>Files are kept in <code>{services.workspace.exports_dir}</code> "
        "and can be downloaded by everyone who can open this page.</p>"
    )
    return ConvertTab(model, suffix, half, prepare, message, ready, download)


def convertible(services: Services) -> list[tuple[str, str]]:
    """Return the models that lie on this machine."""
    return [(label, value) for label, value in services.jobs.models() if value == STARTER or Path(value).is_dir()]


def connect(tab: ConvertTab, services: Services) -> None:
    """Join the tab's components to what they do."""
    handlers = Handlers(services)
    written = tab.prepare.click(
        handlers.convert, [tab.model, tab.suffix, tab.half], [tab.download, tab.message],
        api_name="convert", concurrency_limit=1, show_progress_on=tab.message,
    )  # fmt: skip
    written.success(lambda: gr.Column(visible=True), None, tab.ready, api_visibility="private", show_progress="hidden")


class Handlers:
    """What the tab does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.convert = shown(self._convert)

    def _convert(
        self,
        model: str,
        suffix: str = ".safetensors",
        half: bool = True,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[str, str]:
        """Write one file for other tools into the exports folder, compare it with the model, and return it.

        `half` stores fp16, otherwise fp32. Also returned is a sentence with its size.
        """
        from dreambooth.verify import convert_verified

        known = dict((value, label) for label, value in convertible(self._services))
        if model not in known or suffix not in FORMATS:
            raise ExportError(f"{model!r} cannot be converted.", "It is not in the list.", "Choose one of the list.")
        folder = starter_folder() if model == STARTER else Path(model)
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", known[model]).strip("-")
        target = self._services.workspace.exports_dir / f"{stem}{'-fp16' if half else '-fp32'}{suffix}"
        verdict = convert_verified(
            folder, target, precision="fp16" if half else "fp32",
            on_progress=lambda done, total: progress((done, total), "Converting"),
        )  # fmt: skip
        path = verdict.path
        size = size_in_words(path.stat().st_size)
        done = panel(f"{path.name} is ready: {size}.", f"{verdict} It lies in {path.parent}.", tone="good")
        return str(path), done
