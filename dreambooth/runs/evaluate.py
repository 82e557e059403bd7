"""The DreamBooth paper's protocol (Ruiz et al. 2023, arXiv 2208.12242, 4.2) on a folder of subjects.

For each subject: a training with the base's recipe, images of every prompt with the recommended step, and the paper's
measures beside those of the base model and of the real photos. Existing results are not repeated, so the same command
continues where it stopped.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth import rng
from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.presets import resolve
from dreambooth.config.training import MethodName, TrainingConfig
from dreambooth.durable import new_file, write_json, write_text
from dreambooth.environment import Settings, load_settings
from dreambooth.errors import ConfigError, FieldProblem, RunFolderError
from dreambooth.events import Event, PhaseProgress
from dreambooth.formats.json_file import read_object
from dreambooth.models.base import Base, family_name, read_card
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, resident
from dreambooth.pictures.generation import generate_images, save_picture
from dreambooth.pictures.grid import picture_grid
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.run import resume, train
from dreambooth.scoring.encoders import Examiner, examiner_for
from dreambooth.scoring.figures import Kind, ProbePicture, Reference, ceiling, step_scores
from dreambooth.scoring.probes import photos_of
from dreambooth.scoring.protocol import Protocol, filled, read_protocol
from dreambooth.scoring.run import score_run

IDENTIFIER = "zwx"
PAPERS_IMAGES = 4
NUM_CLASS_PICTURES = 12
SEED = 1337

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What is evaluated: how many subjects, prompts for each and images for each prompt; None for all."""

    subjects_dir: Path
    output_dir: Path
    base: str
    class_word: str | None = None
    num_subjects: int | None = None
    num_prompts: int | None = None
    num_images: int = PAPERS_IMAGES
    num_steps: int | None = None
    method: MethodName = "full"


@dataclass(frozen=True)
class Wanted:
    """One image of the protocol: its kind and number, its prompt, and the same in the base's words."""

    kind: Kind
    name: str
    prompt: str
    asked: str
    seed: int


def evaluate(
    request: Request, *, settings: Settings | None = None, on_progress: OnProgress = lambda what, done, total: None
) -> dict[str, Any]:
    """Run what is missing of the protocol and return its scores, which are also in `output_dir/scores.json`.

    Raises ConfigError for a folder without subjects, and what a training raises.
    """
    settings = settings or load_settings()
    protocol = read_protocol(request.subjects_dir, request.class_word)
    names = list(protocol.classes)[: request.num_subjects]
    workspace, token = Workspace(settings.data_dir), settings.hub_token
    card = read_card(request.base, workspace.models_dir)
    manager = ModelManager()
    examiner = examiner_for(is_toy=card.is_toy, download=True, token=token, place=manager.place)
    evaluation = Evaluation(request, protocol, settings, workspace, token, manager, examiner, on_progress)
    _refuse_other(request, {name: protocol.classes[name] for name in names}, protocol)
    found = {name: evaluation.subject(name) for name in names}
    scores = summary(found, examiner, evaluation.stated(len(names)))
    write_json(request.output_dir / "scores.json", scores)
    write_text(request.output_dir / "table.txt", "\n".join(table(scores)) + "\n")
    return scores


def _refuse_other(request: Request, classes: dict[str, str], protocol: Protocol) -> None:
    """Record to what the folder's images and figures belong; raise ConfigError if they belong to something else."""
    path = request.output_dir / "request.json"
    asked: dict[str, Any] = {
        "base": request.base,
        "number of steps": request.num_steps,
        "seed": SEED,
        "method": request.method,
    }
    asked |= {f"class of {name}": word for name, word in classes.items()}
    asked |= {f"list of prompts of {word}": list(protocol.prompts_for(word)) for word in classes.values()}
    try:
        # Records of versions with one method do not name it.
        kept = {"method": TrainingConfig().method} | read_object(path) if path.exists() else {}
    except ValueError as error:
        message = f"holds an evaluation whose request.json is damaged ({error}): name another folder."
        raise ConfigError([FieldProblem("output_dir", message)]) from None
    other = [name for name, value in asked.items() if kept.get(name, value) != value]
    if other:
        message = f"holds an evaluation with another {', another '.join(other)}: name another folder."
        raise ConfigError([FieldProblem("output_dir", message)])
    write_json(path, kept | asked)


@dataclass(frozen=True)
class Evaluation:
    """What all subjects of an evaluation share."""

    request: Request
    protocol: Protocol
    settings: Settings
    workspace: Workspace
    token: str | None
    manager: ModelManager
    examiner: Examiner | None
    on_progress: OnProgress

    def stated(self, num_subjects: int) -> str:
        """Return in one sentence which part of the paper's protocol this is."""
        prompts = {len(self._templates(word)) for word in self.protocol.classes.values()}
        text = f"{num_subjects} subjects, {' or '.join(map(str, sorted(prompts)))} prompts each, "
        text += f"{self.request.num_images} pictures of each prompt"
        whole = num_subjects == 30 and prompts == {25} and self.request.num_images == PAPERS_IMAGES
        return f"{text}: {'the whole' if whole else 'a part'} of the paper's 30 subjects x 25 prompts x 4 pictures."

    def subject(self, name: str) -> dict[str, Any]:
        """Train, generate images of, and score one subject."""
        class_word = self.protocol.classes[name]
        folder = self.request.output_dir / name
        concept = Concept(
            f"photo of {IDENTIFIER} {class_word}", str((self.request.subjects_dir / name).absolute()),
            f"photo of {class_word}",
        )  # fmt: skip
        run = RunFolder((folder / "run").absolute())
        self._train(name, concept, run)
        recommended = self._recommended_step(name, run)
        step = run.steps()[-1] if recommended is None else recommended
        wanted = self._wanted(name, class_word)
        self._make(f"{name}: pictures", str(run.step_folder(step)), wanted, folder / f"step-{step}")
        of_base = [dataclasses.replace(one, prompt=one.asked) for one in wanted]
        self._make(f"{name}: pictures of the base", self.request.base, of_base, folder / "base")
        result = self._scored(concept, step, wanted, folder)
        self._write_sheet(concept, wanted, folder / f"step-{step}", folder / "sheet.png")
        return {"class": class_word, "recommended_step": recommended, "step": step, **result}

    # Training --------------------------------------------------------------------------------------------------------

    def _train(self, name: str, concept: Concept, run: RunFolder) -> None:
        def notify(event: Event) -> None:
            if isinstance(event, PhaseProgress) and event.total:
                self.on_progress(f"{name}: {event.phase}", event.done, event.total)

        status = read_state(run).status
        if run.config_path.exists() and status == "done":
            return
        if run.config_path.exists() and status != "queued":
            try:
                resume(run.path, settings=self.settings, on_event=notify, manager=self.manager)
                return
            except RunFolderError:
                pass  # it ended before its settings were whole: from the start
        train(
            self._settings_of(concept, run), settings=self.settings, on_event=notify, explicit=(), manager=self.manager
        )

    def _settings_of(self, concept: Concept, run: RunFolder) -> TrainingConfig:
        card = read_card(self.request.base, self.workspace.models_dir)
        explicit: dict[str, Any] = {
            "pretrained_model_name_or_path": self.request.base,
            "method": self.request.method,
            "concepts": (concept,),
            "output_dir": str(run.path),
            "seed": SEED,
            "checkpointing_steps": 0,
            "drop_final_state": True,
        }
        if self.manager.device.type == "cpu":
            explicit |= {"mixed_precision": "no", "use_8bit_adam": False}
        if self.request.num_steps is not None:
            num_steps = self.request.num_steps
            explicit |= {"max_train_steps": num_steps, "save_interval": max(num_steps // 4, 1)}
        return resolve(
            explicit, card.recipes, "recommended", family_name(self.request.base, self.workspace.models_dir)
        ).checked()

    def _recommended_step(self, name: str, run: RunFolder) -> int | None:
        scores = score_run(
            run.path, settings=self.settings, manager=self.manager,
            on_picture=lambda done, total: self.on_progress(f"{name}: probe pictures", done, total),
        )  # fmt: skip
        found = scores.recommended(run.steps())
        return found.step if found else None

    # Pictures --------------------------------------------------------------------------------------------------------

    def _templates(self, class_word: str) -> list[str]:
        """Return the prompts for this class; only those that the examiner can judge, if it is the starter's judge."""
        templates = list(self.protocol.prompts_for(class_word))
        if self.examiner is not None and not self.examiner.photos_are_zero:
            templates = [one for one in templates if self.examiner.can_judge(filled(one, "", class_word))]
        return templates[: self.request.num_prompts]

    def _wanted(self, name: str, class_word: str) -> list[Wanted]:
        found = [
            Wanted("identifier", f"{number:02}-{image}.png", filled(template, IDENTIFIER, class_word),
                   filled(template, "", class_word), self._seed(name, number, image))
            for number, template in enumerate(self._templates(class_word))
            for image in range(self.request.num_images)
        ]  # fmt: skip
        plain = f"photo of {class_word}"
        return found + [
            Wanted("class", f"class-{image:02}.png", plain, plain, self._seed(name, 99, image))
            for image in range(NUM_CLASS_PICTURES)
        ]

    def _seed(self, name: str, number: int, image: int) -> int:
        place = list(self.protocol.classes).index(name)
        return rng.derived_seed(SEED, "generation", place, number, image) % 2**32

    def _make(self, what: str, model: str, wanted: Sequence[Wanted], folder: Path) -> None:
        missing = [one for one in wanted if not (folder / one.name).exists()]
        if not missing:
            return
        with self.manager.lease("generation", wait=True):
            base = resident(
                self.manager, ModelSource(model), models_dir=self.workspace.models_dir, token=self.token
            )  # fmt: skip
            guidance_scale = base.guidance_scale
            for done, one in enumerate(missing):
                self.on_progress(what, done, len(missing))
                _save_one(base, one, guidance_scale, base.card.native_px, folder)

    # Scores ----------------------------------------------------------------------------------------------------------

    def _scored(self, concept: Concept, step: int, wanted: Sequence[Wanted], folder: Path) -> dict[str, Any]:
        """Return a subject's figures; those computed earlier from the same images are reused."""
        key = [self.examiner.name if self.examiner else "", step, [one.name for one in wanted]]
        kept = folder / "figures.json"
        with contextlib.suppress(OSError, ValueError):  # there are none yet, or they are damaged: worked out anew
            values = read_object(kept)
            if values.pop("of", None) == key:
                return values
        before = _read(wanted, folder / "base")
        reference = Reference(photos_of([concept]), before)
        trained = step_scores(self.examiner, step, _read(wanted, folder / f"step-{step}"), reference)
        untrained = step_scores(self.examiner, 0, before, reference)
        values = {
            "fidelity": trained.fidelity, "prompt": trained.prompt, "drift": trained.drift,
            "measures": dict(trained.measures), "base": dict(untrained.measures),
            "ceiling": ceiling(self.examiner, reference),
        }  # fmt: skip
        write_json(kept, {"of": key, **values})
        return values

    def _write_sheet(self, concept: Concept, wanted: Sequence[Wanted], pictures: Path, out: Path) -> None:
        """Write the contact sheet: a row for each prompt, with its images."""
        rows: dict[str, list[Path | None]] = {}
        for one in wanted:
            rows.setdefault(one.asked, []).append(pictures / one.name)
        with new_file(out) as temporary:
            picture_grid(rows).save(temporary, format="PNG")


def _save_one(base: Base, one: Wanted, guidance_scale: float, side_px: int, folder: Path) -> None:
    request = GenerationConfig(
        prompt=one.prompt, num_images_per_prompt=1, guidance_scale=guidance_scale, height=side_px, width=side_px,
        seed=one.seed,
    )  # fmt: skip
    (picture,) = generate_images(base, request)
    save_picture(picture, folder / one.name)


def _read(wanted: Sequence[Wanted], folder: Path) -> list[ProbePicture]:
    from PIL import Image

    found = []
    for one in wanted:
        with Image.open(folder / one.name) as image:
            found.append(ProbePicture(0, one.kind, one.asked, image.convert("RGB")))
    return found


# The table -----------------------------------------------------------------------------------------------------------


def summary(subjects: dict[str, dict[str, Any]], examiner: Examiner | None, stated: str) -> dict[str, Any]:
    """Return all scores: each subject's, their means, the base's, and the photos' own ceiling."""
    return {
        "stated": stated,
        "examiner": examiner.name if examiner else "",
        "subjects": subjects,
        "mean": _means([one["measures"] for one in subjects.values()]),
        "base": _means([one["base"] for one in subjects.values()]),
        "ceiling": _means([one["ceiling"] for one in subjects.values()]),
    }


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: statistics.fmean(row[name] for row in rows if name in row) for name in names}


def table(scores: dict[str, Any]) -> list[str]:
    """Return the scores as lines of a table, the ceiling and the base beside the subjects."""
    names = list(scores["mean"])
    rows = [
        (name, one["measures"], f"{one['step']}{'' if one['recommended_step'] else ', last'}")
        for name, one in scores["subjects"].items()
    ]
    beside = {"mean": "mean", "base model": "base", "real photos": "ceiling"}
    rows += [(title, scores[key], "") for title, key in beside.items()]
    head = "".join(name.rjust(15) for name in names)
    lines = [scores["stated"], f"Judged by {scores['examiner'] or 'pixels alone'}.", f"{'':22}{'step':>11}{head}"]
    for title, row, step in rows:
        cells = (f"{row[name]:.3f}" if name in row else "-" for name in names)
        lines.append(f"{title[:22]:22}{step:>11}" + "".join(cell.rjust(15) for cell in cells))
    return lines
