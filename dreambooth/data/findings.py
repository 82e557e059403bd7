"""Findings about photos, measured on the crop that is trained, without any model.

`measure` examines one photo, `findings` all of a set. docs/photos.md says how often each finding is right, and what
cannot be found this way.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreambooth.data.focus import Focus, blurred, content_box, focused

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Plane = NDArray[np.float32]

Code = Literal[
    "small", "blurry", "dark", "duplicate", "backgrounds", "aspect", "bars", "filter", "compressed", "sideways", "note",
    "unreadable",
]  # fmt: skip
# Findings that need no action.
HARMLESS: tuple[Code, ...] = ("sideways", "note")

SMALL_SHARE = 0.9  # of the trained side: a tenth less is not seen
BLURRY_PX = 1.45  # spread of the sharpest edges, in trained pixels
FINE_PX, COARSE_PX = 1.0, 2.5
EDGE_QUANTILE = 0.25
DARK_BRIGHT = 85.0  # of 255: what the brightest twentieth of a dark photo does not reach
ODD_ASPECT = 2.0
DUPLICATE_CORRELATION = 0.88
SAME_BACKGROUND = 16.0
BACKGROUND_SHARE = 0.6
TONED_OFF, TONED_CHROMA = 2.2, 40.0
BLOCKINESS = 2.0
THUMB_PX = 32
MARGIN_PX = 3
SHIFTS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Finding:
    """A property of a photo that affects training; `other` is the photo it is compared with."""

    code: Code
    sentence: str
    other: str = ""


@dataclass(frozen=True)
class Measures:
    """Measurements of a photo; lengths in pixels of the trained crop, brightness in 0..255."""

    width: int
    height: int
    side_px: float
    edge_px: float
    bright: float
    chroma: float
    tint: float
    blockiness: float
    has_bars: bool
    thumb: "Plane"
    background: "Plane"


# One photo -----------------------------------------------------------------------------------------------------------


def measure(image: "Image.Image", focus: Focus, resolution_px: int = 512) -> Measures:
    """Return the measurements of an upright photo, cropped by this focus at this resolution."""
    import numpy as np

    side = focus.side(image.size)
    seen_px = max(min(resolution_px, round(side)), 16)
    view = focused(image, seen_px, focus)
    pixels = np.asarray(view, dtype=np.float32)
    grey = _grey(pixels)
    chroma = _chroma(pixels)
    box = content_box(image)
    left, top, right, bottom = focus.box(image.size)
    reaches_bars = left < box[0] - 1 or top < box[1] - 1 or right > box[2] + 1 or bottom > box[3] + 1
    return Measures(
        width=image.width,
        height=image.height,
        side_px=side,
        edge_px=edge_spread(view),
        bright=float(np.percentile(grey, 95)),
        chroma=float(np.percentile(np.linalg.norm(chroma, axis=-1), 99)),
        tint=_off_the_tint(grey, chroma),
        blockiness=_blockiness(image),
        has_bars=reaches_bars,
        thumb=_thumb(image),
        background=_background(view),
    )


def _grey(pixels: "Plane") -> "Plane":
    import numpy as np

    grey: Plane = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return grey


def _chroma(pixels: "Plane") -> "Plane":
    """Return the two chroma components of each pixel, as in JPEG."""
    import numpy as np

    grey = _grey(pixels)
    return np.stack([(pixels[..., 2] - grey) * 0.564, (pixels[..., 0] - grey) * 0.713], axis=-1).astype(np.float32)


def edge_spread(view: "Image.Image") -> float:
    """Return the width of the sharpest strong edges: the blur's standard deviation in pixels, in the worst direction.

    An edge blurred by s has at scale t a slope proportional to 1 / sqrt(s^2 + t^2); the slopes at two scales give s
    (Elder & Zucker 1998). Only the sharpest edges count, because an out-of-focus background is no defect.
    """
    import numpy as np
    from PIL import Image

    turned = view.rotate(45, Image.Resampling.BICUBIC)
    cut = round(min(view.size) * (1 - 2**-0.5) / 2)
    turned = turned.crop((cut, cut, view.width - cut, view.height - cut))
    return max(_spread_both_ways(_grey(np.asarray(picture, dtype=np.float32))) for picture in (view, turned))


def _spread_both_ways(grey: "Plane") -> float:
    import numpy as np

    spread = np.percentile(grey, 99) - np.percentile(grey, 1)
    normal = grey * (200 / max(float(spread), 40.0))
    fine, coarse = blurred(normal, FINE_PX), blurred(normal, COARSE_PX)
    return max(_spread_along(fine, coarse), _spread_along(fine.T, coarse.T))


def _spread_along(fine: "Plane", coarse: "Plane") -> float:
    import numpy as np

    slope, steep = np.abs(np.diff(coarse, axis=1)), np.abs(np.diff(fine, axis=1))
    inner = slope[:, 2:-2]
    is_edge = (inner >= slope[:, 1:-3]) & (inner > slope[:, 3:-1])
    strong = max(float(np.percentile(inner, 90)), 2.0)
    is_edge &= inner > strong
    if is_edge.sum() < 40:
        return 0.0
    steepest = np.max([steep[:, shift : shift + inner.shape[1]] for shift in range(5)], axis=0)
    ratio = steepest[is_edge] / inner[is_edge]
    squared = (COARSE_PX**2 - ratio**2 * FINE_PX**2) / np.maximum(ratio**2 - 1, 1e-3)
    spreads = np.sqrt(np.clip(squared, 0, 400))
    return float(np.quantile(spreads, EDGE_QUANTILE))


def _off_the_tint(grey: "Plane", chroma: "Plane") -> float:
    """Return how far colours deviate from what brightness alone explains: near 0 for black and white, sepia, tints."""
    import numpy as np

    flat, levels = chroma.reshape(-1, 2), (grey.reshape(-1) // 16).astype(int)
    counts = np.maximum(np.bincount(levels, minlength=17), 1)
    usual = np.stack([np.bincount(levels, flat[:, one], minlength=17) / counts for one in (0, 1)], axis=1)
    return float(np.percentile(np.linalg.norm(flat - usual[levels], axis=1), 95))


def _blockiness(image: "Image.Image") -> float:
    """Return how much more brightness changes at the borders of 8 x 8 blocks than elsewhere (1: not at all)."""
    import numpy as np

    # At the original size: blocks are those of the file; the centre is enough.
    left, top = max((image.width - 1024) // 2, 0), max((image.height - 1024) // 2, 0)
    part = np.asarray(image.crop((left, top, min(left + 1024, image.width), min(top + 1024, image.height))))
    grey = _grey(part.astype(np.float32))
    return min(_jumps(grey), _jumps(grey.T))


def _jumps(grey: "Plane") -> float:
    import numpy as np

    if grey.shape[1] < 32:
        return 1.0
    # Curvature within three pixels, clipped so that real edges do not dominate.
    bend = np.minimum(np.abs(grey[:, 3:] - 3 * grey[:, 2:-1] + 3 * grey[:, 1:-2] - grey[:, :-3]), 24)
    columns = bend.mean(axis=0)
    phases = np.array([columns[phase::8].mean() for phase in range(8)])
    return float((phases.max() + 0.25) / (np.median(phases) + 0.25))


def _thumb(image: "Image.Image") -> "Plane":
    """Return a small grey thumbnail of the photo, whatever its aspect ratio."""
    import numpy as np
    from PIL import Image

    return np.asarray(image.convert("L").resize((THUMB_PX, THUMB_PX), Image.Resampling.BOX), dtype=np.float32)


def _background(view: "Image.Image") -> "Plane":
    """Return colour and texture of the cells around the centre of the crop."""
    import numpy as np

    small = np.asarray(view.resize((96, 96)), dtype=np.float32)
    grey, chroma = _grey(small), _chroma(small)
    rough = np.abs(grey - blurred(grey, 1.5))
    planes = np.stack([grey, chroma[..., 0] * 2, chroma[..., 1] * 2, rough * 3], axis=-1)
    cells = planes.reshape(6, 16, 6, 16, 4).mean(axis=(1, 3))
    around = np.ones((6, 6), dtype=bool)
    around[1:, 1:5] = False
    edge: Plane = cells[around]
    return edge


# All of a set --------------------------------------------------------------------------------------------------------


def likeness(one: Measures, other: Measures) -> float:
    """Return the highest correlation of two photos over small shifts, crops and mirroring; 1 for the same image."""
    return max(_held(_views(one.thumb), _middle(other.thumb)), _held(_views(other.thumb), _middle(one.thumb)))


def _held(views: "Plane", middle: "Plane") -> float:
    """Return the highest correlation of a photo's views with the centre of another."""
    return float((views @ middle).max())


def _middle(thumb: "Plane") -> "Plane":
    """Return the centre of a thumbnail, with which views are compared."""
    middle = _without_shading(thumb)[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    normal: Plane = _normal(middle.reshape(1, -1))[0]
    return normal


def _views(thumb: "Plane") -> "Plane":
    """Return the thumbnail's views: cropped, shifted or mirrored a little, one a row."""
    import numpy as np
    from PIL import Image

    side, views = THUMB_PX - 2 * MARGIN_PX, []
    upright = Image.fromarray(_without_shading(thumb))
    for source in (upright, upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        for inner in (side, 0.93 * side, 0.86 * side):
            first = (THUMB_PX - inner) / 2
            for top in (first + shift for shift in SHIFTS):
                for left in (first + shift for shift in SHIFTS):
                    box = (left, top, left + inner, top + inner)
                    views.append(np.asarray(source.resize((side, side), Image.Resampling.BILINEAR, box=box)).ravel())
    return _normal(np.stack(views))


def _without_shading(thumb: "Plane") -> "Plane":
    plane: Plane = thumb - blurred(thumb, 5.0)
    return plane


def _normal(rows: "Plane") -> "Plane":
    import numpy as np

    rows = rows - rows.mean(axis=1, keepdims=True)
    normal: Plane = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)
    return normal


def background_distance(one: Measures, other: Measures) -> float:
    """Return how different the cells around the centre of two photos are."""
    import numpy as np

    return float(np.linalg.norm(one.background - other.background, axis=1).mean())


def findings(measures: Mapping[str, Measures], resolution_px: int = 512) -> dict[str, list[Finding]]:
    """Return the findings of each photo of a set, by name, in the order of the set."""
    names = list(measures)
    found = {name: _alone(one, resolution_px) for name, one in measures.items()}
    for name, other in _duplicates(measures).items():
        sentence = f"It is nearly the same picture as photo {names.index(other) + 1}: keep the better one."
        found[name].append(Finding("duplicate", sentence, other))
    for name, like in _like_backgrounds(measures).items():
        sentence = f"Its background resembles that of {like} other photos: the model may learn it with the subject."
        found[name].append(Finding("backgrounds", sentence))
    return found


def _alone(one: Measures, resolution_px: int) -> list[Finding]:
    """Return the findings about a photo by itself."""
    found: list[Finding] = []
    side = round(one.side_px)
    if side < SMALL_SHARE * resolution_px:
        text = f"It is small: {side} pixels are enlarged to {resolution_px} and will look soft."
        found.append(Finding("small", text))
    if one.edge_px > BLURRY_PX:
        found.append(Finding("blurry", "It is blurry: even its sharpest edges are soft."))
    is_dark = one.bright < DARK_BRIGHT
    if is_dark:
        found.append(Finding("dark", "It is very dark: little of the subject can be seen."))
    if max(one.width, one.height) > ODD_ASPECT * min(one.width, one.height):
        how = "wide" if one.width > one.height else "tall"
        found.append(Finding("aspect", f"It is very {how}: the crop leaves out more than half of it."))
    if one.has_bars:
        found.append(Finding("bars", "It has flat bars at its edges inside the crop: they would be learned too."))
    if not is_dark and one.tint < TONED_OFF and one.chroma < TONED_CHROMA:
        found.append(Finding("filter", "It is black and white or toned: pictures may come out that way."))
    # In dark areas neither colours nor blocks can be judged.
    if not is_dark and one.blockiness > BLOCKINESS:
        found.append(Finding("compressed", "It is heavily compressed: the block artifacts would be learned too."))
    return found


def _duplicates(measures: Mapping[str, Measures]) -> dict[str, str]:
    """Return the photos that nearly duplicate an earlier one, with the first such photo."""
    names = list(measures)
    alike = _alike(tuple(one.thumb.tobytes() for one in measures.values()))
    firsts = ((name, next((other for other in range(number) if alike[number][other]), None))
              for number, name in enumerate(names))  # fmt: skip
    return {name: names[first] for name, first in firsts if first is not None}


@functools.lru_cache(maxsize=8)
def _alike(thumbs: tuple[bytes, ...]) -> "NDArray[np.bool_]":
    """Return which pairs of thumbnails are nearly the same image; cached, because crops do not change it."""
    import numpy as np

    if not thumbs:
        return np.zeros((0, 0), dtype=bool)
    planes = [np.frombuffer(thumb, dtype=np.float32).reshape(THUMB_PX, THUMB_PX) for thumb in thumbs]
    middles = np.stack([_middle(plane) for plane in planes], axis=1)
    # The views of one photo at a time: those of hundreds would take 400 kB each.
    held = np.stack([(_views(plane) @ middles).max(axis=0) for plane in planes])
    alike: NDArray[np.bool_] = np.maximum(held, held.T) > DUPLICATE_CORRELATION
    return alike


def _like_backgrounds(measures: Mapping[str, Measures]) -> dict[str, int]:
    """Return the photos whose background is like that of most others in the set, with the number of those."""
    import numpy as np

    names = list(measures)
    if len(names) < 3:
        return {}
    backgrounds = np.stack([one.background for one in measures.values()])
    # Each photo counts itself.
    like = [
        int((np.linalg.norm(backgrounds - one, axis=2).mean(axis=1) < SAME_BACKGROUND).sum()) - 1 for one in backgrounds
    ]
    most = max(BACKGROUND_SHARE * (len(names) - 1), 2)
    return {name: count for name, count in zip(names, like, strict=True) if count >= most}
