"""The things of the painted world, drawn large and plain in unit coordinates: the classes of the DreamBooth paper's
prompt list (Ruiz et al. 2023), a person, and a few more.
"""

import math
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, Colour] = {
    "red": (214, 48, 49), "orange": (240, 138, 36), "yellow": (246, 211, 62), "green": (58, 168, 84),
    "blue": (52, 101, 214), "purple": (142, 76, 186), "pink": (243, 142, 180), "brown": (134, 87, 51),
    "black": (38, 38, 44), "white": (244, 244, 240), "gray": (138, 142, 150),
}  # fmt: skip


class Canvas:
    """Draws in unit coordinates, y downward, into one layer that a mask cuts out."""

    def __init__(self, side_px: int) -> None:
        self.side_px = side_px
        self.mask = Image.new("L", (side_px, side_px))
        self._draw = ImageDraw.Draw(self.mask)
        self.details: list[Callable[[ImageDraw.ImageDraw, Callable[[Sequence[Point]], list[Point]]], None]] = []

    def oval(self, x: float, y: float, rx: float, ry: float) -> None:
        """Add an ellipse around (x, y) to the body."""
        self._draw.polygon(self.placed(ellipse(x, y, rx, ry)), fill=255)

    def shape(self, *points: Point) -> None:
        """Add a polygon to the body."""
        self._draw.polygon(self.placed(points), fill=255)

    def hole(self, x: float, y: float, rx: float, ry: float) -> None:
        """Take an ellipse out of the body."""
        self._draw.polygon(self.placed(ellipse(x, y, rx, ry)), fill=0)

    def dot(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Paint an ellipse over the finished body."""
        self.details.append(lambda draw, place: draw.polygon(place(ellipse(x, y, rx, ry)), fill=colour))

    def patch(self, colour: Colour, *points: Point) -> None:
        """Paint a polygon over the finished body."""
        self.details.append(lambda draw, place: draw.polygon(place(points), fill=colour))

    def placed(self, points: Sequence[Point]) -> list[Point]:
        """Return these points in pixels."""
        return [(x * self.side_px, y * self.side_px) for x, y in points]


def ellipse(x: float, y: float, rx: float, ry: float) -> list[Point]:
    """Return 28 points of an ellipse around (x, y)."""
    return [
        (x + rx * math.cos(angle), y + ry * math.sin(angle))
        for angle in (2 * math.pi * step / 28 for step in range(28))
    ]


DARK: Colour = (30, 28, 32)
LIGHT: Colour = (250, 250, 246)
SKIN: Colour = (236, 188, 152)


def _face(canvas: Canvas, x: float, y: float, spread: float) -> None:
    for side in (-1, 1):
        canvas.dot(x + side * spread, y, 0.040, 0.050, DARK)


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
    canvas.dot(0.50, 0.25, 0.145, 0.165, SKIN)
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
    canvas.shape((0.27, 0.44), (0.73, 0.44), (0.73, 0.95), (0.27, 0.95))
    canvas.dot(0.50, 0.44, 0.23, 0.06, LIGHT)
    canvas.dot(0.50, 0.23, 0.10, 0.18, (255, 176, 40))
    canvas.dot(0.50, 0.28, 0.05, 0.10, (255, 244, 160))


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
    canvas.shape((0.06, 0.28), (0.20, 0.34), (0.38, 0.24), (0.60, 0.46), (0.88, 0.54), (0.97, 0.72), (0.05, 0.74))
    canvas.patch(LIGHT, (0.03, 0.71), (0.98, 0.71), (0.95, 0.84), (0.06, 0.84))
    for step in range(2):
        x, y = 0.40 + 0.13 * step, 0.36 + 0.09 * step
        canvas.patch(LIGHT, (x, y), (x + 0.05, y - 0.03), (x + 0.09, y + 0.13), (x + 0.03, y + 0.16))


def boot(canvas: Canvas) -> None:
    """A high boot with a dark sole."""
    canvas.shape((0.28, 0.10), (0.58, 0.10), (0.58, 0.58), (0.84, 0.66), (0.88, 0.82), (0.26, 0.82))
    canvas.patch(DARK, (0.24, 0.80), (0.90, 0.80), (0.90, 0.90), (0.24, 0.90))
    canvas.patch(LIGHT, (0.26, 0.10), (0.60, 0.10), (0.60, 0.19), (0.26, 0.19))


def sunglasses(canvas: Canvas) -> None:
    """Sunglasses: a broad coloured frame around dark lenses."""
    _frame(canvas)
    for x in (0.26, 0.74):
        canvas.dot(x, 0.51, 0.135, 0.125, DARK)


def glasses(canvas: Canvas) -> None:
    """Glasses: a broad coloured frame around clear, pale lenses."""
    _frame(canvas)
    for x in (0.26, 0.74):
        canvas.dot(x, 0.51, 0.135, 0.125, (206, 232, 246))


def _frame(canvas: Canvas) -> None:
    for side in (-1, 1):
        canvas.oval(0.50 + side * 0.24, 0.51, 0.25, 0.25)
        canvas.shape((0.50 + side * 0.40, 0.30), (0.50 + side * 0.50, 0.22), (0.50 + side * 0.49, 0.48))


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
    canvas.shape((0.26, 0.12), (0.74, 0.12), (0.74, 0.90), (0.26, 0.90))
    canvas.oval(0.50, 0.90, 0.24, 0.06)
    canvas.dot(0.50, 0.13, 0.24, 0.075, (208, 212, 218))
    canvas.dot(0.50, 0.13, 0.09, 0.03, DARK)


def clock(canvas: Canvas) -> None:
    """A round clock with two bells and a pale face."""
    canvas.oval(0.50, 0.54, 0.42, 0.42)
    canvas.oval(0.26, 0.12, 0.10, 0.09)
    canvas.oval(0.74, 0.12, 0.10, 0.09)
    canvas.shape((0.46, 0.02), (0.54, 0.02), (0.54, 0.16), (0.46, 0.16))
    canvas.dot(0.50, 0.54, 0.23, 0.23, LIGHT)
    canvas.patch(DARK, (0.47, 0.36), (0.53, 0.36), (0.53, 0.57), (0.47, 0.57))
    canvas.patch(DARK, (0.47, 0.51), (0.65, 0.51), (0.65, 0.57), (0.47, 0.57))


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
    canvas.oval(0.50, 0.64, 0.31, 0.30)
    canvas.shape((0.38, 0.14), (0.62, 0.14), (0.62, 0.50), (0.38, 0.50))
    canvas.shape((0.28, 0.06), (0.72, 0.06), (0.62, 0.18), (0.38, 0.18))
    canvas.shape((0.34, 0.86), (0.66, 0.86), (0.70, 0.97), (0.30, 0.97))


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
NECK_Y = {"dog": 0.53, "cat": 0.55, "person": 0.41}
