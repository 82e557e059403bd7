"""The building blocks of the 128 px world's pictures: label maps of all things, emblems, backdrops and textures.

All of it is painted once, by Pillow; pictures are then composed from it, many at a time (`rendering`).
"""

import functools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from dreambooth import rng
from dreambooth.starter.more_places import MORE_CONTEXTS
from dreambooth.starter.more_things import DRESSED, DRESSED_NECK_Y, MORE_CLASSES
from dreambooth.starter.scenes import put_on
from dreambooth.starter.things import Canvas, Colour, Point, ellipse

if TYPE_CHECKING:
    from torch import Tensor

GRID = 440
MARGIN = 20
UNIT = GRID - 2 * MARGIN
# A thing's label map holds 0 outside, 1 to FIRST_DETAIL - 1 for the pieces of its body, and one number a detail.
FIRST_DETAIL = 24
NUM_LABELS = 48
MAX_RIM = 16
SMALL_DETAIL = 0.012
EMBLEMS = ("star", "heart", "cross", "moon", "circle", "triangle", "square", "flower")
EMBLEM_GRID = 128
BACKDROPS_PER_PLACE = 48
# A backdrop is a little larger than the picture, which shows a part of it.
BACKDROP_MARGIN = 1 / 8
TEXTURE_SIDE = 256
NUM_TEXTURES = 6


class LabelCanvas(Canvas):
    """Draws pieces and details as label numbers."""

    def __init__(self) -> None:
        super().__init__(GRID)
        self.colours: dict[int, Colour] = {}
        self.areas: dict[int, float] = {}
        self.centres: dict[int, Point] = {}
        self._pieces = 0
        self._queue: list[tuple[list[Point], int]] = []

    def oval(self, x: float, y: float, rx: float, ry: float) -> None:
        """Add a piece of the body."""
        self.shape(*ellipse(x, y, rx, ry))

    def shape(self, *points: Point) -> None:
        """Add a piece of the body."""
        self._pieces += 1
        self._draw.polygon(self.placed(points), fill=self._pieces)

    def dot(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        """Add a detail."""
        self.patch(colour, *ellipse(x, y, rx, ry))

    def patch(self, colour: Colour, *points: Point) -> None:
        """Add a detail."""
        label = FIRST_DETAIL + len(self._queue)
        self.colours[label] = colour
        self.centres[label] = (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
        turns = zip(points, [*points[1:], points[0]], strict=True)
        self.areas[label] = abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in turns)) / 2
        self._queue.append((self.placed(points), label))

    @property
    def small(self) -> list[int]:
        """Return the labels of the small details: eyes, beaks, buttons."""
        return [label for label, area in self.areas.items() if area < SMALL_DETAIL]

    def placed(self, points: Sequence[Point]) -> list[Point]:
        """Return these points in grid coordinates."""
        return [(MARGIN + x * UNIT, MARGIN + y * UNIT) for x, y in points]

    def finished(self) -> Image.Image:
        """Return the label map with the details on top."""
        for points, label in self._queue:
            self._draw.polygon(points, fill=label)
        return self.mask


@dataclass(frozen=True)
class Atlas:
    """Label maps and distances of all things, (things, grid, grid) uint8, and the other maps by name."""

    names: dict[str, int]
    labels: "Tensor"
    rims: "Tensor"
    colours: "list[dict[int, Colour]]"
    small: "list[list[int]]"
    emblems: "Tensor"
    backdrops: "Tensor"
    textures: "Tensor"

    def to(self, device: str) -> "Atlas":
        """Return the atlas with its maps on another device."""
        maps = (self.labels, self.rims, self.emblems, self.backdrops, self.textures)
        labels, rims, emblems, backdrops, textures = (one.to(device) for one in maps)
        return Atlas(self.names, labels, rims, self.colours, self.small, emblems, backdrops, textures)


def thing_name(class_word: str, accessory: str | None) -> str:
    """Return the atlas's name for a thing and what it wears."""
    return f"{class_word}+{accessory.split()[1]}" if accessory else class_word


@functools.cache
def atlas(size_px: int, seed: int) -> Atlas:
    """Return everything that pictures of this size are composed of."""
    import torch

    names: dict[str, int] = {}
    labels, colours, small = [], [], []
    wearing = [(word, worn) for word in DRESSED for worn in ("red hat", "rainbow scarf")]
    for class_word, accessory in [*((word, None) for word in MORE_CLASSES), *wearing]:
        canvas = LabelCanvas()
        MORE_CLASSES[class_word](canvas)
        if accessory:
            put_on(canvas, accessory, DRESSED_NECK_Y[class_word])
        names[thing_name(class_word, accessory)] = len(names)
        labels.append(_tensor(canvas.finished()))
        colours.append(canvas.colours)
        small.append(canvas.small)
    emblems = torch.stack([_tensor(_emblem_mask(name)) for name in EMBLEMS])
    things = torch.stack(labels)
    return Atlas(
        names, things, _distances(things), colours, small, emblems,
        backdrops(size_px, seed), torch.stack([_tensor(_texture(kind, seed)) for kind in range(NUM_TEXTURES)]),
    )  # fmt: skip


def _tensor(image: Image.Image) -> "Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.array(image))


def _distances(labels: "Tensor") -> "Tensor":
    """Return how many grid points each place is from its thing, 255 if it is more than MAX_RIM or inside.

    The margin is wider than that, so that nothing wraps around the edge.
    """
    import numpy as np
    import torch

    mask = labels.numpy() > 0
    result = np.full(mask.shape, 255, np.uint8)
    for distance in range(1, MAX_RIM + 1):
        wider = mask | np.roll(mask, 1, 1) | np.roll(mask, -1, 1)
        grown = wider | np.roll(wider, 1, 2) | np.roll(wider, -1, 2)
        result[grown & ~mask] = distance
        mask = grown
    return torch.from_numpy(result)


def _emblem_mask(name: str) -> Image.Image:
    mask = Image.new("L", (EMBLEM_GRID, EMBLEM_GRID))
    draw, half = ImageDraw.Draw(mask), EMBLEM_GRID / 2

    def placed(points: list[Point]) -> list[Point]:
        return [(half + x * half, half + y * half) for x, y in points]

    if name == "flower":
        for step in range(5):
            angle = 2 * math.pi * step / 5
            draw.polygon(placed(ellipse(0.58 * math.cos(angle), 0.58 * math.sin(angle), 0.4, 0.4)), fill=1)
        draw.polygon(placed(ellipse(0, 0, 0.4, 0.4)), fill=1)
        return mask
    draw.polygon(placed(emblem_points(name)), fill=1)
    if name == "moon":
        draw.polygon(placed(ellipse(0.45, -0.12, 0.78, 0.78)), fill=0)
    return mask


def emblem_points(name: str) -> list[Point]:
    """Return an emblem's corners around (0, 0), one unit in radius; the first three are those of `subjects`."""
    from dreambooth.starter.subjects import emblem

    if name in ("star", "heart", "cross"):
        return emblem(name, 0.0, 0.0, 1.0)  # type: ignore[arg-type]
    if name == "triangle":
        return [(0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)]
    if name == "square":
        return [(-0.75, -0.75), (0.75, -0.75), (0.75, 0.75), (-0.75, 0.75)]
    return ellipse(0, 0, 0.85, 0.85)


def backdrops(size_px: int, seed: int) -> "Tensor":
    """Return (places x BACKDROPS_PER_PLACE, side, side, 3) uint8, place by place; side is size_px plus the margin."""
    import torch

    side_px = 2 * round(size_px * (1 + BACKDROP_MARGIN))
    found = []
    for place, (_, paint) in enumerate(MORE_CONTEXTS.values()):
        for number in range(BACKDROPS_PER_PLACE):
            painter = random.Random(rng.derived_seed(seed, "starter", 30, place, number))
            picture = Image.new("RGB", (side_px, side_px))
            paint(ImageDraw.Draw(picture), side_px, painter)
            found.append(_tensor(picture.reduce(2)))
    return torch.stack(found)


def _texture(kind: int, seed: int) -> Image.Image:
    """Return a tileable map around 128: coarse and fine grain, vertical and horizontal streaks, weave, blotches."""
    import numpy as np

    draws = np.random.default_rng(rng.derived_seed(seed, "starter", 31, kind))
    spread_x, spread_y = ((2, 2), (1, 1), (1.2, 14), (14, 1.2), (1, 1), (10, 10))[kind]
    frequencies = np.fft.fftfreq(TEXTURE_SIDE)
    soft = np.exp(-2 * np.pi**2 * ((spread_x * frequencies[None]) ** 2 + (spread_y * frequencies[:, None]) ** 2))
    values = np.fft.ifft2(np.fft.fft2(draws.standard_normal((TEXTURE_SIDE, TEXTURE_SIDE))) * soft).real
    if kind == 4:
        x, y = np.meshgrid(np.arange(TEXTURE_SIDE), np.arange(TEXTURE_SIDE))
        values = values + 0.4 * np.sin(np.pi * x / 8) * np.sin(np.pi * y / 8)
    values = 128 + 48 * values / values.std()
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
