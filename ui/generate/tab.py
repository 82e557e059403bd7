"""The fourth tab: from prompts to images, each with its settings in the file; steps of a run side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dreambooth.config.fields import describe
from dreambooth.config.generation import GenerationConfig
from ui.bases import missing_base_field
from ui.boundary import Services
from ui.draft import keep_in_browser
from ui.events import connect as connect_events
from ui.fields import field_component, strength_sliders
from ui.generate import history as picture_history
from ui.generate import loras as lora_files
from ui.generate.handlers import AFTER, IDLE_POLL_S, NUMBERS, PAUSE, Handlers
from ui.generate.view import request_status
from ui.late_answers import Fillable, fillable

NO_RECIPE = "Select a picture to see its settings."


@dataclass(frozen=True)
class GenerateTab:
    """The tab's components that others read or that events fill."""

    ways: gr.Tabs
    model: gr.Dropdown
    advice: gr.HTML
    prompt: gr.Textbox
    examples: gr.Dataset
    run: gr.Dropdown
    steps: gr.Dropdown
    steps_of: gr.State
    prompts: gr.Textbox
    offered: Fillable
    negative_prompt: gr.Textbox
    usual: gr.Button
    numbers: dict[str, Any]
    strengths: dict[str, Any]
    loras: lora_files.Loras
    base: gr.Dropdown
    when: gr.Radio
    generate: gr.Button
    compare: gr.Button
    cancel: gr.Button
    message: gr.HTML
    pictures: gr.Gallery
    files: gr.State
    recipe: gr.Textbox
    read_png: gr.UploadButton
    use_settings: gr.Button
    use_seed: gr.Button
    history: picture_history.History
    timer: gr.Timer


def build(services: Services) -> GenerateTab:
    """Lay out the tab; `connect` adds its events."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            asked = _build_request(services)
        with gr.Column(scale=7, min_width=320):
            message = gr.HTML(request_status(None, 0), elem_id="generate-message")
            pictures = gr.Gallery(
                label="Pictures", columns=2, height="auto", object_fit="contain", interactive=False, elem_id="pictures",
                buttons=["download", "fullscreen"], visible=False,
            )  # fmt: skip
            recipe = gr.Textbox(
                label="Settings of the selected picture", placeholder=NO_RECIPE, lines=3, max_lines=8,
                elem_id="recipe", buttons=["copy"],
                info="The settings stored in the file. Settings from elsewhere can be pasted here.",
            )  # fmt: skip
            with gr.Row():
                use_settings = gr.Button("Use these settings", size="sm", elem_id="use-settings")
                use_seed = gr.Button("Use its seed", size="sm", elem_id="use-seed")
                read_png = gr.UploadButton(
                    "Read settings from a PNG", size="sm", file_types=[".png"], elem_id="read-png", type="filepath"
                )
    history = picture_history.build()
    guidance = asked["numbers"]["guidance_scale"]
    offered = fillable({"prompt": asked["prompt"], "guidance_scale": guidance},
                       {"prompt": "", "guidance_scale": guidance.value})  # fmt: skip
    return GenerateTab(
        **asked, offered=offered, message=message, pictures=pictures, files=gr.State([]), recipe=recipe,
        read_png=read_png, use_settings=use_settings, use_seed=use_seed, history=history, timer=gr.Timer(IDLE_POLL_S),
    )  # fmt: skip


def _build_request(services: Services) -> dict[str, Any]:
    """Lay out the request's fields, and return the components by name."""
    infos = {info.name: info for info in describe(GenerationConfig)}
    choices = services.jobs.models()
    with gr.Tabs(selected="make") as ways:
        with gr.Tab("Make pictures", id="make"):
            model = gr.Dropdown(
                choices, value=choices[0][1], label="Model", allow_custom_value=True, elem_id="generate-model",
                info="A saved step of a run, or a base model.",
            )  # fmt: skip
            advice = gr.HTML(elem_id="generate-advice")
            prompt = gr.Textbox(
                "", label="Prompt", lines=3, elem_id="prompt",
                info="What the pictures show; include the instance prompt of your photos.",
            )  # fmt: skip
            examples = gr.Dataset(
                components=[gr.Textbox(visible=False)], samples=[], type="values", elem_id="examples", label="Try one",
                samples_per_page=6,
            )  # fmt: skip
        with gr.Tab("Compare steps", id="compare", elem_id="compare-way"):
            run = gr.Dropdown([], label="Run", elem_id="compare-run", allow_custom_value=True)
            steps = gr.Dropdown(
                [], multiselect=True, allow_custom_value=True, label="Steps", elem_id="compare-steps",
                info="One row per step, with the same prompts and seeds. Leave empty for all steps.",
            )  # fmt: skip
            # The run whose steps are listed, and those steps.
            steps_of = gr.State([])
            prompts = gr.Textbox("", label="Prompts, one per line", lines=3, elem_id="compare-prompts")
    negative_prompt = gr.Textbox(
        "",
        label="Negative prompt",
        elem_id="negative-prompt",
        info="What the pictures should not show. `negative_prompt`",
    )
    usual = gr.Button("Use default negative prompt", size="sm", elem_id="take-negative")
    numbers: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        for name in ("num_images_per_prompt", "seed"):
            numbers[name] = field_component(infos[name], infos[name].default, "generate")
    with gr.Accordion("Advanced", open=False, elem_id="generate-advanced"):
        for pair in (("sampler", "num_inference_steps"), ("guidance_scale", "height"), ("width",)):
            with gr.Row(equal_height=False):
                for name in pair:
                    numbers[name] = field_component(infos[name], infos[name].default, "generate")
        with gr.Row(equal_height=False):
            strengths = strength_sliders("generate")
    loras = lora_files.build(services)
    base = missing_base_field("generate-base")
    when = gr.Radio(
        [("After the training", AFTER), ("Now, and pause the training meanwhile", PAUSE)], value=AFTER, visible=False,
        label="The device is training", elem_id="generate-when",
        info="A paused training continues by itself, with the same result as without the pause.",
    )  # fmt: skip
    with gr.Row():
        generate = gr.Button("Generate", variant="primary", elem_id="generate")
        compare = gr.Button("Compare", variant="primary", visible=False, elem_id="compare")
        cancel = gr.Button("Cancel", interactive=False, elem_id="cancel")
    return {
        "ways": ways, "model": model, "advice": advice, "prompt": prompt, "examples": examples, "run": run,
        "steps": steps, "steps_of": steps_of, "prompts": prompts, "negative_prompt": negative_prompt, "usual": usual,
        "numbers": {name: numbers[name] for name in NUMBERS}, "strengths": strengths, "loras": loras,
        "base": base, "when": when,
        "generate": generate, "compare": compare, "cancel": cancel,
    }  # fmt: skip


def connect(tab: GenerateTab, services: Services, page: gr.Blocks, events: Mapping[str, Any]) -> None:
    """Connect the tab's components with their handlers; some follow `events` of other tabs."""
    form = {
        "negative_prompt": tab.negative_prompt, **tab.numbers, "when": tab.when, **tab.strengths,
        "loras": tab.loras.chosen, "base": tab.base,
    }  # fmt: skip
    of_loras = {
        "lora_rows": tab.loras.rows, "lora_files": tab.loras.files, "lora_strengths": tab.loras.strengths,
        "lora_section": tab.loras.section,
    } | tab.loras.files  # fmt: skip
    typed = {"prompt": tab.prompt, "negative_prompt": tab.negative_prompt, **tab.numbers}
    kept = {"filled": tab.offered.filled, **typed}
    # Gradio keeps to itself the first input into a field that the page has filled in.
    edited = [getattr(field, event) for field in typed.values() for event in ("input", "blur") if hasattr(field, event)]
    keep_in_browser(page, "dreambooth-pictures", edited, kept)
    lora_files.connect(tab.loras)
    connect_events(lora_files.Handlers(), of_loras)
    # Answers for programs, in plain values: hidden on the page.
    for_programs = {
        "made": gr.Gallery(visible=False), "progress": gr.HTML(visible=False), "programs": gr.Button(visible=False),
        "num_cancelled": gr.Number(visible=False),
    }  # fmt: skip
    seen = {"seen": gr.State({}), "browser": gr.Textbox("", visible=False, label="Browser")}
    connect_events(
        Handlers(services),
        vars(tab) | form | of_loras | {"form": form, "answer": tab.offered.answer} | for_programs | seen,
        events,
    )
    history = vars(tab.history) | {"model": tab.model, "recipe": tab.recipe, "ended": gr.State(None)}
    connect_events(picture_history.Handlers(services), history | for_programs | seen, events)
