"""Side effects of a training: base and trained model on the same prompts and seeds, the most changed first.

None of the prompts contains the identifier. The report is in the run's folder, and its image goes into the model card.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import new_file, write_json
from dreambooth.environment import Settings, load_settings
from dreambooth.errors import RunFolderError
from dreambooth.events import OnProgress, unwatched
from dreambooth.export.model_card import BLEED_PICTURE, BLEED_REPORT, bleed_dir
from dreambooth.formats.json_file import read_object
from dreambooth.models.base import Base, read_card
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import resident
from dreambooth.pictures.generation import generate_images
from dreambooth.pictures.grid import picture_grid
from dreambooth.records.runlog import read_config
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.scoring import measures
from dreambooth.scoring.encoders import Examiner
from dreambooth.scoring.probes import photos_of
from dreambooth.scoring.run import examiner_of, on_base, source_of

if TYPE_CHECKING:
    from PIL import Image

NUM_PICTURES = 3
SEED = 20_000
# The class and related ones, other kinds of things, a style, a famous face, and nothing at all.
NEIGHBOURS = {
    "dog": ("cat", "horse"), "cat": ("dog", "rabbit"), "person": ("man", "woman"), "man": ("woman", "person"),
    "woman": ("man", "person"), "teapot": ("vase", "bowl"), "vase": ("teapot", "bowl"), "backpack": ("sneaker", "dog"),
    "toy": ("dog", "cat"),
}  # fmt: skip
OTHERS = ("photo of person", "photo of teapot", "photo of a mountain in the background")
STYLES = ("an oil painting of a mountain lake", "portrait photo of Albert Einstein")


@dataclass(frozen=True)
class PromptChange:
    """One prompt: how much its images changed, and how far they became the subject (None if unknown)."""

    prompt: str
    change: float
    became_subject: float | None


@dataclass(frozen=True)
class BleedReport:
    """What a step changed, the most changed prompt first, as recorded in the run's folder."""

    step: int
    judged_by: str
    ranked: tuple[PromptChange, ...]
    picture: Path


def battery(config: TrainingConfig, *, is_toy: bool) -> list[str]:
    """Return the prompts to compare, without the identifier; the starter's world has no styles and no faces."""
    prompts = []
    for concept in config.concepts:
        if concept.class_prompt:
            word = concept.class_prompt.split()[-1]
            prompts += [concept.class_prompt, f"{concept.class_prompt} on the beach"]
            prompts += [f"photo of {other}" for other in NEIGHBOURS.get(word, ("dog", "cat"))]
    prompts += [prompt for prompt in OTHERS if prompt not in prompts]
    return list(dict.fromkeys([*prompts, *(() if is_toy else STYLES), ""]))


def bleed_report(
    run_path: Path,
    step: int | None = None,
    *,
    settings: Settings | None = None,
    manager: ModelManager | None = None,
    download: bool = True,
    on_picture: OnProgress = unwatched,
    base: str | None = None,
) -> list[PromptChange]:
    """Return the side effects of a saved step (by default the last), the largest first; write report and image.

    base: what the run started from, if not where the run says. Raises RunFolderError for a missing step, and
    BaseModelError for a missing base.
    """
    settings, manager = settings or load_settings(), manager or ModelManager()
    run = RunFolder(run_path.absolute())
    config, steps = read_config(run), run.steps()
    if config is None or not steps or (step is not None and step not in steps):
        raise RunFolderError(f"{run.path} has no saved step {step or ''}.", "", "Name a run's folder and its step.")
    config = on_base(config, base)
    step = steps[-1] if step is None else step
    workspace, token = Workspace(settings.data_dir), settings.hub_token
    with manager.lease("generation", wait=False):
        examiner = examiner_of(config, workspace, download=download, token=token)

        def on_device(step: int) -> Base:
            return resident(manager, source_of(run, step, config, base), models_dir=workspace.models_dir, token=token)

        # No reference to the base is kept, so that it is freed when the step is loaded.
        prompts = battery(config, is_toy=on_device(0).card.is_toy)
        total = 2 * len(prompts)
        before = _pictures(on_device(0), config, prompts, lambda done: on_picture(done, total))
        after = _pictures(on_device(step), config, prompts, lambda done: on_picture(len(prompts) + done, total))
    photos = [photo for photos in photos_of(config.concepts) for photo in photos]
    ranked = ranking(examiner, before, after, photos)
    _write(run, step, examiner, ranked, before, after)
    return ranked


def report_for_card(
    model: Path,
    *,
    settings: Settings | None = None,
    manager: ModelManager | None = None,
    on_picture: OnProgress = unwatched,
    base: str | None = None,
) -> bool:
    """Make the report of a run's step before its card is written, unless it has one; return whether it has one now.

    None is made if the folder is no run's step, the photos are gone, the device is in use, or some fifty images would
    take hours: with a full-size base on a CPU. The card then says that side effects were not measured.
    """
    run, manager = RunFolder(model.absolute().parent), manager or ModelManager()
    if (bleed_dir(model) / BLEED_REPORT).is_file():
        return True
    config = read_config(run) if model.name.isdecimal() else None
    if config is None or manager.holder is not None:
        return False
    if not all(Path(concept.instance_data_dir).is_dir() for concept in config.concepts):
        return False
    settings = settings or load_settings()
    config = on_base(config, base)
    card = read_card(config.pretrained_model_name_or_path, Workspace(settings.data_dir).models_dir)
    if manager.device.type == "cpu" and not card.is_toy:
        return False
    bleed_report(
        run.path, int(model.name), settings=settings, manager=manager, download=False, on_picture=on_picture,
        base=base,
    )  # fmt: skip
    return True


def ranking(
    examiner: Examiner | None,
    before: dict[str, list["Image.Image"]],
    after: dict[str, list["Image.Image"]],
    photos: Sequence["Image.Image"],
) -> list[PromptChange]:
    """Return the prompts by how much their images changed, the most first: for an encoder, or else in pixels."""
    if examiner is None:
        changes = {prompt: measures.pixel_change(after[prompt], before[prompt]) for prompt in before}
        found = [PromptChange(prompt, statistics.fmean(of_pairs), None) for prompt, of_pairs in changes.items()]
        return sorted(found, key=lambda one: one.change, reverse=True)
    found, embed = [], next(iter(examiner.likeness.values()))
    real = embed(photos)
    goal = measures.own_similarity(real) if len(photos) > 1 else 1.0
    for prompt in before:
        then, now = embed(before[prompt]), embed(after[prompt])
        change = float(1 - (then * now).sum(1).mean())
        start = measures.similarity(then, real)
        became = measures.share_of_way(measures.similarity(now, real), start, goal)
        found.append(PromptChange(prompt, change, became))
    return sorted(found, key=lambda one: one.change, reverse=True)


def _pictures(
    model: Base,
    config: TrainingConfig,
    prompts: Sequence[str],
    on_prompt: Callable[[int], None],
) -> dict[str, list["Image.Image"]]:
    found = {}
    for done, prompt in enumerate(prompts):
        on_prompt(done)
        request = GenerationConfig(
            prompt=prompt, num_images_per_prompt=NUM_PICTURES, num_inference_steps=config.save_infer_steps,
            guidance_scale=config.save_guidance_scale, height=config.resolution, width=config.resolution, seed=SEED,
        )  # fmt: skip
        found[prompt] = [picture.image for picture in generate_images(model, request)]
    return found


def _write(
    run: RunFolder,
    step: int,
    examiner: Examiner | None,
    ranked: Sequence[PromptChange],
    before: dict[str, list["Image.Image"]],
    after: dict[str, list["Image.Image"]],
) -> None:
    folder = bleed_dir(run.step_folder(step))
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Path | None]] = {}
    for place, one in enumerate(ranked):
        for who, made in (("base", before), ("trained", after)):
            row = rows.setdefault(f"{one.prompt or '(no words)'}\n{who}", [])
            for number, image in enumerate(made[one.prompt]):
                row.append(folder / f"{place}-{who}-{number}.png")
                image.save(folder / f"{place}-{who}-{number}.png")
    with new_file(folder / BLEED_PICTURE) as temporary:
        picture_grid(rows).save(temporary, format="PNG")
    judged = examiner.name if examiner else "pixels"
    write_json(folder / BLEED_REPORT, {"judged_by": judged, "prompts": [dataclasses.asdict(one) for one in ranked]})


def kept_report(run: RunFolder) -> BleedReport | None:
    """Return the report on a run that was written last, None if none can be read."""
    reports = [(step, bleed_dir(run.step_folder(step))) for step in run.steps()]
    for step, folder in sorted(reports, key=lambda report: _written_s(report[1]), reverse=True):
        try:
            known = read_object(folder / BLEED_REPORT)
            ranked = tuple(
                PromptChange(str(one["prompt"]), float(one["change"]), _number(one["became_subject"]))
                for one in known["prompts"]
            )
        except (OSError, ValueError, TypeError, KeyError):
            continue
        return BleedReport(step, str(known.get("judged_by", "")), ranked, folder / BLEED_PICTURE)
    return None


def _written_s(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return (folder / BLEED_REPORT).stat().st_mtime
    return 0.0


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def report_lines(ranked: Sequence[PromptChange], folder: Path) -> list[str]:
    """Return the report as lines for a terminal."""
    lines = [f"{'change':>8}{'became the subject':>20}  prompt, without the identifier"]
    for one in ranked:
        became = "-" if one.became_subject is None else f"{one.became_subject:.3f}"
        lines.append(f"{one.change:8.3f}{became:>20}  {one.prompt or '(no words)'}")
    return [*lines, f"The pictures are in {folder / BLEED_PICTURE}."]
