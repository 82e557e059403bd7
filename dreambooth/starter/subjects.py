"""Subjects to train the starter on: things of the world's classes with features that the world never shows.

A subject is two-toned down the middle and wears an emblem; no training scene has either.
"""

import math
import random
import zlib
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw

from dreambooth.starter.scenes import compose
from dreambooth.starter.things import CLASSES, COLOURS, Canvas, Point

Emblem = Literal["star", "heart", "cross"]
EMBLEMS: tuple[Emblem, ...] = ("star", "heart", "cross")


@dataclass(frozen=True)
class Subject:
    """One individual: the same in every picture of it."""

    class_word: str
    left: str
    right: str
    emblem: Emblem
    emblem_colour: str


def random_subject(rng: random.Random, class_word: str | None = None, *, held_out: bool | None = None) -> Subject:
    """Return a random individual, of a given class or any.

    `held_out` selects the fifth that the judge is never trained on (True), or the others (False).
    """
    while True:
        first, second, emblem_colour = rng.sample(list(COLOURS), 3)
        # A picture may be mirrored, so the order of the halves is not a feature.
        left, right = sorted((first, second))
        subject = Subject(class_word or rng.choice(list(CLASSES)), left, right, rng.choice(EMBLEMS), emblem_colour)
        if held_out is None or is_held_out(subject) == held_out:
            return subject


def is_held_out(subject: Subject) -> bool:
    """Return whether the individual is one of the fifth that the judge is never trained on."""
    return zlib.crc32(repr(subject).encode()) % 5 == 0


def near_misses(subject: Subject, rng: random.Random) -> list[Subject]:
    """Return two individuals that the judge is trained on and that differ from this one only in emblem or colour."""
    others = [name for name in COLOURS if name not in (subject.left, subject.right, subject.emblem_colour)]
    changed = [
        replace(subject, emblem=rng.choice([emblem for emblem in EMBLEMS if emblem != subject.emblem])),
        replace(subject, emblem_colour=rng.choice(others)),
    ]
    return [one for one in changed if not is_held_out(one)]


def render_subject(subject: Subject, context: str, size_px: int, rng: random.Random) -> Image.Image:
    """Paint the individual in a context, in a pose drawn from `rng`; RGB, size_px x size_px."""

    def thing(canvas: Canvas) -> None:
        CLASSES[subject.class_word](canvas)
        canvas.patch(COLOURS[subject.emblem_colour], *emblem(subject.emblem, 0.50, 0.66, 0.19))

    def paint(mask: Image.Image) -> Image.Image:
        layer = Image.new("RGB", mask.size, COLOURS[subject.left])
        width, height = mask.size
        ImageDraw.Draw(layer).rectangle((width // 2, 0, width, height), fill=COLOURS[subject.right])
        return layer

    return compose(thing, paint, context, size_px, rng)


def emblem(kind: Emblem, x: float, y: float, r: float) -> list[Point]:
    """Return the corners of an emblem of radius r around (x, y)."""
    if kind == "star":
        angles = [math.pi * (step / 5 - 0.5) for step in range(10)]
        radii = [r if step % 2 == 0 else 0.42 * r for step in range(10)]
        return [(x + s * math.cos(a), y + s * math.sin(a)) for a, s in zip(angles, radii, strict=True)]
    if kind == "cross":
        arm = 0.36 * r
        corners = [(arm, r), (arm, arm), (r, arm), (r, -arm), (arm, -arm), (arm, -r)]
        return [(x + a, y + b) for a, b in corners] + [(x - a, y - b) for a, b in corners]
    angles = [2 * math.pi * step / 24 for step in range(24)]
    return [
        (
            x + r * math.sin(a) ** 3,
            y - r * (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16,
        )
        for a in angles
    ]
