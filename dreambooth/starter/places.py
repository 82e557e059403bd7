"""The places of the painted world: contexts of the DreamBooth paper's prompt list that a few plain shapes can show."""

import random
from collections.abc import Callable

from PIL import ImageDraw

from dreambooth.starter.things import Colour

Place = Callable[[ImageDraw.ImageDraw, int, random.Random], None]


def ground_and_sky(sky: Colour, ground: Colour) -> Place:
    """Return a place of two areas that meet at a horizon."""

    def paint(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
        horizon = side_px * rng.uniform(0.50, 0.62)
        draw.rectangle((0, 0, side_px, horizon), fill=lit(sky, rng))
        draw.rectangle((0, horizon, side_px, side_px), fill=lit(ground, rng))

    return paint


def lit(colour: Colour, rng: random.Random) -> Colour:
    """Return the colour a little darker or brighter."""
    light = rng.uniform(0.93, 1.05)
    return (min(round(colour[0] * light), 255), min(round(colour[1] * light), 255), min(round(colour[2] * light), 255))


def snow(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """White ground, pale sky, falling flakes."""
    ground_and_sky((176, 200, 226), (246, 249, 253))(draw, side_px, rng)
    for _ in range(6):
        x, y, r = rng.random() * side_px, rng.random() * 0.5 * side_px, side_px * 0.03
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def beach(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Sky, a band of sea, sand."""
    ground_and_sky((150, 214, 246), (240, 214, 150))(draw, side_px, rng)
    draw.rectangle((0, side_px * 0.40, side_px, side_px * 0.56), fill=lit((40, 142, 196), rng))


def jungle(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Deep green with big leaves."""
    draw.rectangle((0, 0, side_px, side_px), fill=lit((22, 92, 48), rng))
    for _ in range(5):
        x, y = rng.random() * side_px, rng.random() * side_px
        width, height = side_px * rng.uniform(0.16, 0.24), side_px * rng.uniform(0.08, 0.12)
        draw.ellipse((x - width, y - height, x + width, y + height), fill=lit((66, 150, 60), rng))


def wooden_floor(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A wall above boards."""
    ground_and_sky((232, 220, 204), (176, 118, 66))(draw, side_px, rng)
    for step in range(4):
        y = side_px * (0.68 + 0.09 * step)
        draw.line((0, y, side_px, y), fill=(126, 80, 42), width=max(side_px // 64, 1))


def mountain(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A snow-topped mountain behind a meadow."""
    ground_and_sky((166, 208, 240), (120, 176, 84))(draw, side_px, rng)
    peak = side_px * rng.uniform(0.3, 0.7)
    for half, foot, colour in ((0.55, 0.6, (112, 112, 130)), (0.14, 0.19, (248, 250, 252))):
        left, right = peak - half * side_px, peak + half * side_px
        draw.polygon([(left, side_px * foot), (peak, side_px * 0.05), (right, side_px * foot)], fill=colour)


def water(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Blue water with light ripples all over."""
    draw.rectangle((0, 0, side_px, side_px), fill=lit((46, 128, 200), rng))
    for _ in range(5):
        x, y = rng.random() * side_px, rng.random() * side_px
        draw.line((x, y, x + side_px * 0.3, y), fill=(142, 202, 240), width=max(side_px // 24, 1))


def city(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Towers with lit windows behind a street."""
    ground_and_sky((246, 196, 150), (98, 100, 108))(draw, side_px, rng)
    for step in range(4):
        top = side_px * rng.uniform(0.06, 0.26)
        left = side_px * (0.01 + 0.26 * step)
        draw.rectangle((left, top, left + side_px * 0.20, side_px * 0.58), fill=lit((88, 92, 116), rng))
        draw.rectangle((left + side_px * 0.05, top + side_px * 0.06, left + side_px * 0.14, top + side_px * 0.15),
                       fill=(255, 226, 120))  # fmt: skip


def rug(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A purple rug on a pale floor."""
    draw.rectangle((0, 0, side_px, side_px), fill=lit((226, 216, 206), rng))
    draw.ellipse((side_px * 0.02, side_px * 0.46, side_px * 0.98, side_px * 0.98), fill=lit((128, 66, 156), rng))


def sunflowers(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Grass under a sky, with a sunflower to each side."""
    ground_and_sky((170, 216, 246), (96, 178, 72))(draw, side_px, rng)
    for x in (0.10, 0.90):
        y = rng.uniform(0.55, 0.75)
        for r, colour in ((0.10, (250, 208, 40)), (0.045, (96, 60, 30))):
            draw.ellipse([side_px * value for value in (x - r, y - r, x + r, y + r)], fill=colour)


def pink_fabric(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Pink cloth all over, with two soft folds."""
    draw.rectangle((0, 0, side_px, side_px), fill=lit((246, 172, 200), rng))
    for _ in range(2):
        x = side_px * rng.uniform(-0.2, 0.9)
        corners = [(x, 0), (x + 0.10 * side_px, 0), (x + 0.35 * side_px, side_px), (x + 0.25 * side_px, side_px)]
        draw.polygon(corners, fill=(224, 138, 174))


def cobblestones(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Rows of round gray stones all over."""
    draw.rectangle((0, 0, side_px, side_px), fill=lit((92, 90, 92), rng))
    for row in range(4):
        for column in range(-1, 4):
            x, y = (column + 0.5 * (row % 2) + 0.04) / 3.5, (row + 0.06) / 4
            box = [side_px * value for value in (x, y, x + 0.26, y + 0.22)]
            draw.ellipse(box, fill=lit((160, 156, 152), rng))


def blue_house(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A blue house with a red roof behind a lawn."""
    ground_and_sky((214, 230, 240), (128, 184, 92))(draw, side_px, rng)
    middle = side_px * rng.uniform(0.4, 0.6)
    left, right = middle - 0.42 * side_px, middle + 0.42 * side_px
    draw.rectangle((left, side_px * 0.24, right, side_px * 0.58), fill=lit((60, 112, 206), rng))
    roof = [(left - 0.04 * side_px, side_px * 0.25), (middle, side_px * 0.02), (right + 0.04 * side_px, side_px * 0.25)]
    draw.polygon(roof, fill=(176, 62, 52))


def wheat_field(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Golden wheat with upright stalks under a sky."""
    ground_and_sky((150, 204, 244), (228, 184, 72))(draw, side_px, rng)
    for step in range(5):
        x = side_px * (0.08 + 0.21 * step)
        draw.line((x, side_px * 0.58, x, side_px), fill=(190, 138, 40), width=max(side_px // 20, 1))


def dirt_road(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A brown road that widens toward the viewer, between meadows."""
    ground_and_sky((170, 212, 240), (126, 170, 80))(draw, side_px, rng)
    road = [(0.42, 0.50), (0.58, 0.50), (1.05, 1.0), (-0.05, 1.0)]
    draw.polygon([(x * side_px, y * side_px) for x, y in road], fill=lit((152, 108, 72), rng))


CONTEXTS: dict[str, tuple[str, Place]] = {
    "snow": ("in the snow", snow),
    "beach": ("on the beach", beach),
    "jungle": ("in the jungle", jungle),
    "wooden floor": ("on top of a wooden floor", wooden_floor),
    "mountain": ("with a mountain in the background", mountain),
    "water": ("floating on top of water", water),
    "city": ("with a city in the background", city),
    "rug": ("on top of a purple rug", rug),
    "sunflowers": ("on top of green grass with sunflowers around it", sunflowers),
    "pink fabric": ("on top of pink fabric", pink_fabric),
    "cobblestones": ("on a cobblestone street", cobblestones),
    "blue house": ("with a blue house in the background", blue_house),
    "wheat field": ("with a wheat field in the background", wheat_field),
    "dirt road": ("on top of a dirt road", dirt_road),
    "white": ("on a white background", ground_and_sky((246, 246, 246), (236, 236, 238))),
}
