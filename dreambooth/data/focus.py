"""The crop of each photo that is trained: centre and zoom, stored in one file beside the photos.

A folder without that file is cropped as the settings say. If the file names a photo, every step sees exactly this crop
of it. What matters in a photo is estimated from its colours and sharpness alone; no weights are needed.
"""

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth.data.photos import largest_part, resized
from dreambooth.durable import write_json
from dreambooth.errors import PhotoError, TextFileError
from dreambooth.formats.text_files import printable, read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    Plane = NDArray[np.float32]

FOCUS_FILE = "focus.json"
MAX_FOCUS_BYTES = 1024**2
MAX_ZOOM = 8.0
# The proposal is made on a small copy: what matters in a photo is visible at low resolution.
GUESS_PX = 96
BAR_PX = 256
MIN_BAR_SHARE = 0.03
FLAT_LEVELS = 3.0
STEP_LEVELS = 12.0
FRAME_SHARE = 0.08
CELL_LEVELS = 24
NEARLY_ALL = 0.99


@dataclass(frozen=True)
class Focus:
    """A square crop of a photo: its centre in 0..1 of width and height, and its zoom (1: the largest square)."""

    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    def side(self, size: tuple[int, int]) -> float:
        """Return the side of the crop in pixels in a photo of this size; at least one."""
        return max(min(size) / self.zoom, 1.0)

    def box(self, size: tuple[int, int], shape: float = 1.0) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom in pixels; a centre too close to the edge is moved inwards.

        With a `shape` the box has that ratio of width to height, around the same centre and at the same zoom.
        """
        width, height = (max(side / self.zoom, 1.0) for side in largest_part(size, shape))
        left = min(max(self.x * size[0] - width / 2, 0.0), size[0] - width)
        top = min(max(self.y * size[1] - height / 2, 0.0), size[1] - height)
        return left, top, left + width, top + height

    def inside(self, size: tuple[int, int]) -> "Focus":
        """Return the same crop, named by its actual centre."""
        left, top, right, bottom = self.box(size)
        return Focus((left + right) / 2 / size[0], (top + bottom) / 2 / size[1], self.zoom)

    def checked(self) -> "Focus":
        """Return this focus, or raise PhotoError if it does not describe a crop."""
        numbers = (self.x, self.y, self.zoom)
        # Written so that it is False for NaN, and does not overflow for an integer of 400 digits.
        right = all(isinstance(number, int | float) and abs(number) <= MAX_ZOOM for number in numbers)
        if not right or not (0 <= self.x <= 1 and 0 <= self.y <= 1 and 1 <= self.zoom <= MAX_ZOOM):
            raise PhotoError(
                "That is not a place in a photo.", f"x and y must be 0 to 1, zoom 1 to {MAX_ZOOM:g}.",
                "Move the crop again.",
            )  # fmt: skip
        return Focus(float(self.x), float(self.y), float(self.zoom))


def focused(image: "Image.Image", resolution_px: int, focus: Focus) -> "Image.Image":
    """Return the focused crop of an upright photo, `resolution_px` on each side."""
    return resized(image, (resolution_px, resolution_px), focus.box(image.size))


# The file ------------------------------------------------------------------------------------------------------------


def read_focus(folder: Path) -> dict[str, Focus]:
    """Return the focus of each photo named in the folder's file; raises PhotoError when it cannot be read."""
    path = folder / FOCUS_FILE
    try:
        return parse_focus(read_text(path, MAX_FOCUS_BYTES)) if path.is_file() else {}
    except (OSError, PhotoError, TextFileError) as error:
        raise unreadable_focus(str(path), error) from None


def parse_focus(text: str) -> dict[str, Focus]:
    """Return the focus of each photo named in the text of a focus file; raises PhotoError when it is invalid."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        return {str(name): _parsed(value) for name, value in values.items()}
    except (ValueError, RecursionError) as error:
        raise PhotoError("The crops cannot be read.", str(error)[:200]) from None


def unreadable_focus(name: str, error: Exception) -> PhotoError:
    """Return the error for an unreadable focus file of this name."""
    why = error.why if isinstance(error, PhotoError | TextFileError) else str(error)[:200]
    return PhotoError(
        f"{printable(name)} cannot be read.",
        why,
        "Delete it to crop according to the settings, or set the crops again.",
    )


def focus_of_photos(focuses: Mapping[str, Focus], names: Iterable[str]) -> tuple[dict[str, Focus], list[str]]:
    """Return the focus of each of these photos that has one, and the names in `focuses` without a photo.

    Names are compared in one Unicode form: a name copied from a Mac has other bytes.
    """
    by_form = {unicodedata.normalize("NFC", name): name for name in focuses}
    used = {name: by_form.get(unicodedata.normalize("NFC", name)) for name in names}
    found = {name: focuses[written] for name, written in used.items() if written is not None}
    return found, [name for name in by_form.values() if name not in used.values()]


def chosen_focuses(folder: Path, names: Iterable[str]) -> tuple[dict[str, Focus], list[str]]:
    """Return the focus of each of these photos that the folder's file names, and what is wrong with the file."""
    try:
        chosen, missing = focus_of_photos(read_focus(folder), names)
    except PhotoError as error:
        return {}, [str(error)]
    return chosen, [f'{FOCUS_FILE} has a crop for "{printable(one)}", which does not exist.' for one in missing]


def _parsed(value: Any) -> Focus:
    if not isinstance(value, dict) or set(value) != {"x", "y", "zoom"}:
        raise ValueError("each photo needs x, y and zoom")
    return Focus(**value).checked()


def keep_focus(folder: Path, focuses: Mapping[str, Focus]) -> None:
    """Write the folder's focus file."""
    write_json(folder / FOCUS_FILE, {name: asdict(focus.checked()) for name, focus in sorted(focuses.items())})


# The guess -----------------------------------------------------------------------------------------------------------


def proposed_focus(image: "Image.Image") -> Focus:
    """Return the largest square around what seems to matter in an upright photo, without bars at its edges."""
    content = content_box(image)
    left, top, right, bottom = content
    part = image.resize(_small_size((right - left, bottom - top)), box=content)
    across, down = _window(saliency(part))
    width, height = right - left, bottom - top
    side = min(width, height)
    x = (left + across * (width - side) + side / 2) / image.width
    y = (top + down * (height - side) + side / 2) / image.height
    return Focus(x, y, max(min(image.size) / side, 1.0)).inside(image.size)


def _small_size(size: tuple[float, float]) -> tuple[int, int]:
    scale = GUESS_PX / max(size)
    return max(round(size[0] * scale), 8), max(round(size[1] * scale), 8)


def saliency(small: "Image.Image") -> "Plane":
    """Return how much each pixel of a small image seems to matter, in 0..1.

    High where the image is unlike its frame in colour (Wei et al. 2012: backgrounds touch the edges), sharp, and not at
    the very edge.
    """
    import numpy as np

    pixels = np.asarray(small.convert("RGB"), dtype=np.float32)
    grey = pixels.mean(axis=2)
    opponent = np.stack([grey, pixels[..., 0] - pixels[..., 1], pixels[..., 2] - grey], axis=2)
    unlike = blurred(_distance_to_frame(opponent), 2.0)
    detail = blurred(np.abs(grey - blurred(grey, 1.0)), 4.0)
    height, width = grey.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    middle = np.exp(-(((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2) / (2 * 0.38**2))
    return _scaled((0.65 * _scaled(unlike) + 0.35 * _scaled(detail)) * middle)


def _distance_to_frame(opponent: "Plane") -> "Plane":
    """Return each pixel's distance to the nearest of the main colours of the image's frame."""
    import numpy as np

    height, width, _ = opponent.shape
    band = max(round(min(height, width) * FRAME_SHARE), 1)
    sides = (opponent[:band], opponent[-band:], opponent[:, :band], opponent[:, -band:])
    frame = np.concatenate([side.reshape(-1, 3) for side in sides])
    # Cells instead of clustering: the same result for the same image on every machine.
    cells, counts = np.unique((frame // CELL_LEVELS).astype(np.int32), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    num_usual = max(int(np.searchsorted(np.cumsum(counts[order]), 0.8 * len(frame))), 1)
    distances = np.full(opponent.shape[:2], np.inf, dtype=np.float32)
    for centre in (cells[order[:num_usual]][:64] + 0.5) * CELL_LEVELS:
        distances = np.minimum(distances, np.linalg.norm(opponent - centre, axis=2).astype(np.float32))
    return distances


def _window(map_: "Plane") -> tuple[float, float]:
    """Return where along the longer side (0..1 across and down) the largest square covers most of the map."""
    import numpy as np

    height, width = map_.shape
    side = min(height, width)
    strong = np.maximum(map_ - map_.mean(), 0)
    profile = strong.sum(axis=0) if width > height else strong.sum(axis=1)
    room = max(height, width) - side
    if not room:
        return 0.5, 0.5
    total = np.concatenate([[0.0], np.cumsum(profile)])
    inside = total[side:] - total[: room + 1]
    best = np.flatnonzero(inside >= inside.max() * NEARLY_ALL)
    if width > height:
        # In the middle of the positions that cover almost as much as possible, so that nothing is cut at an edge.
        return float(best.mean()) / room, 0.5
    # Heads are at the top, and are missed more than feet.
    return 0.5, float(best[0] + 0.25 * (best[-1] - best[0])) / room


def blurred(plane: "Plane", sigma: float) -> "Plane":
    """Return the plane blurred by a Gaussian of this standard deviation in pixels."""
    import numpy as np

    radius = max(math.ceil(3 * sigma), 1)
    taps = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)).astype(np.float32)
    taps /= taps.sum()
    for _ in range(2):  # down, then across
        padded = np.pad(plane, ((radius, radius), (0, 0)), mode="edge")
        total = np.zeros_like(plane)
        for shift, tap in enumerate(taps):
            total += tap * padded[shift : shift + len(plane)]
        plane = total.T
    return plane


def _scaled(plane: "Plane") -> "Plane":
    low, high = float(plane.min()), float(plane.max())
    scaled: Plane = (plane - low) / max(high - low, 1e-6)
    return scaled


# Bars ----------------------------------------------------------------------------------------------------------------


def content_box(image: "Image.Image") -> tuple[float, float, float, float]:
    """Return the photo's box in pixels without flat bars along its edges; all of it if there are none."""
    import numpy as np

    small = image.resize((BAR_PX, BAR_PX)).convert("RGB")
    pixels = np.asarray(small, dtype=np.float32)
    top, bottom = _bars(pixels)
    left, right = _bars(pixels.swapaxes(0, 1))
    if top + bottom > BAR_PX * 0.7 or left + right > BAR_PX * 0.7:
        return 0.0, 0.0, float(image.width), float(image.height)
    scale_x, scale_y = image.width / BAR_PX, image.height / BAR_PX
    return left * scale_x, top * scale_y, image.width - right * scale_x, image.height - bottom * scale_y


def _bars(rows: "NDArray[np.float32]") -> tuple[int, int]:
    """Return the heights of the bars at both ends; a single bar, or two unlike colours, may be ground, sky or wall."""
    import numpy as np

    first, last = _bar(rows), _bar(rows[::-1])
    alike = bool(np.abs(rows[0].mean(axis=0) - rows[-1].mean(axis=0)).max() < STEP_LEVELS)
    return (first, last) if first and last and alike else (0, 0)


def _bar(rows: "NDArray[np.float32]") -> int:
    """Return how many of the first rows are one flat colour that ends abruptly across most of the image."""
    import numpy as np

    flat = np.abs(rows - rows[0].mean(axis=0)).max(axis=(1, 2)) < 4 * FLAT_LEVELS
    flat &= rows.std(axis=1).max(axis=1) < FLAT_LEVELS
    num_rows = int(np.argmin(flat)) if not flat.all() else len(rows)
    if num_rows < MIN_BAR_SHARE * len(rows) or num_rows > 0.45 * len(rows):
        return 0
    # The copy is softer than the photo: the border row is half bar, half image.
    beyond = rows[min(num_rows + 2, len(rows) - 1)]
    differs = np.abs(beyond - rows[0].mean(axis=0)).max(axis=1) > STEP_LEVELS
    return num_rows + 1 if float(differs.mean()) > 0.7 else 0
