"""The fourth tab: words in, pictures out, each with its recipe in the file."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config import GenerationConfig
from dreambooth.fields import describe
from dreambooth.models.base import STARTER, read_card
from dreambooth.workspace import RunFolder
from ui.boundary import Services, shown
from ui.fields import field_component, read_field
from ui.render import panel

NUMBERS = ("num_images_per_prompt", "num_inference_steps", "guidance_scale", "height", "width", "seed")


@dataclass(frozen=True)
class GenerateTab:
    """The tab's components that others read or that events fill."""

    model: gr.Dropdown
    prompt: gr.Textbox
    prefilled: gr.State
    negative_prompt: gr.Textbox
    numbers: dict[str, Any]
    generate: gr.Button
    cancel: gr.Button
    message: gr.HTML
    pictures: gr.Gallery


def build(services: Services) -> GenerateTab:
    """Lay out the tab; `connect` gives it life."""
    infos = {info.name: info for info in describe(GenerationConfig)}
    choices = services.jobs.models()
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            model = gr.Dropdown(
                choices, value=choices[0][1], label="Model", allow_custom_value=True, elem_id="generate-model",
                info="A saved step of a run, or a base model.",
            )  # fmt: skip
            prompt = gr.Textbox(
                "", label="Prompt", lines=2, elem_id="prompt",
                info="What the pictures show, with the words your photos were given.",
            )  # fmt: skip
            negative_prompt = gr.Textbox(
                "", label="Not in the picture", elem_id="negative-prompt", info="`negative_prompt`"
            )
            numbers: dict[str, Any] = {}
            with gr.Row(equal_height=False):
                for name in ("num_images_per_prompt", "seed"):
                    numbers[name] = field_component(infos[name], infos[name].default, "generate")
            with gr.Accordion("Advanced", open=False):
                for pair in (("num_inference_steps", "guidance_scale"), ("height", "width")):
                    with gr.Row(equal_height=False):
                        for name in pair:
                            numbers[name] = field_component(infos[name], infos[name].default, "generate")
            with gr.Row():
                generate = gr.Button("Generate", variant="primary", elem_id="generate")
                cancel = gr.Button("Cancel", elem_id="cancel")
        with gr.Column(scale=7, min_width=320):
            message = gr.HTML(elem_id="generate-message")
            pictures = gr.Gallery(
                label="Pictures", columns=2, height=520, object_fit="contain", interactive=False, elem_id="pictures",
                buttons=["download", "download_all", "fullscreen"],
            )  # fmt: skip
    numbers = {name: numbers[name] for name in NUMBERS}
    return GenerateTab(model, prompt, gr.State(""), negative_prompt, numbers, generate, cancel, message, pictures)


def connect(tab: GenerateTab, services: Services, page: gr.Blocks) -> None:
    """Join the tab's components to what they do."""
    handlers = Handlers(services)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.generate.click(
        handlers.generate, [tab.model, tab.prompt, tab.negative_prompt, *tab.numbers.values()],
        [tab.pictures, tab.message], api_name="generate", concurrency_limit=1, show_progress_on=tab.message,
    )  # fmt: skip
    tab.cancel.click(handlers.cancel, None, tab.message, api_name="cancel_generate", concurrency_limit=None, **quiet)
    gr.on(
        [tab.model.change, page.load], handlers.model_chosen, [tab.model, tab.prompt, tab.prefilled],
        [tab.prompt, tab.prefilled, tab.numbers["guidance_scale"]], api_name="model_chosen", **quiet,
    )  # fmt: skip


class Handlers:
    """What the tab does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._cancelled = threading.Event()
        self._infos = {info.name: info for info in describe(GenerationConfig)}
        self.generate = shown(self._generate)
        self.model_chosen = shown(self._model_chosen)

    def _generate(
        self, model: str, prompt: str, negative_prompt: str = "", num_images_per_prompt: float | None = 4,
        num_inference_steps: float | None = 24, guidance_scale: float | None = 7.5, height: str = "",
        width: str = "", seed: str = "", progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple[Any, str]]:  # fmt: skip
        """Make pictures and hand them out one by one, as PNG files with their recipe."""
        self._cancelled.clear()
        given = {
            "num_images_per_prompt": num_images_per_prompt, "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale, "height": height, "width": width, "seed": seed,
        }  # fmt: skip
        numbers: dict[str, Any] = {name: read_field(self._infos[name], value) for name, value in given.items()}
        config = GenerationConfig(prompt=prompt, negative_prompt=negative_prompt or "", **numbers).checked()
        yield [], panel("Loading the model and making the pictures.", tone="note")
        made: list[str] = []
        wanted = config.num_images_per_prompt
        for path in self._services.jobs.generate(model, config):
            made.append(self._services.shown.copy(path))
            yield list(made), panel(f"{len(made)} of {wanted} pictures.", tone="note")
        end = "Cancelled" if self._cancelled.is_set() else "Done"
        folder = self._services.workspace.pictures_dir
        yield list(made), panel(f"{end}: {len(made)} of {wanted} pictures.", f"They lie in {folder}.", tone="good")

    def cancel(self) -> str:
        """End the pictures that are being made, after the denoising step they are at."""
        self._cancelled.set()
        self._services.jobs.pictures.cancel()
        return panel("Cancelling.", tone="note")

    def _model_chosen(self, model: str, prompt: str, prefilled: str) -> tuple[Any, Any, Any]:
        """Offer the run's own words as prompt, unless one was typed, and the guidance its samples had."""
        run = RunFolder(Path(model).parent) if model else None
        if run is None or not run.config_path.exists() or run.path.parent != self._services.workspace.runs_dir:
            guidance = read_card(STARTER).recipe.get("save_guidance_scale", 7.5) if model == STARTER else gr.skip()
            return gr.skip(), gr.skip(), guidance
        config = self._services.jobs.view(run.name).config
        if config is None or not config.concepts:
            return gr.skip(), gr.skip(), gr.skip()
        words = config.concepts[0].instance_prompt
        own_prompt = prompt.strip() and prompt != prefilled
        return (gr.skip() if own_prompt else words), words, config.save_guidance_scale
