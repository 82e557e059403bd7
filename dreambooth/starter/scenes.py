"""A small painted world to pre-train the starter on: one thing, its colour and pattern, and where it is.

Classes and contexts are those of the DreamBooth paper's prompt list (Ruiz et al. 2023) as far as a few plain shapes can
show them. Everything is a function of a random generator; captions say exactly what is painted.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 48, 49), "orange": (240, 138, 36), "yellow": (246, 211, 62), "green": (58, 168, 84),
    "blue": (52, 101, 214), "purple": (142, 76, 186), "pink": (243, 142, 180), "brown": (134, 87, 51),
    "black": (38, 38, 44), "white": (244, 244, 240), "gray": (138, 142, 150),
}  # fmt: skip
PATTERNS = ("plain", "striped", "spotted", "checkered")
SUPERSAMPLING = 2


@dataclass(frozen=True)
class Scene:
    """What a picture shows; its caption follows from it."""

    class_word: str
    colour: str
    pattern: str
    context: str
    hat: str | None = None

    @property
    def caption(self) -> str:
        """Return the words for the scene, in the paper's manner."""
        pattern = "" if self.pattern == "plain" else f"{self.pattern} "
        hat = f" wearing a {self.hat} hat" if self.hat else ""
        return f"a photo of a {self.colour} {pattern}{self.class_word}{hat} {CONTEXTS[self.context][0]}"


class Canvas:
    """Draws in unit coordinates, y downward, into one layer that a mask cuts out."""

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self.mask = Image.new("L", (side_px, side_px))
        self._draw = ImageDraw.Draw(self.mask)
        self.details: list[Callable[[ImageDraw.ImageDraw, Callable[[Sequence[Point]], list[Point]]], None]] = []

    def oval(self, x: float, y: float, rx: float, ry: float) -> None:
        """Add an ellipse around (x, y) to the body."""
        self._draw.polygon(self.placed(_ellipse(x, y, rx, ry)), fill=255)

    def shape(self, *points: Point) -> None:
        """Add a polygon to the body."""
        self._draw.polygon(self.placed(points), fill=255)

    def hole(self, x: float, y: float, rx: float, ry: float) -> None:
        """Take an ellipse out of the body."""
        self._draw.polygon(self.placed(_ellipse(x, y, rx, ry)), fill=0)

    def dot(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Paint an ellipse over the finished body."""
        self.details.append(lambda draw, place: draw.polygon(place(_ellipse(x, y, rx, ry)), fill=colour))

    def patch(self, colour: Colour, *points: Point) -> None:
        """Paint a polygon over the finished body."""
        self.details.append(lambda draw, place: draw.polygon(place(points), fill=colour))

    def placed(self, points: Sequence[Point]) -> list[Point]:
        """Return these points in pixels."""
        return [(x * self.side_px, y * self.side_px) for x, y in points]


def _ellipse(x: float, y: float, rx: float, ry: float) -> list[Point]:
    return [
        (x + rx * math.cos(angle), y + ry * math.sin(angle))
        for angle in (2 * math.pi * step / 28 for step in range(28))
    ]


DARK: Colour = (30, 28, 32)
LIGHT: Colour = (250, 250, 246)

# Things --------------------------------------------------------------------------------------------------------------


def _face(canvas: Canvas, x: float, y: float, spread: float) -> None:
    for side in (-1, 1):
        canvas.dot(x + side * spread, y, 0.030, 0.038, DARK)


def dog(canvas: Canvas) -> None:
    """A sitting dog with hanging ears and a snout."""
    canvas.oval(0.50, 0.72, 0.22, 0.24)
    canvas.oval(0.50, 0.36, 0.21, 0.19)
    canvas.oval(0.27, 0.40, 0.08, 0.19)
    canvas.oval(0.73, 0.40, 0.08, 0.19)
    canvas.shape((0.68, 0.82), (0.92, 0.60), (0.95, 0.68), (0.72, 0.92))
    _face(canvas, 0.50, 0.33, 0.085)
    canvas.dot(0.50, 0.44, 0.055, 0.040, DARK)


def cat(canvas: Canvas) -> None:
    """A sitting cat with pointed ears and whiskers."""
    canvas.oval(0.50, 0.74, 0.20, 0.22)
    canvas.oval(0.50, 0.40, 0.20, 0.17)
    canvas.shape((0.31, 0.36), (0.32, 0.10), (0.49, 0.27))
    canvas.shape((0.69, 0.36), (0.68, 0.10), (0.51, 0.27))
    canvas.shape((0.66, 0.88), (0.84, 0.84), (0.84, 0.48), (0.91, 0.48), (0.92, 0.92), (0.68, 0.96))
    _face(canvas, 0.50, 0.38, 0.085)
    canvas.patch((236, 130, 140), (0.46, 0.455), (0.54, 0.455), (0.50, 0.50))


def person(canvas: Canvas) -> None:
    """A standing person; the colour is the clothes'."""
    canvas.shape((0.36, 0.40), (0.64, 0.40), (0.70, 0.70), (0.30, 0.70))
    canvas.shape((0.36, 0.42), (0.18, 0.62), (0.25, 0.68), (0.42, 0.52))
    canvas.shape((0.64, 0.42), (0.82, 0.62), (0.75, 0.68), (0.58, 0.52))
    canvas.shape((0.34, 0.68), (0.48, 0.68), (0.46, 0.96), (0.34, 0.96))
    canvas.shape((0.52, 0.68), (0.66, 0.68), (0.66, 0.96), (0.54, 0.96))
    canvas.dot(0.50, 0.25, 0.145, 0.165, (236, 188, 152))
    canvas.patch((74, 48, 32), (0.35, 0.24), (0.37, 0.10), (0.50, 0.06), (0.63, 0.10), (0.65, 0.24), (0.50, 0.16))
    _face(canvas, 0.50, 0.26, 0.06)


def backpack(canvas: Canvas) -> None:
    """A backpack with a pocket and a handle."""
    canvas.oval(0.50, 0.20, 0.12, 0.12)
    canvas.hole(0.50, 0.20, 0.06, 0.06)
    canvas.oval(0.50, 0.42, 0.30, 0.24)
    canvas.shape((0.20, 0.42), (0.80, 0.42), (0.82, 0.92), (0.18, 0.92))
    canvas.patch(DARK, (0.30, 0.60), (0.70, 0.60), (0.70, 0.63), (0.30, 0.63))
    canvas.patch(LIGHT, (0.46, 0.64), (0.54, 0.64), (0.54, 0.74), (0.46, 0.74))


def stuffed_animal(canvas: Canvas) -> None:
    """A bear of plush with round ears and a pale belly."""
    canvas.oval(0.50, 0.68, 0.23, 0.24)
    canvas.oval(0.50, 0.33, 0.20, 0.19)
    for side in (-1, 1):
        canvas.oval(0.50 + side * 0.19, 0.17, 0.085, 0.085)
        canvas.oval(0.50 + side * 0.28, 0.60, 0.10, 0.10)
        canvas.oval(0.50 + side * 0.19, 0.90, 0.12, 0.08)
    canvas.dot(0.50, 0.70, 0.13, 0.14, (250, 226, 190))
    canvas.dot(0.50, 0.40, 0.085, 0.065, (250, 226, 190))
    _face(canvas, 0.50, 0.30, 0.08)


def candle(canvas: Canvas) -> None:
    """A thick candle with a flame."""
    canvas.shape((0.33, 0.42), (0.67, 0.42), (0.67, 0.94), (0.33, 0.94))
    canvas.dot(0.50, 0.42, 0.17, 0.05, LIGHT)
    canvas.patch(DARK, (0.485, 0.32), (0.515, 0.32), (0.515, 0.42), (0.485, 0.42))
    canvas.dot(0.50, 0.24, 0.075, 0.13, (255, 176, 40))
    canvas.dot(0.50, 0.27, 0.035, 0.07, (255, 244, 160))


def cartoon(canvas: Canvas) -> None:
    """A cartoon imp: a round body with one big eye and horns."""
    canvas.oval(0.50, 0.55, 0.34, 0.33)
    canvas.shape((0.24, 0.36), (0.18, 0.06), (0.42, 0.26))
    canvas.shape((0.76, 0.36), (0.82, 0.06), (0.58, 0.26))
    canvas.shape((0.34, 0.80), (0.44, 0.80), (0.42, 0.98), (0.30, 0.98))
    canvas.shape((0.66, 0.80), (0.56, 0.80), (0.58, 0.98), (0.70, 0.98))
    canvas.dot(0.50, 0.48, 0.15, 0.15, LIGHT)
    canvas.dot(0.50, 0.49, 0.07, 0.075, DARK)
    canvas.patch(DARK, (0.36, 0.70), (0.64, 0.70), (0.50, 0.79))


def sneaker(canvas: Canvas) -> None:
    """A low shoe with a pale sole and laces."""
    canvas.shape((0.10, 0.40), (0.38, 0.38), (0.58, 0.54), (0.86, 0.60), (0.94, 0.74), (0.08, 0.76))
    canvas.patch(LIGHT, (0.06, 0.72), (0.95, 0.72), (0.93, 0.83), (0.08, 0.83))
    for step in range(3):
        x, y = 0.42 + 0.08 * step, 0.47 + 0.045 * step
        canvas.patch(LIGHT, (x, y), (x + 0.025, y - 0.02), (x + 0.06, y + 0.09), (x + 0.03, y + 0.11))


def boot(canvas: Canvas) -> None:
    """A high boot with a dark sole."""
    canvas.shape((0.28, 0.10), (0.58, 0.10), (0.58, 0.58), (0.84, 0.66), (0.88, 0.82), (0.26, 0.82))
    canvas.patch(DARK, (0.24, 0.80), (0.90, 0.80), (0.90, 0.90), (0.24, 0.90))
    canvas.patch(LIGHT, (0.26, 0.10), (0.60, 0.10), (0.60, 0.19), (0.26, 0.19))


def sunglasses(canvas: Canvas) -> None:
    """Sunglasses: a coloured frame around dark lenses."""
    canvas.oval(0.27, 0.52, 0.22, 0.18)
    canvas.oval(0.73, 0.52, 0.22, 0.18)
    canvas.shape((0.44, 0.42), (0.56, 0.42), (0.56, 0.50), (0.44, 0.50))
    canvas.dot(0.27, 0.53, 0.15, 0.12, DARK)
    canvas.dot(0.73, 0.53, 0.15, 0.12, DARK)


def glasses(canvas: Canvas) -> None:
    """Glasses: a coloured frame around clear, pale lenses."""
    sunglasses(canvas)
    canvas.dot(0.27, 0.53, 0.15, 0.12, (206, 232, 246))
    canvas.dot(0.73, 0.53, 0.15, 0.12, (206, 232, 246))


def toy(canvas: Canvas) -> None:
    """A toy robot of boxes with an aerial."""
    canvas.shape((0.30, 0.20), (0.70, 0.20), (0.70, 0.46), (0.30, 0.46))
    canvas.shape((0.24, 0.50), (0.76, 0.50), (0.76, 0.82), (0.24, 0.82))
    canvas.shape((0.10, 0.52), (0.21, 0.52), (0.21, 0.76), (0.10, 0.76))
    canvas.shape((0.79, 0.52), (0.90, 0.52), (0.90, 0.76), (0.79, 0.76))
    canvas.shape((0.30, 0.84), (0.45, 0.84), (0.45, 0.96), (0.30, 0.96))
    canvas.shape((0.55, 0.84), (0.70, 0.84), (0.70, 0.96), (0.55, 0.96))
    canvas.shape((0.48, 0.06), (0.52, 0.06), (0.52, 0.20), (0.48, 0.20))
    for side in (-1, 1):
        canvas.dot(0.50 + side * 0.10, 0.32, 0.055, 0.055, LIGHT)
        canvas.dot(0.50 + side * 0.10, 0.32, 0.025, 0.025, DARK)


def duck_toy(canvas: Canvas) -> None:
    """A bathing duck with a beak."""
    canvas.oval(0.46, 0.68, 0.34, 0.23)
    canvas.oval(0.64, 0.36, 0.18, 0.18)
    canvas.shape((0.10, 0.48), (0.30, 0.58), (0.16, 0.74))
    canvas.patch((240, 120, 30), (0.78, 0.34), (0.97, 0.40), (0.78, 0.46))
    canvas.dot(0.68, 0.31, 0.032, 0.04, DARK)


def can(canvas: Canvas) -> None:
    """A drinks can with a bright lid and a label."""
    canvas.shape((0.30, 0.14), (0.70, 0.14), (0.70, 0.90), (0.30, 0.90))
    canvas.oval(0.50, 0.90, 0.20, 0.05)
    canvas.dot(0.50, 0.14, 0.20, 0.055, (208, 212, 218))
    canvas.dot(0.50, 0.54, 0.11, 0.13, LIGHT)


def clock(canvas: Canvas) -> None:
    """A round clock with a pale face."""
    canvas.oval(0.50, 0.52, 0.38, 0.38)
    canvas.oval(0.26, 0.16, 0.09, 0.09)
    canvas.oval(0.74, 0.16, 0.09, 0.09)
    canvas.dot(0.50, 0.52, 0.28, 0.28, LIGHT)
    canvas.patch(DARK, (0.48, 0.28), (0.52, 0.28), (0.52, 0.54), (0.48, 0.54))
    canvas.patch(DARK, (0.48, 0.50), (0.68, 0.50), (0.68, 0.54), (0.48, 0.54))


def bowl(canvas: Canvas) -> None:
    """A wide bowl on a foot."""
    canvas.shape((0.08, 0.42), (0.92, 0.42), (0.78, 0.76), (0.60, 0.86), (0.40, 0.86), (0.22, 0.76))
    canvas.shape((0.36, 0.84), (0.64, 0.84), (0.68, 0.94), (0.32, 0.94))
    canvas.dot(0.50, 0.42, 0.42, 0.07, (250, 240, 214))


def teapot(canvas: Canvas) -> None:
    """A teapot with spout, handle and lid."""
    canvas.oval(0.14, 0.56, 0.13, 0.17)
    canvas.hole(0.14, 0.56, 0.07, 0.10)
    canvas.oval(0.48, 0.60, 0.30, 0.28)
    canvas.shape((0.70, 0.62), (0.92, 0.36), (0.99, 0.42), (0.78, 0.80))
    canvas.oval(0.48, 0.30, 0.06, 0.06)
    canvas.dot(0.48, 0.37, 0.19, 0.045, DARK)


def vase(canvas: Canvas) -> None:
    """A tall vase with a wide belly and a narrow neck."""
    canvas.oval(0.50, 0.66, 0.25, 0.27)
    canvas.shape((0.40, 0.16), (0.60, 0.16), (0.60, 0.50), (0.40, 0.50))
    canvas.shape((0.32, 0.10), (0.68, 0.10), (0.62, 0.20), (0.38, 0.20))
    canvas.shape((0.34, 0.86), (0.66, 0.86), (0.68, 0.95), (0.32, 0.95))


def ball(canvas: Canvas) -> None:
    """A ball with a gleam."""
    canvas.oval(0.50, 0.54, 0.38, 0.38)
    canvas.dot(0.37, 0.38, 0.08, 0.06, LIGHT)


def car(canvas: Canvas) -> None:
    """A car from the side."""
    canvas.shape((0.04, 0.54), (0.24, 0.50), (0.34, 0.30), (0.68, 0.30), (0.80, 0.50), (0.96, 0.56), (0.96, 0.76),
                 (0.04, 0.76))  # fmt: skip
    canvas.patch((196, 226, 242), (0.36, 0.35), (0.49, 0.35), (0.49, 0.50), (0.30, 0.50))
    canvas.patch((196, 226, 242), (0.53, 0.35), (0.66, 0.35), (0.74, 0.50), (0.53, 0.50))
    for x in (0.26, 0.74):
        canvas.dot(x, 0.77, 0.11, 0.11, DARK)
        canvas.dot(x, 0.77, 0.05, 0.05, (206, 208, 212))


CLASSES: dict[str, Callable[[Canvas], None]] = {
    "dog": dog, "cat": cat, "person": person, "backpack": backpack, "stuffed animal": stuffed_animal,
    "candle": candle, "cartoon": cartoon, "sneaker": sneaker, "boot": boot, "sunglasses": sunglasses,
    "glasses": glasses, "toy": toy, "duck toy": duck_toy, "can": can, "clock": clock, "bowl": bowl,
    "teapot": teapot, "vase": vase, "ball": ball, "car": car,
}  # fmt: skip
LIVE = ("dog", "cat", "person")

# Places --------------------------------------------------------------------------------------------------------------

Place = Callable[[ImageDraw.ImageDraw, int, random.Random], None]


def _ground(sky: Colour, ground: Colour) -> Place:
    def paint(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
        horizon = side_px * rng.uniform(0.50, 0.62)
        draw.rectangle((0, 0, side_px, horizon), fill=_lit(sky, rng))
        draw.rectangle((0, horizon, side_px, side_px), fill=_lit(ground, rng))

    return paint


def _lit(colour: Colour, rng: random.Random) -> Colour:
    light = rng.uniform(0.93, 1.05)
    return (min(round(colour[0] * light), 255), min(round(colour[1] * light), 255), min(round(colour[2] * light), 255))


def snow(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """White ground, pale sky, falling flakes."""
    _ground((176, 200, 226), (246, 249, 253))(draw, side_px, rng)
    for _ in range(9):
        x, y, r = rng.random() * side_px, rng.random() * 0.5 * side_px, side_px * 0.018
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def beach(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Sky, a band of sea, sand."""
    _ground((150, 214, 246), (240, 214, 150))(draw, side_px, rng)
    draw.rectangle((0, side_px * 0.40, side_px, side_px * 0.56), fill=_lit((40, 142, 196), rng))


def jungle(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Deep green with big leaves."""
    draw.rectangle((0, 0, side_px, side_px), fill=_lit((22, 92, 48), rng))
    for _ in range(7):
        x, y = rng.random() * side_px, rng.random() * side_px
        width, height = side_px * rng.uniform(0.12, 0.22), side_px * rng.uniform(0.05, 0.09)
        draw.ellipse((x - width, y - height, x + width, y + height), fill=_lit((66, 150, 60), rng))


def wooden_floor(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A wall above boards."""
    _ground((232, 220, 204), (176, 118, 66))(draw, side_px, rng)
    for step in range(4):
        y = side_px * (0.68 + 0.09 * step)
        draw.line((0, y, side_px, y), fill=(126, 80, 42), width=max(side_px // 64, 1))


def mountain(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A snow-topped mountain behind a meadow."""
    _ground((166, 208, 240), (120, 176, 84))(draw, side_px, rng)
    peak = side_px * rng.uniform(0.3, 0.7)
    for half, foot, colour in ((0.55, 0.6, (112, 112, 130)), (0.14, 0.19, (248, 250, 252))):
        left, right = peak - half * side_px, peak + half * side_px
        draw.polygon([(left, side_px * foot), (peak, side_px * 0.05), (right, side_px * foot)], fill=colour)


def water(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Blue water with light ripples all over."""
    draw.rectangle((0, 0, side_px, side_px), fill=_lit((46, 128, 200), rng))
    for _ in range(6):
        x, y = rng.random() * side_px, rng.random() * side_px
        draw.line((x, y, x + side_px * 0.24, y), fill=(142, 202, 240), width=max(side_px // 40, 1))


def city(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Towers with lit windows behind a street."""
    _ground((246, 196, 150), (98, 100, 108))(draw, side_px, rng)
    for step in range(5):
        top = side_px * rng.uniform(0.08, 0.32)
        left = side_px * 0.2 * step
        draw.rectangle((left, top, left + side_px * 0.16, side_px * 0.58), fill=_lit((88, 92, 116), rng))
        draw.rectangle((left + side_px * 0.05, top + side_px * 0.06, left + side_px * 0.10, top + side_px * 0.12),
                       fill=(255, 226, 120))  # fmt: skip


def rug(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A purple rug on a pale floor."""
    draw.rectangle((0, 0, side_px, side_px), fill=_lit((226, 216, 206), rng))
    draw.ellipse((side_px * 0.02, side_px * 0.46, side_px * 0.98, side_px * 0.98), fill=_lit((128, 66, 156), rng))


CONTEXTS: dict[str, tuple[str, Place]] = {
    "snow": ("in the snow", snow),
    "beach": ("on the beach", beach),
    "jungle": ("in the jungle", jungle),
    "wooden floor": ("on top of a wooden floor", wooden_floor),
    "mountain": ("with a mountain in the background", mountain),
    "water": ("floating on top of water", water),
    "city": ("with a city in the background", city),
    "rug": ("on top of a purple rug", rug),
    "grass": ("on green grass", _ground((170, 216, 246), (96, 178, 72))),
    "white": ("on a white background", _ground((246, 246, 246), (236, 236, 238))),
}

# Painting ------------------------------------------------------------------------------------------------------------


def random_scene(rng: random.Random) -> Scene:
    """Return a scene drawn evenly from the world."""
    class_word = rng.choice(list(CLASSES))
    return Scene(
        class_word=class_word,
        colour=rng.choice(list(COLOURS)),
        pattern=rng.choice(PATTERNS) if rng.random() < 0.6 else "plain",
        context=rng.choice(list(CONTEXTS)),
        hat=rng.choice(("red", "blue", "yellow", "black")) if class_word in LIVE and rng.random() < 0.2 else None,
    )


def training_caption(scene: Scene, rng: random.Random) -> str:
    """Return the scene's caption, or one that leaves some of it unsaid, as people's prompts do."""
    place = CONTEXTS[scene.context][0]
    kind = rng.random()
    if kind < 0.6:
        return scene.caption
    if kind < 0.75:
        return f"photo of {scene.class_word}"
    if kind < 0.85:
        return f"a {scene.class_word} {place}"
    if kind < 0.95:
        return f"a {scene.colour} {scene.class_word} {place}"
    return f"a photo of a {scene.class_word}"


def render(scene: Scene, size_px: int, rng: random.Random) -> Image.Image:
    """Paint the scene as an RGB picture of size_px x size_px, in a pose, place and light drawn from `rng`."""
    thing = CLASSES[scene.class_word]
    return compose(thing, lambda mask: fill(mask, scene, rng), scene.context, size_px, rng, scene.hat)


def compose(
    thing: Callable[[Canvas], None],
    paint: Callable[[Image.Image], Image.Image],
    context: str,
    size_px: int,
    rng: random.Random,
    hat: str | None = None,
) -> Image.Image:
    """Paint a thing, coloured by `paint` from its mask, somewhere in a context."""
    side_px = size_px * SUPERSAMPLING
    picture = Image.new("RGB", (side_px, side_px))
    CONTEXTS[context][1](ImageDraw.Draw(picture), side_px, rng)
    canvas = Canvas(side_px)
    thing(canvas)
    if hat:
        canvas.patch(COLOURS[hat], (0.30, 0.20), (0.38, 0.16), (0.40, 0.0), (0.60, 0.0), (0.62, 0.16), (0.70, 0.20))
    body = paint(canvas.mask)
    mask = canvas.mask
    draw, mask_draw = ImageDraw.Draw(body), ImageDraw.Draw(mask)
    for detail in canvas.details:
        detail(draw, canvas.placed)
        # It has the one method that details call.
        detail(_Opaque(mask_draw), canvas.placed)  # type: ignore[arg-type]
    scale = rng.uniform(0.68, 0.92)
    angle = math.radians(rng.uniform(-10, 10))
    flip = -1 if rng.random() < 0.5 else 1
    centre_x, centre_y = 0.5 + rng.uniform(-0.10, 0.10), 0.55 + rng.uniform(-0.06, 0.06)
    matrix = _pose(side_px, scale, angle, flip, centre_x, centre_y)
    body = body.transform((side_px, side_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    mask = mask.transform((side_px, side_px), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    picture.paste(body, (0, 0), mask)
    light = rng.uniform(0.90, 1.04)
    return picture.point(lambda value: min(round(value * light), 255)).reduce(SUPERSAMPLING)


class _Opaque:
    """A drawing whose every colour is full, so that details show outside the body too."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def polygon(self, points: list[Point], fill: Colour) -> None:
        self._draw.polygon(points, fill=255)


def _pose(
    side_px: int, scale: float, angle: float, flip: int, centre_x: float, centre_y: float
) -> tuple[float, float, float, float, float, float]:
    """Return the affine map from picture to drawing, as Pillow wants it."""
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    x, y, half = centre_x * side_px, centre_y * side_px, side_px / 2
    return (flip * cos, flip * sin, half - flip * (cos * x + sin * y), -sin, cos, half + sin * x - cos * y)


def fill(mask: Image.Image, scene: Scene, rng: random.Random) -> Image.Image:
    """Return a layer in the scene's colour and pattern."""
    colour = COLOURS[scene.colour]
    layer = Image.new("RGB", mask.size, colour)
    second = DARK if sum(colour) > 380 else LIGHT
    draw, side_px = ImageDraw.Draw(layer), mask.size[0]
    if scene.pattern == "striped":
        for step in range(6):
            y = side_px * (step + 0.3) / 6
            draw.rectangle((0, y, side_px, y + side_px * 0.06), fill=second)
    elif scene.pattern == "spotted":
        for row in range(6):
            for column in range(6):
                x, y, r = (column + 0.5 * (row % 2) + 0.25) / 6, (row + 0.5) / 6, 0.038
                box = tuple(side_px * value for value in (x - r, y - r, x + r, y + r))
                draw.ellipse(box, fill=second)
    elif scene.pattern == "checkered":
        for row in range(7):
            for column in range(row % 2, 7, 2):
                box = tuple(side_px * value / 7 for value in (column, row, column + 1, row + 1))
                draw.rectangle(box, fill=second)
    return layer
