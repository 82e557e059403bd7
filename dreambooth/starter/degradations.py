"""Pictures of individuals with lost or wrong details, by degree: what a judge of likeness must notice.

A strength of 0 changes nothing and 1 leaves nothing of the feature.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from PIL import Image, ImageFilter

from dreambooth.starter import rendering
from dreambooth.starter.atlas import LabelCanvas
from dreambooth.starter.more_things import MORE_CLASSES
from dreambooth.starter.rich_world import Look, Scene, plain_look
from dreambooth.starter.subjects import Emblem, random_subject
from dreambooth.starter.things import COLOURS, SKIN, Colour

BLUR_RADIUS = 6 / 128
EYE_COLOUR: Colour = COLOURS["red"]
# What is behind a person's eyes; the others' are on the body itself.
FACES: dict[str, Colour] = {"person": SKIN}
WITH_EYES = ("dog", "cat", "person", "stuffed animal", "toy")


@dataclass(frozen=True)
class Individual:
    """A held-out individual, and the colour of its wrong parts."""

    scene: Scene
    wrong: str


def random_individual(rng: random.Random, class_word: str, *, held_out: bool = True) -> Individual:
    """Return an individual of a class, either held out from every training or not."""
    subject = random_subject(rng, class_word, held_out=held_out)
    taken = (subject.left, subject.right, subject.emblem_colour)
    scene = Scene(
        class_word, subject.left, "plain", "white", second=subject.right, tone="halves",
        emblem=subject.emblem, emblem_colour=subject.emblem_colour,
    )  # fmt: skip
    return Individual(scene, rng.choice([name for name in COLOURS if name not in taken]))


def portrait(
    individual: Individual,
    context: str,
    rng: random.Random,
    look_of: Callable[[Scene, random.Random], Look] = plain_look,
) -> rendering.Painted:
    """Return the individual in some place, in a pose drawn by `look_of`."""
    scene = replace(individual.scene, context=context)
    return scene, look_of(scene, rng)


def eyes_of(class_word: str) -> list[list[int]]:
    """Return the labels of each eye's details, left eye first; those of a white and its pupil belong together."""
    canvas = LabelCanvas()
    MORE_CLASSES[class_word](canvas)
    high = [label for label in canvas.small if canvas.centres[label][1] < 0.42]
    left = [label for label in high if canvas.centres[label][0] < 0.49]
    return [left, [label for label in high if canvas.centres[label][0] > 0.51]]


# Each takes a portrait and a strength and returns the portrait degraded.
Degrade = Callable[[Individual, Scene, Look, float], tuple[Scene, Look]]


def _emblem_gone(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    x, y, r = look.emblem_place
    if strength >= 1:
        return replace(scene, emblem=None, emblem_colour=None), look
    return scene, replace(look, emblem_place=(x, y, r * (1 - strength)))


def _emblem_other(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    others = [name for name in get_args(Emblem) if name != scene.emblem]
    return (replace(scene, emblem=others[0]) if strength > 0 else scene), look


def _emblem_recoloured(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    return scene, replace(look, jitter=(*look.jitter[:9], *_shift(scene.emblem_colour, individual.wrong, strength)))


def _half_recoloured(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    shift = _shift(scene.second, individual.wrong, strength)
    return scene, replace(look, jitter=(*look.jitter[:3], *shift, *look.jitter[6:]))


def _shift(colour: str | None, wrong: str, strength: float) -> tuple[float, ...]:
    return tuple(strength * (b - a) for a, b in zip(COLOURS[colour or wrong], COLOURS[wrong], strict=True))


def _eye_wrong(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    labels = eyes_of(scene.class_word)[0]
    return scene, replace(look, mixed=tuple((label, strength, EYE_COLOUR) for label in labels))


def _eyes_gone(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    """At 0.5 the left eye has been replaced by the colour behind it, at 1 the right one too."""
    left, right = eyes_of(scene.class_word)
    face = FACES.get(scene.class_word)
    gone = [(label, min(2 * strength, 1.0), face or COLOURS[scene.colour]) for label in left]
    gone += [(label, max(2 * strength - 1, 0.0), face or COLOURS[scene.second or scene.colour]) for label in right]
    return scene, replace(look, mixed=tuple(gone))


def _unchanged(individual: Individual, scene: Scene, look: Look, strength: float) -> tuple[Scene, Look]:
    return scene, look


# How much less like its individual a picture is with this wholly lost: what a judge is trained to say.
LOSSES = {
    "blurred": 0.8, "emblem gone": 0.7, "another emblem": 0.5, "emblem recoloured": 0.6, "half recoloured": 0.7,
    "eye wrong": 0.3, "eyes gone": 0.5,
}  # fmt: skip
DEGRADATIONS: dict[str, Degrade] = {
    "blurred": _unchanged,
    "emblem gone": _emblem_gone,
    "another emblem": _emblem_other,
    "emblem recoloured": _emblem_recoloured,
    "half recoloured": _half_recoloured,
    "eye wrong": _eye_wrong,
    "eyes gone": _eyes_gone,
}


def degraded(
    individual: Individual, portraits: list[rendering.Painted], kind: str, strength: float, size_px: int
) -> list[Image.Image]:
    """Return these portraits of the individual, degraded to this strength, as images."""
    changed = [DEGRADATIONS[kind](individual, scene, look, strength) for scene, look in portraits]
    pictures, _ = rendering.render(changed, size_px)
    images = [Image.fromarray(one.numpy()) for one in pictures]
    return [blurred(image, strength) for image in images] if kind == "blurred" else images


def blurred(image: Image.Image, strength: float) -> Image.Image:
    """Return the image blurred with a radius of at most BLUR_RADIUS of its side."""
    return image.filter(ImageFilter.GaussianBlur(strength * BLUR_RADIUS * image.width)) if strength else image
