"""A small painted world to pre-train the starter on: one thing, its colour and pattern, and its place.

Classes and contexts are those of the DreamBooth paper's prompt list (Ruiz et al. 2023) as far as a few plain shapes can
show them. Everything is a function of a random generator; captions say exactly what is painted.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.things import CLASSES, COLOURS, DARK, LIGHT, LIVE, NECK_Y, Canvas, Colour, Point

PATTERNS = ("plain", "striped", "spotted", "checkered")
ACCESSORIES = ("red hat", "blue hat", "yellow hat", "black hat", "rainbow scarf")
SUPERSAMPLING = 2
RIM: Colour = (60, 58, 66)
# With the others' second colour, white and black checks would look the same.
SECOND: dict[str, Colour] = {"white": (126, 168, 190)}


@dataclass(frozen=True)
class Scene:
    """What a picture shows; its caption follows from it."""

    class_word: str
    colour: str
    pattern: str
    context: str
    accessory: str | None = None

    @property
    def caption(self) -> str:
        """Return the caption of the scene, in the paper's style."""
        pattern = "" if self.pattern == "plain" else f"{self.pattern} "
        worn = f" wearing a {self.accessory}" if self.accessory else ""
        return f"a photo of a {self.colour} {pattern}{self.class_word}{worn} {CONTEXTS[self.context][0]}"


# Painting ------------------------------------------------------------------------------------------------------------


def random_scene(rng: random.Random) -> Scene:
    """Return a scene drawn evenly from the world."""
    class_word = rng.choice(list(CLASSES))
    return Scene(
        class_word=class_word,
        colour=rng.choice(list(COLOURS)),
        pattern=rng.choice(PATTERNS) if rng.random() < 0.6 else "plain",
        context=rng.choice(list(CONTEXTS)),
        accessory=rng.choice(ACCESSORIES) if class_word in LIVE and rng.random() < 0.25 else None,
    )


def training_caption(scene: Scene, rng: random.Random) -> str:
    """Return the scene's caption, or one that omits some attributes, as people's prompts do."""
    thing, place = f"{scene.colour} {scene.class_word}", CONTEXTS[scene.context][0]
    return shortened_caption(scene.caption, scene.class_word, thing, place, rng)


def shortened_caption(caption: str, class_word: str, thing: str, place: str, rng: random.Random) -> str:
    """Return three captions in five as they are, and else one with the class word, the thing or the place alone."""
    kind = rng.random()
    if kind < 0.6:
        return caption
    if kind < 0.7:
        return f"photo of {class_word}"
    if kind < 0.8:
        return f"a {class_word} {place}"
    if kind < 0.9:
        return f"a {thing} {place}"
    if kind < 0.95:
        return f"a {thing}"
    return f"a photo of a {class_word}"


def attributes_in(caption: str) -> dict[str, str]:
    """Return which attributes a caption of the world names, by `class`, `colour`, `pattern`, `context`, `accessory`."""
    rest = f" {caption} "
    found = {}
    phrases = {"context": {phrase: name for name, (phrase, _) in CONTEXTS.items()}}
    # In this order, because a context has a purple rug and an accessory a red hat, and a duck toy is not just a toy.
    for attribute, values in (
        ("context", None), ("accessory", ACCESSORIES), ("class", CLASSES), ("colour", COLOURS), ("pattern", PATTERNS)
    ):  # fmt: skip
        names = phrases.get(attribute) or {value: value for value in values or ()}
        for phrase in sorted(names, key=len, reverse=True):
            if f" {phrase} " in rest:
                found[attribute] = names[phrase]
                rest = rest.replace(f" {phrase} ", " ")
                break
    return found


def render(scene: Scene, size_px: int, rng: random.Random) -> Image.Image:
    """Paint the scene as an RGB picture of size_px x size_px, in a pose, place and light drawn from `rng`."""

    def thing(canvas: Canvas) -> None:
        CLASSES[scene.class_word](canvas)
        if scene.accessory:
            put_on(canvas, scene.accessory, NECK_Y[scene.class_word])

    return compose(thing, lambda mask: fill(mask, scene), scene.context, size_px, rng)


def put_on(canvas: Canvas, accessory: str, neck_y: float) -> None:
    """Draw a hat or a scarf onto a thing."""
    colour, kind = accessory.split()
    if kind == "hat":
        canvas.patch(COLOURS[colour], (0.26, 0.22), (0.35, 0.17), (0.38, 0.0), (0.62, 0.0), (0.65, 0.17), (0.74, 0.22))
        return
    for step, stripe in enumerate(("red", "yellow", "green", "blue")):
        left, right = 0.30 + 0.10 * step, 0.40 + 0.10 * step
        top, bottom = neck_y - 0.05, neck_y + 0.06
        canvas.patch(COLOURS[stripe], (left, top), (right, top), (right, bottom), (left, bottom))


def compose(
    thing: Callable[[Canvas], None],
    paint: Callable[[Image.Image], Image.Image],
    context: str,
    size_px: int,
    rng: random.Random,
) -> Image.Image:
    """Paint a thing, coloured by `paint` from its mask, somewhere in a context."""
    side_px = size_px * SUPERSAMPLING
    picture = Image.new("RGB", (side_px, side_px))
    CONTEXTS[context][1](ImageDraw.Draw(picture), side_px, rng)
    canvas = Canvas(side_px)
    thing(canvas)
    body = paint(canvas.mask)
    mask = canvas.mask
    draw, mask_draw = ImageDraw.Draw(body), ImageDraw.Draw(mask)
    for detail in canvas.details:
        detail(draw, canvas.placed)
        # It has the one method that details call.
        detail(_Opaque(mask_draw), canvas.placed)  # type: ignore[arg-type]
    scale = rng.uniform(0.80, 0.96)
    angle = math.radians(rng.uniform(-10, 10))
    flip = -1 if rng.random() < 0.5 else 1
    centre_x, centre_y = 0.5 + rng.uniform(-0.06, 0.06), 0.54 + rng.uniform(-0.04, 0.04)
    matrix = _pose(side_px, scale, angle, flip, centre_x, centre_y)
    body = body.transform((side_px, side_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    mask = mask.transform((side_px, side_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    # An outline separates a white thing from snow; it is one pixel of the finished picture wide.
    picture.paste(RIM, (0, 0), mask.filter(ImageFilter.MaxFilter(max(2 * (side_px // 64) - 1, 3))))
    picture.paste(body, (0, 0), mask)
    light = rng.uniform(0.90, 1.04)
    return picture.point(lambda value: min(round(value * light), 255)).reduce(SUPERSAMPLING)


class _Opaque:
    """A drawing in opaque colours, so that details show outside the body too."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def polygon(self, points: list[Point], fill: Colour) -> None:
        self._draw.polygon(points, fill=255)


def _pose(
    side_px: int, scale: float, angle: float, flip: int, centre_x: float, centre_y: float
) -> tuple[float, float, float, float, float, float]:
    """Return the affine map from picture to drawing, in Pillow's form."""
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y, half = centre_x * side_px, centre_y * side_px, side_px / 2
    return (flip * cos, flip * sin, half - flip * (cos * x + sin * y), -sin, cos, half + sin * x - cos * y)


def fill(mask: Image.Image, scene: Scene) -> Image.Image:
    """Return a layer in the scene's colour and pattern; a pattern's second colour covers at most half of it."""
    colour = COLOURS[scene.colour]
    layer = Image.new("RGB", mask.size, colour)
    second = SECOND.get(scene.colour, DARK if sum(colour) > 380 else LIGHT)
    draw, side_px = ImageDraw.Draw(layer), mask.size[0]

    def box(x: float, y: float, width: float, height: float) -> tuple[float, float, float, float]:
        return (side_px * x, side_px * y, side_px * (x + width), side_px * (y + height))

    if scene.pattern == "striped":
        for step in range(5):
            draw.rectangle(box(0, 0.07 + 0.2 * step, 1, 0.075), fill=second)
    elif scene.pattern == "spotted":
        for row in range(5):
            for column in range(5):
                draw.ellipse(box(0.2 * column + 0.1 * (row % 2) - 0.01, 0.2 * row + 0.045, 0.11, 0.11), fill=second)
    elif scene.pattern == "checkered":
        for row in range(6):
            for column in range(row % 2, 6, 2):
                draw.rectangle(box(column / 6, row / 6, 1 / 6, 1 / 6), fill=second)
    return layer
