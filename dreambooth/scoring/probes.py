"""Images made to be scored: at every saved step the same prompts with the same seeds, stored under `.run/probes`.

Four kinds: the subject in places that the photos need not show, its class without the identifier, something unrelated,
and the empty prompt. The last three should look the same after training as before.
"""

import dataclasses
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import find_photos, read_photo
from dreambooth.durable import new_folder
from dreambooth.events import FixedNoiseLosses, OnProgress, fixed_noise_losses_of, read_events, unwatched
from dreambooth.pictures.generation import generate_images, save_picture
from dreambooth.records.workspace import RunFolder
from dreambooth.scoring.chart import write_chart
from dreambooth.scoring.encoders import Examiner
from dreambooth.scoring.figures import Kind, ProbePicture, Reference, ceiling, step_scores
from dreambooth.scoring.recommendation import DRIFT_LOSS, SEEN_LOSS, UNSEEN_LOSS, StepScores
from dreambooth.scoring.records import RunScores, read_scores, write_scores

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from dreambooth.models.base import Base

PLACES = (
    "in the snow", "on the beach", "in the jungle", "with a city in the background", "on top of a wooden floor",
    "floating on top of water", "with a mountain in the background", "on top of pink fabric",
)  # fmt: skip
SHORT_SIDE_PX = 512
UNRELATED = ("photo of teapot in the snow", "photo of dog on the beach")
NAME = re.compile(r"([0-9]+)-(identifier|class|unrelated|empty)-([0-9]+)\.png")
WITHOUT_ENCODERS = (
    "No encoder is installed: only pixels and losses at fixed noise are compared. `python -m dreambooth score RUN` "
    "downloads DINO and CLIP once (about 1 GB)."
)


@dataclass(frozen=True)
class Probe:
    """One image to be made: its concept and kind, its prompt, and the same in words that the base knows."""

    concept: int
    kind: Kind
    number: int
    prompt: str
    asked: str

    @property
    def file_name(self) -> str:
        """Return the name of its file."""
        return f"{self.concept}-{self.kind}-{self.number}.png"


def probes_of(concepts: Sequence[Concept], num: int) -> list[Probe]:
    """Return the probes of a run: `num` each of subject and class, a quarter of that of the two unrelated kinds."""
    probes = []
    for concept, words in enumerate(concepts):
        known = words.class_prompt or words.instance_prompt
        for number in range(num):
            place = PLACES[number % len(PLACES)]
            asked = f"{known} {place}"
            probes.append(Probe(concept, "identifier", number, f"{words.instance_prompt} {place}", asked))
        others: list[tuple[Kind, str, int]] = [
            ("unrelated", _unrelated_to(known), -(-num // 4)), ("empty", "", -(-num // 4)),
        ]  # fmt: skip
        if words.class_prompt:
            others.insert(0, ("class", words.class_prompt, num))
        probes += [Probe(concept, kind, number, text, text) for kind, text, count in others for number in range(count)]
    return probes


def _unrelated_to(known: str) -> str:
    return next(prompt for prompt in UNRELATED if prompt.split()[2] not in known.lower().split())


def probes_dir(run: RunFolder, step: int) -> Path:
    """Return the folder of a step's probe images."""
    return run.probes / str(step)


def make_probes(
    base: "Base",
    run: RunFolder,
    step: int,
    config: TrainingConfig,
    probes: Sequence[Probe],
    *,
    autocast_dtype: "torch.dtype | None",
    on_picture: OnProgress = unwatched,
) -> None:
    """Make the images of these probes with the models of a step, unless they exist."""
    folder = probes_dir(run, step)
    if all((folder / probe.file_name).exists() for probe in probes):
        return
    shutil.rmtree(folder, ignore_errors=True)
    by_prompt: dict[str, list[Probe]] = {}
    for probe in probes:
        by_prompt.setdefault(probe.prompt, []).append(probe)
    made: list[Probe] = []
    with new_folder(folder) as temporary:
        for prompt, alike in by_prompt.items():
            request = GenerationConfig(
                prompt=prompt,
                num_inference_steps=config.save_infer_steps,
                guidance_scale=config.save_guidance_scale,
                height=config.resolution,
                width=config.resolution,
                seed=(config.seed or 0) % 2**62,
            )
            numbers = sorted({probe.number for probe in alike})
            pictures = generate_images(
                base, request, autocast_dtype=autocast_dtype, stream="probes", indices=numbers,
                on_step=lambda *steps: on_picture(len(made), len(probes)),
            )  # fmt: skip
            for number, picture in zip(numbers, pictures, strict=True):
                # Concepts of one class share its images.
                for probe in (one for one in alike if one.number == number):
                    save_picture(picture, temporary / probe.file_name)
                    made.append(probe)


def read_probes(run: RunFolder, step: int, probes: Sequence[Probe]) -> list[ProbePicture]:
    """Return the probes that were made at a step, with their images."""
    folder = probes_dir(run, step)
    return [
        ProbePicture(probe.concept, probe.kind, probe.asked, _picture(folder / probe.file_name))
        for probe in probes
        if (folder / probe.file_name).exists()
    ]


def _picture(path: Path) -> "Image.Image":
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def probed_steps(run: RunFolder) -> list[int]:
    """Return the steps that have probe images, the base's 0 first."""
    if not run.probes.is_dir():
        return []
    return sorted(int(entry.name) for entry in run.probes.iterdir() if entry.name.isdecimal())


def num_probes_made(run: RunFolder) -> int:
    """Return how many subject images each step has, judged by those of the base."""
    names = [NAME.fullmatch(path.name) for path in probes_dir(run, 0).glob("0-identifier-*.png")]
    return max((int(name[3]) + 1 for name in names if name), default=0)


def photos_of(concepts: Sequence[Concept]) -> list[list["Image.Image"]]:
    """Return each concept's photos, upright; unreadable ones are skipped, as in training."""
    from dreambooth.errors import PhotoError

    found: list[list[Image.Image]] = []
    for concept in concepts:
        images = []
        for path in find_photos(Path(concept.instance_data_dir)).photos:
            try:
                images.append(_for_encoders(read_photo(path).image))
            except PhotoError:
                continue
        found.append(images)
    return found


def _for_encoders(photo: "Image.Image") -> "Image.Image":
    """Return a large photo scaled down: encoders see 224 px of it, and ten phone photos take a gigabyte."""
    from PIL import Image

    scale = SHORT_SIDE_PX / min(photo.size)
    if scale >= 1:
        return photo
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)


def reference_of(run: RunFolder, config: TrainingConfig) -> Reference:
    """Return what the steps of a run are compared with: its photos, and the base's probe images, which must exist."""
    return Reference(photos_of(config.concepts), read_probes(run, 0, probes_of(config.concepts, num_probes_made(run))))


def update_scores(
    run: RunFolder, config: TrainingConfig, examiner: Examiner | None, reference: Reference | None = None
) -> RunScores | None:
    """Score every step that has probe images and no scores by this examiner yet, and write scores and chart.

    Returns None if there are no probe images of the base to compare with. `reference` is an earlier one, whose photos
    were already embedded.
    """
    steps, num_probes = probed_steps(run), num_probes_made(run)
    if 0 not in steps:
        return None
    kept = read_scores(run)
    name = examiner.name if examiner else ""
    probes = probes_of(config.concepts, num_probes)
    # With another number of probes, other images were made at every step.
    is_same = kept is not None and (kept.examiner, kept.num_probes) == (name, num_probes)
    known = {one.step: one for one in kept.steps} if kept is not None and is_same else {}
    reference = reference or reference_of(run, config)
    found = [
        known.get(step) or step_scores(examiner, step, read_probes(run, step, probes), reference) for step in steps
    ]
    found = with_losses(found, fixed_noise_losses_of(read_events(run.events_path)))
    note = "" if examiner else WITHOUT_ENCODERS
    scores = RunScores(name, tuple(found), ceiling(examiner, reference), note, num_probes)
    keep_scores(run, scores)
    return scores


def keep_scores(run: RunFolder, scores: RunScores) -> None:
    """Write scores and chart with the recommendation that follows from them and from the models that exist."""
    write_scores(run, scores)
    write_chart(scores, scores.recommended(run.steps() or None), run.scores_chart_path)


def with_losses(scores: Sequence[StepScores], losses: Sequence[FixedNoiseLosses]) -> list[StepScores]:
    """Return the scores with the losses at fixed noise that the run reported for the same steps."""
    by_step = {one.step: one for one in losses}
    found = []
    for one in scores:
        own = by_step.get(one.step)
        measured = {} if own is None else {SEEN_LOSS: own.seen, UNSEEN_LOSS: own.unseen, DRIFT_LOSS: own.drift}
        found.append(dataclasses.replace(one, measures={**one.measures, **measured}))
    return found
