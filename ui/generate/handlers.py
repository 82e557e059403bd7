"""What the Generate tab does, as functions of values: asking, following, choosing, and the same for programs."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from dreambooth.config.fields import describe
from dreambooth.config.generation import GenerationConfig
from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem
from dreambooth.models.base import STARTER, read_card
from dreambooth.pictures.prompts import example_prompts, kind_of
from dreambooth.pictures.queue import Order
from dreambooth.pictures.settings_text import Recipe, read_recipe, text_of_picture
from dreambooth.records.runlog import read_config
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.jobs import When
from ui.bases import offered_base
from ui.boundary import Services, shown
from ui.fields import STRENGTHS, read_field
from ui.generate.late_answers import answer_of
from ui.generate.view import compared_at_first, request_status
from ui.render import error_panel, panel, time_left
from ui.train.advice import Advice

NUMBERS = (
    "num_images_per_prompt", "num_inference_steps", "guidance_scale", "height", "width", "seed", "sampler",
)  # fmt: skip
BUSY_POLL_S, IDLE_POLL_S = 0.7, 4.0
AFTER, PAUSE = "after training", "pause training"
NUM_FOLLOWED = 9


class Handlers:
    """What the tab does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services, self._jobs = services, services.jobs
        self._infos = {info.name: info for info in describe(GenerationConfig)}
        self.ask, self.ask_comparison = shown(self._ask), shown(self._ask_comparison)
        self.cancel, self.look = shown(self._cancel), shown(self._look)
        self._advice = Advice(services)
        self.model_chosen, self.run_chosen = shown(self._model_chosen), shown(self._run_chosen)
        self.way_chosen = shown(self._way_chosen)
        self.picture_chosen, self.read_picture = shown(self._picture_chosen), shown(self._read_picture)
        self.use_settings, self.use_seed = shown(self._use_settings), shown(self._use_seed)
        self.generate, self.compare = shown(self._generate), shown(self._compare)

    # Asking ----------------------------------------------------------------------------------------------------------

    def _config(self, prompt: str, negative_prompt: str, values: Sequence[Any]) -> tuple[GenerationConfig, When]:
        """Return what the form asks for, and when; `values` are the numbers, the time and the strengths."""
        *numbers, when, unet_strength, text_encoder_strength = values
        given = dict(zip(NUMBERS, numbers, strict=True))
        read: dict[str, Any] = {name: read_field(self._infos[name], value) for name, value in given.items()}
        read |= dict(zip(STRENGTHS, (unet_strength, text_encoder_strength), strict=True))
        return GenerationConfig(prompt=prompt or "", negative_prompt=negative_prompt or "", **read), _when(when)

    def _order(self, model: str, prompt: str, negative_prompt: str, *values: Any) -> Order:
        config, when = self._config(prompt, negative_prompt, values)
        return self._jobs.order(offered_base(self._services, model), config.checked(), when)

    def _order_comparison(
        self, run: str, steps: Sequence[Any], prompts: str, negative_prompt: str, *values: Any
    ) -> Order:
        config, when = self._config(prompts, negative_prompt, values)
        return self._jobs.order_comparison(run or "", _whole_steps(steps), config, when)

    def _ask(self, *values: Any) -> list[Any]:
        *asked, seen = values
        return self._asked(lambda: self._order(*asked), seen)

    def _ask_comparison(self, *values: Any) -> list[Any]:
        *asked, seen = values
        return self._asked(lambda: self._order_comparison(*asked), seen)

    def _asked(self, order: Callable[[], Order], seen: dict[str, Any]) -> list[Any]:
        """Queue a request and return what has become of it, or every mistake in it, which stays until the next."""
        try:
            order()
        except DreamBoothError as error:
            return [error_panel(error), *[gr.skip()] * (NUM_FOLLOWED - 1)]
        return self._look(seen | {"message": None})

    def _cancel(self, seen: dict[str, Any]) -> list[Any]:
        order, _ = self._jobs.pictures.shown()
        self._jobs.pictures.cancel(order)
        return self._look(seen)

    # Following -------------------------------------------------------------------------------------------------------

    def _look(self, seen: dict[str, Any]) -> list[Any]:
        """Return what the page has not seen of the request that is being made, or was made last."""
        order, num_waiting = self._jobs.pictures.shown()
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
            "poll_s": BUSY_POLL_S if soon else IDLE_POLL_S,
            "ended": -1 if order is None or order.state in ("waiting", "making") else order.number,
            "first": next(itertools.filterfalse(_is_grid, files), None),
        }

        def unless_seen(part: str, update: Callable[[], Any]) -> Any:
            return gr.skip() if part in seen and seen[part] == values[part] else update()

        return [
            unless_seen("message", lambda: values["message"]),
            unless_seen("files", lambda: [self._shown(path) for path in values["files"]]),
            unless_seen("files", lambda: values["files"]),
            # That of a new request's first picture; what is chosen or pasted then stays while more come, and before.
            unless_seen("first", lambda: recipe_unasked([values["first"]]) if values["first"] else gr.skip()),
            unless_seen("busy", lambda: gr.Button(interactive=values["busy"])),
            unless_seen("training", lambda: gr.Radio(visible=bool(active), label=values["training"])),
            unless_seen("runs", lambda: _runs(values["runs"], seen.get("runs", []))),
            unless_seen("poll_s", lambda: gr.Timer(value=values["poll_s"])),
            values,
        ]

    def _shown(self, path: str) -> tuple[str, str | None]:
        caption = "All of them, a row a step" if _is_grid(path) else None
        return self._services.shown.copy(Path(path)), caption

    # Choosing --------------------------------------------------------------------------------------------------------

    def _model_chosen(self, model: str, prompt: str) -> tuple[Any, ...]:
        """Offer the run's own words as prompt, unless one was typed, the guidance its samples had, and examples."""
        run = RunFolder(Path(model).parent) if model else None
        is_run = run is not None and run.config_path.exists() and run.path.parent == self._services.workspace.runs_dir
        config = read_config(run) if run is not None and is_run else None
        empty = {} if prompt.strip() else {"prompt": prompt}
        if run is None or config is None or not config.concepts:
            guidance = read_card(STARTER).recipe.get("save_guidance_scale", 7.5) if model == STARTER else None
            samples = example_prompts("pet", "photo of a dog", is_toy=model == STARTER)
            told = {"prompt": samples[0]} | ({} if guidance is None else {"guidance_scale": guidance})
            return answer_of(told, empty), _dataset(samples), gr.skip()
        words = config.concepts[0].instance_prompt
        is_toy = read_card(config.pretrained_model_name_or_path).is_toy
        kind = kind_of(*(concept.class_prompt or concept.instance_prompt for concept in config.concepts))
        samples = [concept.instance_prompt for concept in config.concepts]
        samples += example_prompts(kind, words, is_toy=is_toy)
        told = {"prompt": words, "guidance_scale": config.save_guidance_scale}
        return answer_of(told, empty), _dataset(samples), run.name

    def _run_chosen(self, name: str, prompts: str) -> list[Any]:
        """Offer the run's steps, its base among them, and its own words."""
        run = self._services.workspace.run(name) if name else None
        config = None if run is None else read_config(run)
        if run is None or config is None:
            return [gr.Dropdown(choices=[], value=[]), [], gr.skip()]
        steps, pick = run.steps(), self._advice.pick(run)
        choices = [("base, untaught", 0), *((f"step {step}", step) for step in steps)]
        first = compared_at_first(steps, pick.step if pick else None)
        words = "\n".join(concept.instance_prompt for concept in config.concepts)
        return [gr.Dropdown(choices=choices, value=first), [name, *steps], gr.skip() if prompts.strip() else words]

    def _way_chosen(self, name: str, prompts: str, steps_of: list[Any], way: gr.SelectData) -> list[Any]:
        """Show the button of this way; steps that the run saved since they were listed are offered too."""
        buttons = [gr.Button(visible=way.index == 0), gr.Button(visible=way.index == 1)]
        run = next((run for run in self._services.workspace.runs() if run.name == name), None)
        is_listed = run is None or [name, *run.steps()] == steps_of
        return [*buttons, *([gr.skip()] * 3 if is_listed else self._run_chosen(name, prompts))]

    def _picture_chosen(self, files: list[str], picture: gr.SelectData) -> str:
        """Return the recipe of the picture that was clicked; which file that is the server knows by itself."""
        return recipe_of_first(files[picture.index :])

    def _use_settings(self, text: str) -> list[Any]:
        """Fill the form with a recipe, choose its model if it is here, and say what of it cannot be used."""
        recipe = _recipe(text)
        models = {label.replace(" · step ", "/"): value for label, value in self._jobs.models()}
        model = models.get(recipe.model) or next(
            (value for value in models.values() if Path(value).name == recipe.model), None
        )
        request = recipe.request
        values = {name: getattr(request, name) for name in NUMBERS}
        shown_values = ["" if value is None else str(value) if name in ("height", "width", "seed") else value
                        for name, value in values.items()]  # fmt: skip
        shown_values += [getattr(request, name) for name in STRENGTHS]
        chosen = gr.skip() if model is None else model
        message = panel(*recipe.notices, tone="note") if recipe.notices else gr.skip()
        return [chosen, request.prompt, request.negative_prompt, *shown_values, gr.Tabs(selected="make"), message]

    def _use_seed(self, text: str) -> str:
        seed = _recipe(text).request.seed
        return "" if seed is None else str(seed)

    def _read_picture(self, file: str) -> str:
        """Return the recipe in a PNG that this page, or another tool, made."""
        return text_of_picture(Path(file))

    # For programs ----------------------------------------------------------------------------------------------------

    def _generate(
        self, model: str, prompt: str, negative_prompt: str = "", num_images_per_prompt: float | None = 4,
        num_inference_steps: float | None = 24, guidance_scale: float | None = 7.5, height: str = "",
        width: str = "", seed: str = "", sampler: str = "DDIM", when: str = AFTER,
        unet_strength: float = 1.0, text_encoder_strength: float = 1.0,
    ) -> Iterator[tuple[Any, str]]:  # fmt: skip
        """Make pictures and hand them out one by one, as PNG files with their recipe."""
        order = self._order(
            model, prompt, negative_prompt, num_images_per_prompt, num_inference_steps, guidance_scale, height, width,
            seed, sampler, when, unet_strength, text_encoder_strength,
        )  # fmt: skip
        yield from self._as_they_come(order)

    def _compare(
        self, run: str, steps: list[Any], prompts: str, negative_prompt: str = "",
        num_images_per_prompt: float | None = 4, num_inference_steps: float | None = 24,
        guidance_scale: float | None = 7.5, height: str = "", width: str = "", seed: str = "", sampler: str = "DDIM",
        when: str = AFTER, unet_strength: float = 1.0, text_encoder_strength: float = 1.0,
    ) -> Iterator[tuple[Any, str]]:  # fmt: skip
        """Make the same prompts, one a line, and seeds with several steps of a run; 0 is its base. The grid is last."""
        order = self._order_comparison(
            run, steps, prompts, negative_prompt, num_images_per_prompt, num_inference_steps, guidance_scale, height,
            width, seed, sampler, when, unet_strength, text_encoder_strength,
        )  # fmt: skip
        yield from self._as_they_come(order)

    def _as_they_come(self, order: Order) -> Iterator[tuple[Any, str]]:
        made: list[str] = []
        yield [], request_status(order, 0)
        for path in self._jobs.pictures.follow(order):
            made.append(self._services.shown.copy(path))
            yield list(made), request_status(order, 0)
        yield list(made), request_status(order, 0)

    def cancel_all(self) -> int:
        """End the pictures that are being made and all that wait, and return how many requests those were."""
        return self._jobs.pictures.cancel()


def recipe_of_first(files: Sequence[str]) -> str:
    """Return the recipe of the first of these pictures; a grid is made of many and has none."""
    if not files or _is_grid(files[0]):
        return ""
    return text_of_picture(Path(files[0]))


def recipe_unasked(files: Sequence[str]) -> str:
    """Return what `recipe_of_first` does for pictures that nobody has clicked: one without a recipe is no mistake."""
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
        raise ConfigError([FieldProblem("steps", f"{wrong[0][:40]!r} is no step.")])
    return [int(text) for text in texts]


def _recipe(text: str) -> Recipe:
    if not (text or "").strip():
        raise DreamBoothError("No picture is chosen.", "", "Click one, or paste a recipe.")
    return read_recipe(text)


def _is_grid(path: str) -> bool:
    return Path(path).stem.endswith("grid")


def _grid_first(files: list[Path]) -> list[str]:
    return sorted(map(str, files), key=lambda path: not _is_grid(path))


def _dataset(samples: list[str]) -> Any:
    return gr.Dataset(samples=[[sample] for sample in samples])


def _runs(names: list[str], before: list[str]) -> Any:
    return gr.Dropdown(choices=names, **({} if before or not names else {"value": names[0]}))
