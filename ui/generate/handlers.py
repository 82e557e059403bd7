"""Handlers of the Generate tab, as functions of values: requesting, following, selecting, and the same for programs."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from dreambooth.config.fields import describe
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.limits import as_written
from dreambooth.data.photo_sets import photo_sets
from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem
from dreambooth.models.base import STARTER, guidance_of, read_card
from dreambooth.models.origin import missing_base
from dreambooth.models.saved_step import model_name
from dreambooth.pictures.prompts import NEGATIVE_PROMPT, example_prompts, kind_of
from dreambooth.pictures.queue import Order
from dreambooth.pictures.settings_text import ON_BASE, Recipe, read_recipe, text_of_picture
from dreambooth.records.runlog import read_config
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.jobs import When
from ui.bases import missing_base_update, offered_base
from ui.boundary import QUICK, Services
from ui.events import Answer, on, updates_of_unseen
from ui.fields import STRENGTHS, read_field, shown_value
from ui.generate.loras import asked_loras, file_choices, found_again
from ui.generate.view import compared_at_first, request_status
from ui.late_answers import answer_of
from ui.render import error_panel, panel, time_left
from ui.train.advice import Advice

NUMBERS = (
    "num_images_per_prompt", "num_inference_steps", "guidance_scale", "height", "width", "seed", "sampler",
)  # fmt: skip
BUSY_POLL_S, IDLE_POLL_S = 0.7, 4.0
AFTER, PAUSE = "after training", "pause training"
# The browser's id: its windows, also after a reload, show the same requests, another browser its own.
WHICH_BROWSER = """(_, ...rest) => {
  const made = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16)).join('');
  try { localStorage.dreamboothBrowser ??= made(); } catch (refused) { window.dreamboothBrowser ??= made(); }
  return [window.dreamboothBrowser ?? localStorage.dreamboothBrowser, ...rest];
}"""
OF_BROWSER: dict[str, Any] = {"js": WHICH_BROWSER, **QUICK}
# The outputs that show the status of the current or last request.
FOLLOWED = "message pictures files recipe cancel when run lora_files timer seen"
COMPARED = "steps steps_of prompts base"


class Handlers:
    """The tab's handlers, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services, self._jobs = services, services.jobs
        self._infos = {info.name: info for info in describe(GenerationConfig)}
        self._advice = Advice(services)

    # Asking ----------------------------------------------------------------------------------------------------------

    def _config(self, prompt: str, negative_prompt: str, values: Sequence[Any]) -> tuple[GenerationConfig, When]:
        """Return the form's request, and its time; `values` are the numbers, the time, the strengths and the LoRAs."""
        *numbers, when, unet_strength, text_encoder_strength, loras = values
        given = dict(zip(NUMBERS, numbers, strict=True))
        read: dict[str, Any] = {name: read_field(self._infos[name], value) for name, value in given.items()}
        read |= dict(zip(STRENGTHS, (unet_strength, text_encoder_strength), strict=True))
        read["loras"] = asked_loras(self._services.workspace, loras)
        return GenerationConfig(prompt=prompt or "", negative_prompt=negative_prompt or "", **read), _when(when)

    def _order(self, model: str, prompt: str, negative_prompt: str, *values: Any) -> Order:
        *rest, base = values
        config, when = self._config(prompt, negative_prompt, rest)
        base = offered_base(self._services, base) or None
        return self._jobs.order(offered_base(self._services, model), config.checked(), when, base)

    def _order_comparison(
        self, run: str, steps: Sequence[Any], prompts: str, negative_prompt: str, *values: Any
    ) -> Order:
        *rest, base = values
        config, when = self._config(prompts, negative_prompt, rest)
        base = offered_base(self._services, base) or None
        return self._jobs.order_comparison(run or "", _whole_steps(steps), config, when, base)

    @on("generate.click", "browser model prompt form seen", FOLLOWED, api_name="ask_for_pictures", **OF_BROWSER)
    def ask(self, browser: str, *values: Any) -> Answer:
        *asked, seen = values
        return self._asked(browser, lambda: self._order(*asked), seen)

    @on("compare.click", "browser run steps prompts form seen", FOLLOWED, api_name="ask_for_comparison", **OF_BROWSER)
    def ask_comparison(self, browser: str, *values: Any) -> Answer:
        *asked, seen = values
        return self._asked(browser, lambda: self._order_comparison(*asked), seen)

    def _asked(self, browser: str, order: Callable[[], Order], seen: dict[str, Any]) -> Answer:
        """Queue a request and return its status, or every mistake in it, which stays until the next."""
        try:
            order().owner = browser
        except DreamBoothError as error:
            return {"message": error_panel(error)}
        return self.follow_request(browser, seen | {"message": None})

    @on("cancel.click", "browser seen", FOLLOWED, api_name="cancel_pictures_here", **OF_BROWSER)
    def cancel(self, browser: str, seen: dict[str, Any]) -> Answer:
        order, _ = self._jobs.pictures.shown(browser)
        if order is not None:
            self._jobs.pictures.cancel(order)
        return self.follow_request(browser, seen)

    # Following -------------------------------------------------------------------------------------------------------

    @on("timer.tick newest_photos.then", "browser seen", FOLLOWED, api_name="look_at_pictures", **OF_BROWSER)
    def follow_request(self, browser: str, seen: dict[str, Any]) -> Answer:
        """Return what the page has not seen of this browser's current or last request."""
        order, num_waiting = self._jobs.pictures.shown(browser)
        active = self._jobs.active()
        view = self._jobs.view(active) if active else None
        left = time_left(view) if view is not None else ""
        making = order is not None and order.state == "making"
        soon = making or (order is not None and order.state == "waiting" and not order.after)
        files = [] if order is None else _grid_first(order.files)
        values: dict[str, Any] = {
            "message": request_status(
                order,
                num_waiting,
                (active or "") if making else "",
                left,
                has_paused=view is not None and view.status == "paused",
            ),  # fmt: skip
            "files": files,
            "busy": order is not None and order.state in ("waiting", "making"),
            "training": "" if active is None else f"The device is training {active}{f', {left}' if left else ''}",
            "runs": [run.name for run in self._services.workspace.runs() if run.steps()],
            "loras": self._services.workspace.loras(),
            "poll_s": BUSY_POLL_S if soon else IDLE_POLL_S,
            "ended": -1 if order is None or order.state in ("waiting", "making") else order.number,
            "first": next(itertools.filterfalse(_is_grid, files), None),
        }

        updates: dict[str, Callable[[Any], Answer]] = {
            "message": lambda text: {"message": text},
            "files": self._shown,
            # That of a new request's first image; what is selected or pasted then stays while more arrive.
            "first": lambda path: {"recipe": recipe_unasked([path])} if path else {},
            "busy": lambda is_busy: {"cancel": gr.Button(interactive=is_busy)},
            "training": lambda text: {"when": gr.Radio(visible=bool(active), label=text)},
            "runs": lambda names: {"run": _runs(names, seen.get("runs", []))},
            "loras": file_choices,
            "poll_s": lambda seconds: {"timer": gr.Timer(value=seconds)},
        }
        return {**updates_of_unseen(updates, values, seen), "seen": values}

    def _shown(self, paths: list[str]) -> Answer:
        copies = self._services.shown.copies(map(Path, paths))
        captions = ["All pictures, one row per step" if _is_grid(str(path)) else None for path in copies]
        pictures = list(zip(copies.values(), captions, strict=True))
        return {"pictures": pictures, "files": [str(path) for path in copies]}

    # Choosing --------------------------------------------------------------------------------------------------------

    @on(
        "model.change newest_photos.then", "model prompt", "answer examples run base", fills="offered",
        api_name="model_chosen", **QUICK,
    )  # fmt: skip
    def model_chosen(self, model: str, prompt: str) -> Answer:
        """Offer the run's own prompt, unless one was typed, the guidance scale of its samples, and examples."""
        return {"base": self._base_field(model), **self._offered(model, prompt)}

    def _base_field(self, model: str) -> Any:
        """Return the update of the field for a LoRA's base, shown if the LoRA's own is not here."""
        missing = missing_base(model or STARTER, self._services.workspace.models_dir)
        return missing_base_update(self._services, missing)

    def _offered(self, model: str, prompt: str) -> Answer:
        run = RunFolder(Path(model).parent) if model else None
        is_run = run is not None and run.config_path.exists() and run.path.parent == self._services.workspace.runs_dir
        config = read_config(run) if run is not None and is_run else None
        empty = {} if prompt.strip() else {"prompt": prompt}
        if run is None or config is None or not config.concepts:
            guidance = guidance_of(model, self._services.workspace.models_dir) if model else None
            samples = self._class_examples(is_toy=model == STARTER)
            fields = {"prompt": samples[0]} | ({} if guidance is None else {"guidance_scale": guidance})
            return {"answer": answer_of(fields, empty), "examples": _dataset(samples)}
        words = config.concepts[0].instance_prompt
        is_toy = read_card(config.pretrained_model_name_or_path).is_toy
        kind = kind_of(*(concept.class_prompt or concept.instance_prompt for concept in config.concepts))
        samples = [concept.instance_prompt for concept in config.concepts]
        samples += example_prompts(kind, words, is_toy=is_toy)
        fields = {"prompt": words, "guidance_scale": config.save_guidance_scale}
        return {"answer": answer_of(fields, empty), "examples": _dataset(samples), "run": run.name}

    def _class_examples(self, *, is_toy: bool) -> list[str]:
        """Return example prompts for the class of the photos last worked on, which a base model knows; else a dog."""
        newest = next(iter(photo_sets(self._services.workspace)), None)
        words = (newest.words().class_prompt if newest else "") or "photo of a dog"
        return example_prompts(kind_of(words), words, is_toy=is_toy)

    @on("run.change", "run prompts steps_of", COMPARED, api_name="run_chosen", **QUICK)
    def run_chosen(self, name: str, prompts: str, steps_of: list[Any] | None = None) -> Answer:
        """Offer the run's steps, including its base, and its own prompts; a selection among its listed steps stays."""
        run = self._services.workspace.run(name) if name else None
        config = None if run is None else read_config(run)
        if run is None or config is None:
            return {"steps": gr.Dropdown(choices=[], value=[]), "steps_of": [], "base": self._base_field("")}
        steps, pick = run.steps(), self._advice.pick(run)
        choices = [("base model", 0), *((f"step {step}", step) for step in steps)]
        first = compared_at_first(steps, pick.step if pick else None)
        words = "\n".join(concept.instance_prompt for concept in config.concepts)
        listed = [name, *steps]
        offered = {} if listed == steps_of else {"steps": gr.Dropdown(choices=choices, value=first), "steps_of": listed}
        offered["base"] = self._base_field(str(run.step_folder(steps[-1])) if steps else "")
        return offered if prompts.strip() else {**offered, "prompts": words}

    @on("examples.click", "examples", "prompt", api_name="take_example", **QUICK)
    def take_example(self, sample: list[str]) -> str:
        return sample[0]

    @on("usual.click", "", "negative_prompt", api_name="take_negative", **QUICK)
    def take_negative(self) -> str:
        return NEGATIVE_PROMPT

    @on("ways.select", "run prompts steps_of", f"generate compare {COMPARED}", api_name="way_chosen", **QUICK)
    def way_chosen(self, name: str, prompts: str, steps_of: list[Any], way: gr.SelectData) -> Answer:
        """Show the button of this mode; also offer steps that the run saved since they were listed."""
        buttons = {name: gr.Button(visible=way.index == place) for place, name in enumerate(("generate", "compare"))}
        run = next((run for run in self._services.workspace.runs() if run.name == name), None)
        is_listed = run is None or [name, *run.steps()] == steps_of
        return buttons if is_listed else {**buttons, **self.run_chosen(name, prompts)}

    @on("pictures.select", "files", "recipe", api_name="picture_chosen", **QUICK)
    def picture_chosen(self, files: list[str], picture: gr.SelectData) -> str:
        """Return the settings of the selected image; the server knows which file that is."""
        return recipe_of_first(files[picture.index :])

    @on(
        "use_settings.click", "recipe",
        "model prompt negative_prompt numbers strengths lora_files lora_strengths lora_section ways generate compare "
        "message",
        api_name="use_settings", **QUICK,
    )  # fmt: skip
    def use_settings(self, text: str) -> Answer:
        """Fill the form with an image's settings, select its model if it is here, and say what cannot be used."""
        recipe = _recipe(text)
        # Bases come after the steps of runs, and also match by the last part of their name.
        models = [value for _, value in self._jobs.models()]
        asked = recipe.model.partition(ON_BASE)[0]
        named = [value for value in models if asked in (model_name(value), Path(value).name)]
        model = next(iter(named), None)
        request = recipe.request
        answer = {
            "prompt": request.prompt, "negative_prompt": request.negative_prompt, **way_shown("make"),
            **{name: getattr(request, name) for name in STRENGTHS},
            **{name: shown_value(self._infos[name], getattr(request, name)) for name in NUMBERS},
        }  # fmt: skip
        if model is not None:
            answer["model"] = model
        rows, missing = found_again(self._services.workspace, recipe.loras)
        answer |= rows | ({"lora_section": gr.Accordion(open=True)} if recipe.loras else {})
        if notices := [*recipe.notices, *missing]:
            answer["message"] = panel(notices[0], " ".join(notices[1:]), tone="note")
        return answer

    @on("use_seed.click", "recipe", "seed", api_name="use_seed", **QUICK)
    def use_seed(self, text: str) -> str:
        seed = _recipe(text).request.seed
        return "" if seed is None else str(seed)

    @on("read_png.upload", "read_png", "recipe", api_name="read_recipe", concurrency_limit=None)
    def read_picture(self, file: str) -> str:
        """Return the settings in a PNG made by this page or another tool."""
        return text_of_picture(Path(file))

    # For programs ----------------------------------------------------------------------------------------------------

    @on("programs.click", "model prompt form", "made progress", api_name="generate", concurrency_limit=8)
    def generate(
        self, model: str, prompt: str, negative_prompt: str = "", num_images_per_prompt: float | None = 4,
        num_inference_steps: float | None = 24, guidance_scale: float | None = 7.5, height: str = "",
        width: str = "", seed: str = "", sampler: str = "DDIM", when: str = AFTER,
        unet_strength: float = 1.0, text_encoder_strength: float = 1.0, loras: list[str] | None = None,
        base: str = "",
    ) -> Iterator[Answer]:  # fmt: skip
        """Generate images and return them one by one, as PNG files with their settings.

        `loras` are files of the data folder's `loras`, each as FILE or FILE:STRENGTH; `base` is what a LoRA run is
        added to, if the model it was trained on is not here.
        """
        order = self._order(
            model, prompt, negative_prompt, num_images_per_prompt, num_inference_steps, guidance_scale, height, width,
            seed, sampler, when, unet_strength, text_encoder_strength, loras, base,
        )  # fmt: skip
        yield from self._as_they_come(order)

    @on("programs.click", "run steps prompts form", "made progress", api_name="compare", concurrency_limit=8)
    def compare(
        self, run: str, steps: list[Any], prompts: str, negative_prompt: str = "",
        num_images_per_prompt: float | None = 4, num_inference_steps: float | None = 24,
        guidance_scale: float | None = 7.5, height: str = "", width: str = "", seed: str = "", sampler: str = "DDIM",
        when: str = AFTER, unet_strength: float = 1.0, text_encoder_strength: float = 1.0,
        loras: list[str] | None = None, base: str = "",
    ) -> Iterator[Answer]:  # fmt: skip
        """Generate the same prompts, one per line, and seeds with several steps of a run; 0 is its base. The grid comes
        last.
        """
        order = self._order_comparison(
            run, steps, prompts, negative_prompt, num_images_per_prompt, num_inference_steps, guidance_scale, height,
            width, seed, sampler, when, unet_strength, text_encoder_strength, loras, base,
        )  # fmt: skip
        yield from self._as_they_come(order)

    def _as_they_come(self, order: Order) -> Iterator[Answer]:
        made: list[str] = []
        yield {"made": [], "progress": request_status(order, 0)}
        for path in self._jobs.pictures.follow(order):
            made.append(self._services.shown.copy(path))
            yield {"made": list(made), "progress": request_status(order, 0)}
        yield {"made": list(made), "progress": request_status(order, 0)}

    @on("programs.click", "", "num_cancelled", api_name="cancel_pictures", concurrency_limit=None)
    def cancel_all(self) -> int:
        """Cancel all running and waiting requests, and return how many there were."""
        return self._jobs.pictures.cancel()


def way_shown(way: str) -> dict[str, Any]:
    """Return the answer that shows one of the two modes, with its button: a tab not yet seen reports no choice."""
    buttons = {name: gr.Button(visible=way == one) for name, one in (("generate", "make"), ("compare", "compare"))}
    return {"ways": gr.Tabs(selected=way), **buttons}


def recipe_of_first(files: Sequence[str]) -> str:
    """Return the settings of the first of these images; a grid consists of many and has none."""
    if not files or _is_grid(files[0]):
        return ""
    return text_of_picture(Path(files[0]))


def recipe_unasked(files: Sequence[str]) -> str:
    """Return what `recipe_of_first` does for images that nobody clicked: one without settings is no mistake."""
    try:
        return recipe_of_first(files)
    except DreamBoothError:
        return ""


def _when(text: str) -> When:
    by_name: dict[str, When] = {name: name for name in get_args(When)}
    if text not in by_name:
        raise ConfigError([FieldProblem("when", f"is {text!r}: it must be {AFTER!r} or {PAUSE!r}.")])
    return by_name[text]


def _whole_steps(steps: Sequence[Any] | None) -> list[int]:
    if not isinstance(steps or [], list):
        raise ConfigError([FieldProblem("steps", "must be a list of steps, such as [200, 400].")])
    texts = [str(step).strip() for step in steps or []]
    wrong = [text for text in texts if not (text.isascii() and text.isdigit() and len(text) < 10)]
    if wrong:
        raise ConfigError([FieldProblem("steps", f"{as_written(wrong[0][:40])} is not a step.")])
    return [int(text) for text in texts]


def _recipe(text: str) -> Recipe:
    if not (text or "").strip():
        raise DreamBoothError("No picture is selected.", "", "Select one, or paste its settings.")
    return read_recipe(text)


def _is_grid(path: str) -> bool:
    return Path(path).stem.endswith("grid")


def _grid_first(files: list[Path]) -> list[str]:
    return sorted(map(str, files), key=lambda path: not _is_grid(path))


def _dataset(samples: list[str]) -> Any:
    return gr.Dataset(samples=[[sample] for sample in samples])


def _runs(names: list[str], before: list[str]) -> Any:
    return gr.Dropdown(choices=names, **({} if before or not names else {"value": names[0]}))
