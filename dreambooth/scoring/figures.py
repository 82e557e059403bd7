"""From the probe images of a step to its scores, compared with the base's and the real photos'."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from dreambooth.scoring import measures
from dreambooth.scoring.encoders import Examiner
from dreambooth.scoring.recommendation import StepScores

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

T = TypeVar("T")
Kind = Literal["identifier", "class", "unrelated", "empty"]
# What should not change when a subject is learned.
NEUTRAL: tuple[Kind, ...] = ("class", "unrelated", "empty")
COPY = 0.95


@dataclass(frozen=True)
class ProbePicture:
    """An image made for scoring: its concept, the kind of its prompt, what it should show, and the image.

    `asked` is the prompt in words that the base knows: the class instead of the identifier.
    """

    concept: int
    kind: Kind
    asked: str
    image: "Image.Image"


@dataclass(frozen=True)
class Reference:
    """What a step's scores are compared with: the photos of each concept and the base's images of the same seeds.

    They do not change from save to save: their embeddings are computed only `once`.
    """

    photos: Sequence[Sequence["Image.Image"]]
    base: Sequence[ProbePicture]
    _known: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: tuple[object, ...], work: Callable[[], T]) -> T:
        """Return the result of `work`, computed when it was first requested under this key."""
        if key not in self._known:
            self._known[key] = work()
        found: T = self._known[key]
        return found

    def photo_rows(self, examiner: Examiner, encoder: str, concept: int) -> "Tensor":
        """Return the unit vectors of a concept's photos, (photos, size)."""
        embed = examiner.likeness[encoder]
        return self.once((examiner.name, encoder, concept), lambda: embed(self.photos[concept]))

    def base_rows(self, examiner: Examiner, kind: Kind, concept: int) -> "Tensor":
        """Return the first encoder's unit vectors of the base's images of a kind, (images, size)."""
        embed = next(iter(examiner.likeness.values()))
        own = [one.image for one in self.base if (one.concept, one.kind) == (concept, kind)]
        return self.once((examiner.name, kind, concept), lambda: embed(own))


def step_scores(
    examiner: Examiner | None, step: int, pictures: Sequence[ProbePicture], reference: Reference
) -> StepScores:
    """Return a step's scores, means over the concepts; without an examiner those that follow from pixels alone."""
    each = [_of_concept(examiner, step, concept, pictures, reference) for concept in range(len(reference.photos))]
    fidelity, prompt, drift = (_mean([getattr(one, name) for one in each]) for name in ("fidelity", "prompt", "drift"))
    names = list(dict.fromkeys(name for one in each for name in one.measures))
    means = {name: statistics.fmean(one.measures[name] for one in each if name in one.measures) for name in names}
    return StepScores(step, fidelity, prompt, drift, means)


def ceiling(examiner: Examiner | None, reference: Reference) -> dict[str, float]:
    """Return how alike the real photos of one subject are, by encoder: the highest fidelity to expect."""
    if examiner is None:
        return {}
    found = {}
    several = [concept for concept, own in enumerate(reference.photos) if len(own) > 1]
    for name in examiner.likeness:
        values = [measures.own_similarity(reference.photo_rows(examiner, name, concept)) for concept in several]
        if values:
            found[name] = statistics.fmean(values)
    return found


def _of_concept(
    examiner: Examiner | None, step: int, concept: int, pictures: Sequence[ProbePicture], reference: Reference
) -> StepScores:
    own = [one for one in pictures if one.concept == concept]
    before = [one for one in reference.base if one.concept == concept]
    pool = reference.once(("thumbnails", concept), lambda: measures.photo_pool(reference.photos[concept]))
    found = _by_pixels(own, before, pool)
    if examiner is None:
        return StepScores(step, measures=found)
    shown = _of(own, "identifier")
    for name, embed in examiner.likeness.items():
        found[name] = measures.similarity(embed(_images(shown)), reference.photo_rows(examiner, name, concept))
    first, embed = next(iter(examiner.likeness.items()))
    rows = {kind: embed(_images(some)) for kind in NEUTRAL if (some := _of(own, kind))}
    if "class" in rows:
        found["PRES"] = measures.similarity(rows["class"], reference.photo_rows(examiner, first, concept))
        if len(rows["class"]) > 1:
            found["DIV"] = measures.diversity(rows["class"])
    prompt = _prompt_share(examiner, shown, concept, reference, found)
    fidelity = _fidelity(examiner, found[first], concept, reference)
    return StepScores(step, fidelity, prompt, _drift(examiner, rows, concept, reference), found)


def _by_pixels(own: Sequence[ProbePicture], before: Sequence[ProbePicture], pool: "Tensor") -> dict[str, float]:
    nearest = measures.nearest_photo(_images(_of(own, "identifier")), pool)
    neutral, neutral_before = ([one for one in some if one.kind in NEUTRAL] for some in (own, before))
    found = {
        "nearest photo": statistics.fmean(nearest),
        "copies": statistics.fmean(float(value >= COPY) for value in nearest),
    }
    if neutral and len(neutral) == len(neutral_before):
        found["changed"] = statistics.fmean(measures.pixel_change(_images(neutral), _images(neutral_before)))
    return found


def _fidelity(examiner: Examiner, likeness: float, concept: int, reference: Reference) -> float | None:
    if len(reference.photos[concept]) < 2:
        return None
    real = reference.photo_rows(examiner, next(iter(examiner.likeness)), concept)
    start = measures.similarity(reference.base_rows(examiner, "identifier", concept), real)
    return measures.share_of_way(likeness, start, measures.own_similarity(real))


def _prompt_share(
    examiner: Examiner, shown: Sequence[ProbePicture], concept: int, reference: Reference, found: dict[str, float]
) -> float | None:
    """Return how well prompts are followed, 1 as by the base, and add the measure itself to `found`.

    0 means not at all or, for encoders that give even a wrong image a score, what the photos get for these prompts.
    """
    asked = [one.asked for one in shown]
    before = [one for one in _of(reference.base, "identifier") if one.concept == concept]
    photos = reference.photos[concept]

    def goal_and_start() -> tuple[float | None, float]:
        goal = _obedience(examiner, _images(before), [one.asked for one in before])
        if not examiner.photos_are_zero:
            return goal, 0.0
        pairs = [(photo, prompt) for prompt in asked for photo in photos]
        return goal, _obedience(examiner, [photo for photo, _ in pairs], [prompt for _, prompt in pairs]) or 0.0

    value = _obedience(examiner, _images(shown), asked)
    goal, start = reference.once((examiner.name, "obedience", concept, *asked), goal_and_start)
    if value is None or goal is None:
        return None
    found[examiner.obedience_name] = value
    return measures.share_of_way(value, start, goal)


def _obedience(examiner: Examiner, images: Sequence["Image.Image"], asked: Sequence[str]) -> float | None:
    return _mean(examiner.obedience(images, asked))


def _drift(examiner: Examiner, rows: "Mapping[Kind, Tensor]", concept: int, reference: Reference) -> float | None:
    """Return how far images of prompts without the identifier became the subject: 0 like the base, 1 like photos."""
    if len(reference.photos[concept]) < 2:
        return None
    real = reference.photo_rows(examiner, next(iter(examiner.likeness)), concept)
    goal, shares = measures.own_similarity(real), []
    for kind, now in rows.items():
        if any((one.concept, one.kind) == (concept, kind) for one in reference.base):
            start = measures.similarity(reference.base_rows(examiner, kind, concept), real)
            shares.append(measures.share_of_way(measures.similarity(now, real), start, goal))
    # The class is the subject's nearest neighbour: it is lost first, and so counted again beside the mean of all.
    return None if not shares else statistics.fmean([shares[0], statistics.fmean(shares)])


def _of(pictures: Sequence[ProbePicture], kind: Kind) -> list[ProbePicture]:
    return [one for one in pictures if one.kind == kind]


def _images(pictures: Sequence[ProbePicture]) -> list["Image.Image"]:
    return [one.image for one in pictures]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.fmean(found) if found else None
