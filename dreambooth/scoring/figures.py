"""From the probe pictures of one step to its figures, beside those of the base and of the real photos."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreambooth.scoring import measures
from dreambooth.scoring.encoders import Examiner
from dreambooth.scoring.recommendation import StepScores

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["identifier", "class", "unrelated", "empty"]
# What should not change when a subject is learned.
NEUTRAL: tuple[Kind, ...] = ("class", "unrelated", "empty")
COPY = 0.95


@dataclass(frozen=True)
class ProbePicture:
    """A picture made for scoring: which concept and kind of prompt it is of, what it should show, and itself.

    `asked` is the prompt in words that the base knows: with the class in the identifier's place.
    """

    concept: int
    kind: Kind
    asked: str
    image: "Image.Image"


@dataclass(frozen=True)
class Reference:
    """What a step's figures are held against: the photos of each concept and the base's pictures of the same seeds."""

    photos: Sequence[Sequence["Image.Image"]]
    base: Sequence[ProbePicture]


def step_scores(
    examiner: Examiner | None, step: int, pictures: Sequence[ProbePicture], reference: Reference
) -> StepScores:
    """Return a step's figures, means over the concepts; without an examiner those that pixels alone can tell."""
    each = [_of_concept(examiner, step, concept, pictures, reference) for concept in range(len(reference.photos))]
    fidelity, prompt, drift = (_mean([getattr(one, name) for one in each]) for name in ("fidelity", "prompt", "drift"))
    names = list(dict.fromkeys(name for one in each for name in one.measures))
    means = {name: statistics.fmean(one.measures[name] for one in each if name in one.measures) for name in names}
    return StepScores(step, fidelity, prompt, drift, means)


def ceiling(examiner: Examiner | None, photos: Sequence[Sequence["Image.Image"]]) -> dict[str, float]:
    """Return how like the real photos of one subject are to each other, by encoder: what fidelity can reach."""
    if examiner is None:
        return {}
    found = {}
    for name, embed in examiner.likeness.items():
        values = [measures.own_similarity(embed(own)) for own in photos if len(own) > 1]
        if values:
            found[name] = statistics.fmean(values)
    return found


def _of_concept(
    examiner: Examiner | None, step: int, concept: int, pictures: Sequence[ProbePicture], reference: Reference
) -> StepScores:
    own = [one for one in pictures if one.concept == concept]
    before = [one for one in reference.base if one.concept == concept]
    photos = reference.photos[concept]
    found = _by_pixels(own, before, photos)
    if examiner is None:
        return StepScores(step, measures=found)
    shown, class_pictures = _of(own, "identifier"), _of(own, "class")
    embeds = examiner.likeness
    for name, embed in embeds.items():
        found[name] = measures.similarity(embed(_images(shown)), embed(photos))
    first = next(iter(embeds))
    if class_pictures:
        class_rows = embeds[first](_images(class_pictures))
        found["PRES"] = measures.similarity(class_rows, embeds[first](photos))
        if len(class_pictures) > 1:
            found["DIV"] = measures.diversity(class_rows)
    prompt = _prompt_share(examiner, shown, _of(before, "identifier"), photos, found)
    return StepScores(step, _fidelity(examiner, found, before, photos), prompt, _drift(examiner, own, before, photos),
                      found)  # fmt: skip


def _by_pixels(
    own: Sequence[ProbePicture], before: Sequence[ProbePicture], photos: Sequence["Image.Image"]
) -> dict[str, float]:
    nearest = measures.nearest_photo(_images(_of(own, "identifier")), photos)
    neutral, neutral_before = ([one for one in some if one.kind in NEUTRAL] for some in (own, before))
    found = {
        "nearest photo": statistics.fmean(nearest),
        "copies": statistics.fmean(float(value >= COPY) for value in nearest),
    }
    if neutral and len(neutral) == len(neutral_before):
        found["changed"] = statistics.fmean(measures.pixel_change(_images(neutral), _images(neutral_before)))
    return found


def _fidelity(
    examiner: Examiner, found: dict[str, float], before: Sequence[ProbePicture], photos: Sequence["Image.Image"]
) -> float | None:
    name, embed = next(iter(examiner.likeness.items()))
    if len(photos) < 2:
        return None
    real = embed(photos)
    start = measures.similarity(embed(_images(_of(before, "identifier"))), real)
    return measures.share_of_way(found[name], start, measures.own_similarity(real))


def _prompt_share(
    examiner: Examiner,
    shown: Sequence[ProbePicture],
    before: Sequence[ProbePicture],
    photos: Sequence["Image.Image"],
    found: dict[str, float],
) -> float | None:
    """Return how far prompts are followed, 1 as the base does, and add the measure itself to `found`.

    0 is nothing of it or, where encoders give even a wrong picture something, what the photos get for these prompts.
    """
    value = _obedience(examiner, _images(shown), [one.asked for one in shown])
    goal = _obedience(examiner, _images(before), [one.asked for one in before])
    if value is None or goal is None:
        return None
    found[examiner.obedience_name] = value
    start = 0.0
    if examiner.photos_are_zero:
        asked = [one.asked for one in shown for _ in photos]
        start = _obedience(examiner, [photo for _ in shown for photo in photos], asked) or 0.0
    return measures.share_of_way(value, start, goal)


def _obedience(examiner: Examiner, images: Sequence["Image.Image"], asked: Sequence[str]) -> float | None:
    return _mean(examiner.obedience(images, asked))


def _drift(
    examiner: Examiner, own: Sequence[ProbePicture], before: Sequence[ProbePicture], photos: Sequence["Image.Image"]
) -> float | None:
    """Return how far the pictures of prompts without the identifier became the subject: 0 as the base, 1 as photos."""
    embed = next(iter(examiner.likeness.values()))
    real = embed(photos)
    shares = []
    for kind in NEUTRAL:
        now, then = _images(_of(own, kind)), _images(_of(before, kind))
        if now and then and len(photos) > 1:
            start, goal = measures.similarity(embed(then), real), measures.own_similarity(real)
            shares.append(measures.share_of_way(measures.similarity(embed(now), real), start, goal))
    # The class is the subject's nearest neighbour: it is lost first, and counts as much as all others together.
    return None if not shares else statistics.fmean([shares[0], statistics.fmean(shares)])


def _of(pictures: Sequence[ProbePicture], kind: Kind) -> list[ProbePicture]:
    return [one for one in pictures if one.kind == kind]


def _images(pictures: Sequence[ProbePicture]) -> list["Image.Image"]:
    return [one.image for one in pictures]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None
