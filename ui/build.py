"""The page as a whole: the header, the four tabs, and what happens across them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.data.photo_sets import SAMPLE_SET
from dreambooth.device.hardware import device_line
from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError
from dreambooth.models.base import STARTER
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.view import RunView
from ui import address, status_line
from ui.access.space import space_notice
from ui.address import to
from ui.api import publish
from ui.boundary import QUICK, Page, Services, Shown
from ui.concepts import tab as concepts_tab
from ui.concepts.photos import CONTENTS, PhotoHandlers
from ui.convert import tab as convert_tab
from ui.events import Answer, connect, on
from ui.generate import tab as generate_tab
from ui.generate.handlers import recipe_unasked, way_shown
from ui.generate.view import compared_at_first
from ui.header import Doing, header
from ui.late_answers import OPENING, closed_until
from ui.render import error_panel
from ui.train import tab as train_tab
from ui.train.advice import Advice
from ui.train.follower import BUSY_POLL_S, Follower, keeps_files
from ui.train.programs import start_sample

CACHE_SWEEP_S, CACHE_AGE_S = 3600, 86400
ONE_HOUSEHOLD = "Anyone who can open this page can see all runs, photos and pictures."


def build_page(
    jobs: Jobs,
    workspace: Workspace,
    settings: Settings,
    copies_dir: Path,
    training_refusal: DreamBoothError | None = None,
    *,
    takes_folders: bool = False,
) -> Page:
    """Return the page; `copies_dir` is a temporary folder for the copies of images that browsers get.

    With `takes_folders` photos are read from typed folder paths: only where nobody else can open the page.
    """
    services = Services(
        jobs, workspace, settings, Shown(copies_dir), training_refusal, takes_folders=takes_folders
    )  # fmt: skip
    # A download is then sent directly instead of being copied into Gradio's cache first.
    gr.set_static_paths([workspace.exports_dir])
    page = Page(title="DreamBooth", analytics_enabled=False, delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S), fill_width=True)
    with page:
        device, unknown = services.device(), Doing(is_known=False)
        line = header(device_line(device), unknown, settings.data_dir, keeps_files(settings), device.unused_card)
        top = gr.HTML(line, elem_id="header")
        at_work = status_line.build()
        places = address.build()
        if settings.on_space:
            gr.HTML(space_notice(settings))
        with gr.Tabs(selected="concepts", elem_id="tabs", elem_classes=[OPENING]) as tabs:
            with gr.Tab("Upload & Concepts", id="concepts") as first:
                concepts = concepts_tab.build(services)
            with gr.Tab("Train", id="train") as second:
                train = train_tab.build(services)
            with gr.Tab("Convert", id="convert") as third:
                convert = convert_tab.build(services)
            with gr.Tab("Generate", id="generate") as fourth:
                generate = generate_tab.build(services)
        gr.HTML(f"<p class='db-hint' id='one-household'>{ONE_HOUSEHOLD}</p>")
        if training_refusal is not None:
            gr.HTML(error_panel(training_refusal), elem_id="training-refusal")
        place = places["place"]
        events = concepts_tab.connect(concepts, services, page, place, train.base, train.fields)
        train_tab.connect(
            train, services, page=page, photo_set=concepts.photo_set, photos=concepts.report,
            masked=concepts.masked, kind=concepts.kind, place=place,
            prompts={"instance_prompt": concepts.instance_prompt, "class_prompt": concepts.class_prompt},
            events=events,
        )  # fmt: skip
        convert_tab.connect(convert, services, events)
        generate_tab.connect(generate, services, page, events)
        across = {"page": page, "header": top, "tabs": tabs, "place": place, **at_work}
        each = dict(zip(address.TABS, (first, second, third, fourth), strict=True))
        address.connect(places, page, tabs, each, train.panel["run"])
        _connect_whole(across, services, concepts, train, convert, generate, events)
        publish(services)
        page.show_hidden_progress_on(concepts.photo_set)
    return page


def _connect_whole(
    across: dict[str, Any],
    services: Services,
    concepts: concepts_tab.ConceptsTab,
    train: train_tab.TrainTab,
    convert: convert_tab.ConvertTab,
    generate: generate_tab.GenerateTab,
    events: Mapping[str, Any],
) -> None:
    named = concepts_tab.by_name(concepts) | across | train.runs | {
        "base": train.base, "run": train.panel["run"], "make_pictures": train.panel["pictures"],
        "advised": gr.State(()), "timer": gr.Timer(BUSY_POLL_S), "seen": gr.State({}), "convert_model": convert.model,
        "convert_advice": convert.advice, "generate_model": generate.model, "generate_advice": generate.advice,
        "ways": generate.ways, "generate": generate.generate, "compare": generate.compare, "compare_run": generate.run,
        "steps": generate.steps, "steps_of": generate.steps_of,
        "saved": train.panel["saved"], "generated": generate.pictures, "files": generate.files,
        "recipe": generate.recipe,
    }  # fmt: skip
    following = connect(Follower(services), named | train.panel)
    connect(PageHandlers(services), named, events)
    connect(status_line.Handlers(services), named)
    large = [train.command, train.as_json, train.panel["samples"], convert.storage.table, generate.pictures]
    newest = events["newest_photos"]
    closed_until(
        across["page"], [following["first_look"], concepts.entries.after(newest)], or_failed=[newest], large=large
    )


class PageHandlers:
    """What happens across the tabs."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._advice = Advice(services)

    @on(
        "convert_model.change advised.change newest_photos.then", "convert_model", "convert_advice",
        api_name="advise_convert", **QUICK,
    )  # fmt: skip
    @on(
        "generate_model.change advised.change newest_photos.then", "generate_model", "generate_advice",
        api_name="advise_generate", **QUICK,
    )  # fmt: skip
    def advise(self, model: str | None) -> str:
        return self._advice.text_for(model)

    @on(
        "sample.click", "", f"place base {CONTENTS}", fills="entries", asks=True, api_name="sample_button",
        **QUICK,
    )  # fmt: skip
    def try_sample(self) -> Answer:
        name, config = start_sample(self._services)
        return {
            **PhotoHandlers(self._services).contents(SAMPLE_SET, config.resolution),
            "place": to("train", run=name),
            "base": STARTER,
        }

    @on(
        "saved.click", "run",
        "place ways generate compare generate_model convert_model compare_run steps steps_of generated files recipe",
        api_name="use_saved_step", **QUICK,
    )  # fmt: skip
    def use_step(
        self,
        name: str,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> Answer:
        """Navigate to where a saved step can be used: Generate, Convert, or beside the run's other steps."""
        asked = getattr(event, "_data", None)
        asked = asked if isinstance(asked, dict) else {}
        act, text = str(asked.get("act", "")), str(asked.get("step", ""))
        view = self._services.jobs.view(name)
        if not text.isdecimal() or int(text) not in view.steps:
            raise DreamBoothError(f'"{name}" has no saved step {text[:20]}.', "", "Choose one from its list.")
        step = int(text)
        if act == "convert":
            return {"place": to("convert"), "convert_model": gr.Dropdown(value=str(view.path / text))}
        if act == "compare":
            shown = sorted({*compared_at_first(view.steps, step), step})
            choices = [("base model", 0), *((f"step {one}", one) for one in view.steps)]
            return {
                "place": to("generate"), **way_shown("compare"), "compare_run": gr.Dropdown(value=name),
                "steps": gr.Dropdown(choices=choices, value=shown), "steps_of": [name, *view.steps],
            }  # fmt: skip
        return {"place": to("generate"), **way_shown("make"), **self._samples(view, step)}

    @on(
        "make_pictures.click", "run", "tabs ways generate compare generate_model generated files recipe",
        api_name="open_gallery", **QUICK,
    )  # fmt: skip
    def open_gallery(self, name: str) -> Answer:
        """Show the recommended step's samples in the Generate tab, else the newest's, and select that step."""
        view = self._services.jobs.view(name)
        step = view.recommended_step or (view.steps[-1] if view.steps else None)
        return {"tabs": gr.Tabs(selected="generate"), **way_shown("make"), **self._samples(view, step)}

    def _samples(self, view: RunView, step: int | None) -> Answer:
        """Return the selection of a step as the model, with its samples."""
        model = {} if step is None else {"generate_model": gr.Dropdown(value=str(view.path / str(step)))}
        copies = self._services.shown.copies(view.samples.get(step or 0, []))
        files = [str(path) for path in copies]
        samples = {
            "generated": list(copies.values()), "files": files,
            "recipe": recipe_unasked(files),
        }  # fmt: skip
        return {**model, **(samples if files else {})}
