"""The page as a whole: the header, the four tabs, and what happens across them."""

from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.device.hardware import in_a_line
from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError
from dreambooth.models.base import STARTER
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from ui.access.space import space_notice
from ui.api import publish
from ui.boundary import QUIET, Page, Services, Shown, shown
from ui.concepts import tab as concepts_tab
from ui.convert import tab as convert_tab
from ui.events import connect
from ui.generate import tab as generate_tab
from ui.generate.handlers import recipe_unasked
from ui.generate.late_answers import OPENING, closed_until
from ui.render import Doing, error_panel, header
from ui.train import handlers as train_handlers
from ui.train import tab as train_tab
from ui.train.advice import Advice
from ui.train.follower import BUSY_POLL_S, Follower, keeps_files

CACHE_SWEEP_S, CACHE_AGE_S = 3600, 86400
ONE_HOUSEHOLD = "One app, one household: whoever can open this page sees every run, photo and picture in it."


def build_page(
    jobs: Jobs,
    workspace: Workspace,
    settings: Settings,
    copies_dir: Path,
    training_refusal: DreamBoothError | None = None,
    *,
    takes_folders: bool = False,
) -> Page:
    """Return the page; `copies_dir` is a temporary folder for the copies of pictures that browsers are given.

    With `takes_folders` photos are read from folders that are typed in: where nobody else can open the page.
    """
    services = Services(
        jobs, workspace, settings, Shown(copies_dir), training_refusal, takes_folders=takes_folders
    )  # fmt: skip
    # A download is then sent as it lies there instead of being copied into Gradio's cache first.
    gr.set_static_paths([workspace.exports_dir])
    page = Page(title="DreamBooth", analytics_enabled=False, delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S), fill_width=True)
    with page:
        line = header(in_a_line(services.device()), Doing(), settings.data_dir, keeps_files(settings))
        top = gr.HTML(line, elem_id="header")
        if settings.on_space:
            gr.HTML(space_notice(settings))
        with gr.Tabs(selected="concepts", elem_id="tabs", elem_classes=[OPENING]) as tabs:
            with gr.Tab("Upload & Concepts", id="concepts"):
                concepts = concepts_tab.build(services)
            with gr.Tab("Train", id="train"):
                train = train_tab.build(services)
            with gr.Tab("Convert", id="convert"):
                convert = convert_tab.build(services)
            with gr.Tab("Generate", id="generate"):
                generate = generate_tab.build(services)
        gr.HTML(f"<p class='db-hint' id='one-household'>{ONE_HOUSEHOLD}</p>")
        if training_refusal is not None:
            gr.HTML(error_panel(training_refusal), elem_id="training-refusal")
        concepts_tab.connect(concepts, services, train.base, train.fields)
        concepts_tab.connect_go_on(concepts, services, train.base, tabs)
        train_tab.connect(
            train, services, page=page, photo_set=concepts.photo_set, photos=concepts.report,
            kind=concepts.kind,
            prompts={"instance_prompt": concepts.instance_prompt, "class_prompt": concepts.class_prompt},
        )  # fmt: skip
        convert_tab.connect(convert, services, page)
        generate_tab.connect(generate, services, page)
        _connect_whole(page, services, top, tabs, concepts, train, convert, generate)
        publish(services)
        page.show_hidden_progress_on(concepts.photo_set)
    return page


def _connect_whole(
    page: gr.Blocks,
    services: Services,
    top: gr.HTML,
    tabs: gr.Tabs,
    concepts: concepts_tab.ConceptsTab,
    train: train_tab.TrainTab,
    convert: convert_tab.ConvertTab,
    generate: generate_tab.GenerateTab,
) -> None:
    quiet = QUIET | {"concurrency_limit": None}
    advised = gr.State(())
    looks = connect(
        Follower(services),
        train.panel | {
            "page": page, "header": top, "table": train.table, "convert_model": convert.model,
            "generate_model": generate.model, "advised": advised, "timer": gr.Timer(BUSY_POLL_S),
            "seen": gr.State({}), "form": train.settings,
        },
    )  # fmt: skip

    advice = Advice(services)
    for tab, name in ((convert, "advise_convert"), (generate, "advise_generate")):
        gr.on(
            [tab.model.change, advised.change, page.load], shown(advice.told), tab.model, tab.advice, api_name=name,
            **quiet,
        )  # fmt: skip

    photos = concepts_tab.Handlers(services).photos
    newest = page.load(
        shown(photos.newest), train.fields["resolution"], concepts.contents, api_name="newest_photos", **quiet
    )  # fmt: skip
    closed_until(page, [looks["first_look"], concepts.said.after(newest)], or_failed=[newest])

    def sample() -> list[Any]:
        name, config = train_handlers.start_sample(services)
        contents = photos.contents(concepts_tab.SAMPLE_SET, config.resolution)
        shown_run = [gr.Dropdown(value=name), train_handlers.folded(True)]
        return [gr.Tabs(selected="train"), *shown_run, STARTER, *contents]

    started = [tabs, train.panel["run"], train.settings, train.base, *concepts.contents]
    began = concepts.said.asked_by(concepts.sample.click)
    concepts.said.after(began.then(shown(sample), None, started, api_name="sample_button", **quiet))

    def make_pictures(name: str) -> list[Any]:
        """Show the best step's own samples in the Generate tab, the newest's where none is known, and choose it."""
        view = services.jobs.view(name)
        step = view.recommended_step or (view.steps[-1] if view.steps else None)
        model = gr.skip() if step is None else gr.Dropdown(value=str(view.path / str(step)))
        samples = view.samples.get(step or 0, [])
        copies, files = [services.shown.copy(path) for path in samples], [str(path) for path in samples]
        shown_samples = [copies, files, recipe_unasked(files)] if samples else [gr.skip()] * 3
        return [gr.Tabs(selected="generate"), model, *shown_samples]

    opened = [tabs, generate.model, generate.pictures, generate.files, generate.recipe]
    train.panel["pictures"].click(shown(make_pictures), train.panel["run"], opened, api_name="open_gallery", **quiet)
