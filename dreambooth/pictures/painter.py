"""Generates image files: of one model, or of several steps side by side, each with its settings in it.

Each model has one folder; files are named by the request's time, its seed and their number, so that the folder is the
model's history.
"""

import contextlib
import dataclasses
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.config.generation import GenerationConfig
from dreambooth.durable import new_file
from dreambooth.environment import Settings, load_settings
from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, model_name, resident
from dreambooth.models.strength import Strength
from dreambooth.pictures.grid import picture_grid, step_label
from dreambooth.pictures.settings_text import ON_BASE
from dreambooth.records.storage import PICTURE
from dreambooth.records.workspace import RunFolder, Workspace, newest_step_folder

MAX_COMPARED = 400

OnStep = Callable[[int, int], None]
OnNotice = Callable[[str], None]


@dataclass(frozen=True)
class Painter:
    """Generates images with models that it puts on the device it is given."""

    manager: ModelManager
    models_dir: Path
    token: str | None = None

    def pictures(
        self,
        model: str,
        config: GenerationConfig,
        folder: Path,
        *,
        on_step: OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
        wait: bool = False,
        notice: OnNotice | None = None,
        base: str | None = None,
    ) -> Iterator[Path]:
        """Yield each image's file when it is written; without `wait` raises DeviceError while the device is in use.

        base: as in `ModelSource`.
        """
        prefix = _prefix(config := _with_seed(config))
        with self.manager.lease("generation", wait=wait, give_up=should_stop or _never):
            yield from self._painted(model, config, folder, prefix, 0, on_step, should_stop, notice, base)

    def compare(
        self,
        models: Mapping[int, str],
        prompts: Sequence[str],
        config: GenerationConfig,
        folder: Path,
        *,
        on_step: OnStep | None = None,
        should_stop: Callable[[], bool] | None = None,
        wait: bool = False,
        notice: OnNotice | None = None,
        base: str | None = None,
    ) -> Iterator[Path]:
        """Yield the same prompts and seeds for each model, then the grid of them all: a row per model.

        `models` are by step; 0 is the untrained base, which has no strength. If stopped, ends without the grid. base:
        as in `ModelSource`, for all other models. LoRAs of the request are added to each, including the base.
        """
        requests = [dataclasses.replace(config, prompt=prompt) for prompt in prompts]
        prefix = _prefix(config := _with_seed(config))
        requests = [dataclasses.replace(request, seed=config.seed) for request in requests]
        rows: dict[str, list[Path | None]] = {}
        num_parts, num_done = len(models) * len(requests), 0
        once = None if notice is None else _once(notice)
        with self.manager.lease("generation", wait=wait, give_up=should_stop or _never):
            for step, model in models.items():
                row = rows.setdefault(step_label(step), [])
                for request in requests if step else [_whole(one) for one in requests]:
                    first = sum(map(len, rows.values()))
                    progress = None if on_step is None else _part_of(on_step, num_done, num_parts)
                    own = base if step else None
                    for path in self._painted(model, request, folder, prefix, first, progress, should_stop, once, own):
                        row.append(path)
                        yield path
                    num_done += 1
        if len(row) == len(requests) * config.num_images_per_prompt and not (should_stop and should_stop()):
            target = folder / f"{prefix}-grid.png"
            with new_file(target) as temporary:
                picture_grid(rows).save(temporary, format="PNG")
            yield target

    def _painted(
        self,
        model: str,
        config: GenerationConfig,
        folder: Path,
        prefix: str,
        first: int,
        on_step: OnStep | None,
        should_stop: Callable[[], bool] | None,
        notice: OnNotice | None,
        base: str | None,
    ) -> Iterator[Path]:
        from dreambooth.pictures.generation import generate_images, save_picture

        name = str(newest_step_folder(Path(model)).absolute()) if Path(model).is_dir() else model
        strength = Strength(config.unet_strength, config.text_encoder_strength)
        source = ModelSource(name, strength, base=base, loras=config.loras)
        models = resident(
            self.manager, source, models_dir=self.models_dir, token=self.token, notice=notice or (lambda text: None)
        )
        side_px = models.card.native_px
        config = dataclasses.replace(config, height=config.height or side_px, width=config.width or side_px)
        named = dataclasses.replace(models, name=model_name(name) + (f"{ON_BASE}{model_name(base)}" if base else ""))
        # One at a time: the first is ready sooner, and all of them need no more memory than one.
        made = generate_images(named, config, on_step=on_step, should_stop=should_stop, batch_size=1, notice=notice)
        for number, picture in enumerate(made, first):
            path = folder / f"{prefix}-{number}.png"
            save_picture(picture, path)
            yield path


def _never() -> bool:
    return False


def _once(notice: OnNotice) -> OnNotice:
    """Return a callback that passes each text on once: all models of a comparison have the same prompts."""
    given: set[str] = set()

    def once(text: str) -> None:
        if text not in given:
            given.add(text)
            notice(text)

    return once


def _with_seed(config: GenerationConfig) -> GenerationConfig:
    return dataclasses.replace(config, seed=secrets.randbelow(2**32) if config.seed is None else config.seed)


def _whole(config: GenerationConfig) -> GenerationConfig:
    return dataclasses.replace(config, unet_strength=1.0, text_encoder_strength=1.0)


def _prefix(config: GenerationConfig) -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{config.seed}"


def _part_of(on_step: OnStep, num_done: int, num_parts: int) -> OnStep:
    """Return a callback that converts the steps of one part to steps of the whole; all parts have the same number."""
    return lambda done, total: on_step(num_done * total + done, num_parts * total)


# What is asked for ---------------------------------------------------------------------------------------------------


def steps_to_compare(run: RunFolder, steps: Sequence[int], base: str) -> dict[int, str]:
    """Return the models by step, 0 being the base; by default all saved ones.

    Raises ConfigError for steps that do not exist.
    """
    there = run.steps()
    wanted = sorted(set(steps or there))
    missing = [step for step in wanted if step and step not in there]
    if missing or not wanted:
        have = ", ".join(map(str, there)) or "none yet"
        problem = f"{', '.join(map(str, missing)) or 'none'}: {run.name} has {have}."
        raise ConfigError([FieldProblem("steps", problem)])
    return {step: str(run.step_folder(step)) if step else base for step in wanted}


def prompts_to_compare(config: GenerationConfig, num_models: int) -> list[str]:
    """Return the prompts, one per line; raises ConfigError if there is none, or if the grid would be too large."""
    config.checked()
    prompts = [line.strip() for line in config.prompt.splitlines() if line.strip()]
    num_pictures = num_models * len(prompts) * config.num_images_per_prompt
    if num_pictures > MAX_COMPARED:
        problem = f"make {num_pictures} pictures with this many steps and prompts: at most {MAX_COMPARED} are compared."
        raise ConfigError([FieldProblem("num_images_per_prompt", problem)])
    return prompts


# What was made -------------------------------------------------------------------------------------------------------


def folder_of(model: str, workspace: Workspace) -> Path:
    """Return the folder of a model's images: all steps of a run share one."""
    name = model_name(model).split("/")[0]
    return workspace.pictures_dir / (re.sub(r"[^A-Za-z0-9 ._-]+", "-", name).lstrip(".") or "model")


def history(folder: Path, *, everything: bool = False) -> list[Path]:
    """Return the images in a model's folder, or in all folders beside it, the newest first."""
    folders = [folder]
    if everything:
        folders = [folder, *(entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())]
    found: list[Path] = []
    for one in folders:
        with contextlib.suppress(FileNotFoundError):
            found += [path for path in one.iterdir() if PICTURE.fullmatch(path.name) and not path.is_symlink()]
    return sorted(found, key=_age, reverse=True)


def _age(path: Path) -> tuple[str, int, int]:
    """Return the key that sorts images by time; within a request the first is the newest, with its grid before it."""
    day, clock, _, number = path.stem.split("-")
    return day + clock, number == "grid", -int(number) if number != "grid" else 0


# From Python ---------------------------------------------------------------------------------------------------------


def _painter(settings: Settings) -> Painter:
    return Painter(ModelManager(), Workspace(settings.data_dir).models_dir, settings.hub_token)


def generate(
    model: str | Path,
    config: GenerationConfig,
    output_dir: str | Path,
    *,
    settings: Settings | None = None,
    on_step: OnStep | None = None,
    notice: OnNotice | None = None,
    base: str | None = None,
) -> list[Path]:
    """Generate images with a model (a run, a step folder, a base), and return the PNG files written to `output_dir`.

    `notice` is called with what of the prompt is not read, or read literally, what of a LoRA does not fit the model,
    and images that came out black. base: as in `ModelSource`.
    """
    painter = _painter(settings or load_settings())
    made = painter.pictures(str(model), config.checked(), Path(output_dir), on_step=on_step, notice=notice, base=base)
    return list(made)


def compare(
    run_path: str | Path,
    config: GenerationConfig,
    output_dir: str | Path,
    *,
    steps: Sequence[int] = (),
    base: str = "",
    settings: Settings | None = None,
    on_step: OnStep | None = None,
    notice: OnNotice | None = None,
) -> list[Path]:
    """Generate the same images with several steps of a run; return the PNG files, the grid of them all last.

    The config's prompt may have several lines, each a prompt. `steps` are by default the saved ones; 0 is the base the
    run started from, or `base`, to which the steps of a LoRA are then added as well.
    """
    from dreambooth.records.runlog import read_config

    run = RunFolder(Path(run_path))
    kept = read_config(run)
    own = base or (kept.pretrained_model_name_or_path if kept is not None else "")
    models = steps_to_compare(run, steps, own)
    prompts = prompts_to_compare(config, len(models))
    painter = _painter(settings or load_settings())
    made = painter.compare(models, prompts, config, Path(output_dir), on_step=on_step, notice=notice, base=base or None)
    return list(made)
