"""More places for the 128 px world, painted in the style of `places`."""

import random

from PIL import ImageDraw

from dreambooth.starter.places import CONTEXTS, Place, ground_and_sky, lit


def desert(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Dunes under a hot sky with a sun."""
    ground_and_sky((250, 206, 150), (226, 164, 92))(draw, side_px, rng)
    x, r = side_px * rng.uniform(0.12, 0.88), side_px * 0.08
    draw.ellipse((x - r, side_px * 0.14 - r, x + r, side_px * 0.14 + r), fill=(255, 246, 200))
    for _ in range(3):
        x, y = rng.random() * side_px, side_px * rng.uniform(0.62, 0.74)
        draw.ellipse((x - 0.5 * side_px, y, x + 0.5 * side_px, y + 0.6 * side_px), fill=lit((214, 148, 80), rng))


def forest(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Dark firs in rows behind a mossy ground."""
    ground_and_sky((186, 214, 206), (92, 116, 62))(draw, side_px, rng)
    for step in range(6):
        x, top = side_px * (0.04 + 0.18 * step + rng.uniform(-0.04, 0.04)), side_px * rng.uniform(0.02, 0.20)
        green = lit((36, 84, 60), rng)
        for half, high in ((0.07, 0.0), (0.10, 0.14), (0.13, 0.28)):
            foot = top + side_px * (high + 0.20)
            points = [(x - half * side_px, foot), (x, top + high * side_px), (x + half * side_px, foot)]
            draw.polygon(points, fill=green)


def night(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A dark sky with stars and a moon above a dark field."""
    ground_and_sky((28, 34, 74), (34, 54, 52))(draw, side_px, rng)
    for _ in range(14):
        x, y, r = rng.random() * side_px, rng.random() * 0.5 * side_px, side_px * rng.uniform(0.006, 0.012)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 246, 214))
    x, r = side_px * rng.uniform(0.12, 0.88), side_px * 0.07
    draw.ellipse((x - r, side_px * 0.13 - r, x + r, side_px * 0.13 + r), fill=(244, 240, 210))


def kitchen(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """White tiles above a wooden worktop, a shelf with jars."""
    ground_and_sky((236, 240, 240), (190, 138, 90))(draw, side_px, rng)
    tile = side_px / rng.choice((6, 7, 8))
    for step in range(1, 9):
        at = step * tile
        draw.line((at, 0, at, 0.5 * side_px), fill=(208, 216, 218), width=max(side_px // 90, 1))
        draw.line((0, min(at, 0.5 * side_px), side_px, min(at, 0.5 * side_px)), fill=(208, 216, 218),
                  width=max(side_px // 90, 1))  # fmt: skip
    for step in range(5):
        left = side_px * (0.03 + 0.2 * step)
        colour = rng.choice([(200, 90, 70), (96, 140, 110), (226, 178, 80), (98, 122, 168)])
        draw.rectangle((left, side_px * 0.06, left + 0.12 * side_px, side_px * 0.2), fill=colour)
    draw.rectangle((0, side_px * 0.2, side_px, side_px * 0.23), fill=(150, 104, 66))


def brick_wall(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Rows of bricks above a gray pavement."""
    ground_and_sky((206, 190, 176), (150, 150, 154))(draw, side_px, rng)
    high, wide = side_px * 0.085, side_px * 0.2
    for row in range(6):
        for column in range(-1, 6):
            left, top = (column + 0.5 * (row % 2)) * wide, row * high
            box = (left, top, left + wide * 0.92, top + high * 0.84)
            draw.rectangle(box, fill=lit((176, 88, 68), rng))


def autumn_leaves(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """Fallen leaves in warm colours all over brown ground."""
    draw.rectangle((0, 0, side_px, side_px), fill=lit((112, 78, 48), rng))
    for _ in range(34):
        x, y, r = rng.random() * side_px, rng.random() * side_px, side_px * rng.uniform(0.04, 0.08)
        colour = rng.choice([(222, 120, 40), (204, 78, 40), (230, 176, 60), (168, 104, 48)])
        draw.ellipse((x - r, y - 0.6 * r, x + r, y + 0.6 * r), fill=lit(colour, rng))


def tiled_floor(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A plain wall above a floor of dark and pale tiles."""
    wall = rng.choice([(214, 226, 206), (226, 214, 226), (206, 220, 232)])
    ground_and_sky(wall, (228, 224, 216))(draw, side_px, rng)
    for row in range(5):
        top, bottom = side_px * (0.60 + 0.09 * row), side_px * (0.60 + 0.09 * (row + 1))
        for column in range(row % 2, 8, 2):
            draw.rectangle((side_px * column / 8, top, side_px * (column + 1) / 8, bottom), fill=(112, 118, 128))


def flower_meadow(draw: ImageDraw.ImageDraw, side_px: int, rng: random.Random) -> None:
    """A meadow with small flowers under a sky with clouds."""
    ground_and_sky((158, 206, 244), (112, 182, 80))(draw, side_px, rng)
    for _ in range(3):
        x, y = rng.random() * side_px, side_px * rng.uniform(0.06, 0.26)
        for shift, r in ((-0.07, 0.05), (0.0, 0.07), (0.08, 0.05)):
            draw.ellipse((x + (shift - r) * side_px, y - r * side_px * 0.7, x + (shift + r) * side_px,
                          y + r * side_px * 0.7), fill=(246, 248, 250))  # fmt: skip
    for _ in range(14):
        x, y, r = rng.random() * side_px, side_px * rng.uniform(0.66, 0.98), side_px * 0.018
        draw.ellipse((x - r, y - r, x + r, y + r), fill=rng.choice([(250, 250, 246), (236, 96, 130), (250, 214, 60)]))


MORE_CONTEXTS: dict[str, tuple[str, Place]] = {
    **CONTEXTS,
    "desert": ("in the desert", desert),
    "forest": ("with a forest in the background", forest),
    "night": ("at night under the moon", night),
    "kitchen": ("in a kitchen", kitchen),
    "brick wall": ("in front of a brick wall", brick_wall),
    "autumn leaves": ("on top of autumn leaves", autumn_leaves),
    "tiled floor": ("on top of a tiled floor", tiled_floor),
    "flower meadow": ("in a meadow with flowers", flower_meadow),
}
