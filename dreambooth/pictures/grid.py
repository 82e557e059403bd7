"""The samples of a run in one image: a row for each step, a column for each seed.

Steps and samples are in natural order, the base model first; missing ones are left blank.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.durable import new_file
from dreambooth.errors import RunFolderError
from dreambooth.formats.natural_order import in_natural_order
from dreambooth.records.workspace import RunFolder

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

GAP_PX = 4
# Browsers and viewers have trouble with more; images are scaled down together until they fit.
MAX_PIXELS = 32_000_000
MAX_SIDE_PX = 16_384
MIN_FONT_PX, MAX_FONT_PX = 12, 28


def write_sample_grid(run_path: Path, out: Path) -> Path:
    """Write the grid of a run as a PNG, atomically, and return its path.

    For a folder as `out` it is `grid.png` in it, and another suffix gets `.png` appended. Raises RunFolderError for a
    run without samples.
    """
    image = sample_grid(RunFolder(run_path))
    if out.is_dir():
        out = out / "grid.png"
    elif out.suffix.lower() != ".png":
        out = out.with_name(f"{out.name}.png")
    with new_file(out) as temporary:
        image.save(temporary, format="PNG")
    return out


def sample_grid(run: RunFolder) -> "Image.Image":
    """Return the grid; raises RunFolderError for a run without samples."""
    found = run.samples()
    # The same name is the same seed, so that a gap in one row does not shift the columns.
    columns = in_natural_order({path.name for files in found.values() for path in files if _size_of(path) is not None})
    if not columns:
        raise RunFolderError(
            f"{run.path} has no sample pictures.",
            "A run makes them at every save when it has a --save_sample_prompt.",
            "Name the folder of a run that has some, the one with its step folders in it.",
        )
    by_name = {step: {path.name: path for path in files} for step, files in found.items()}
    return picture_grid({step_label(step): [files.get(name) for name in columns] for step, files in by_name.items()})


def picture_grid(rows: Mapping[str, Sequence[Path | None]]) -> "Image.Image":
    """Return one image of all these, a labelled row each; at least one must be readable, others are left blank."""
    from PIL import Image, ImageDraw

    sizes = {path: size for row in rows.values() for path in row if path and (size := _size_of(path)) is not None}
    num_columns = max(map(len, rows.values()))
    width, height = (max(sides) for sides in zip(*sizes.values(), strict=True))
    scale = _scale(width * num_columns, height * len(rows))
    cell = (max(round(width * scale), 1), max(round(height * scale), 1))

    font = _font(cell[1])
    bounds = [_text_size(label, font) for label in rows]
    label_width = max(bound[0] for bound in bounds) + 2 * GAP_PX
    row_height = max(cell[1], *(bound[1] for bound in bounds)) + GAP_PX
    grid = Image.new("RGB", (label_width + num_columns * (cell[0] + GAP_PX), len(rows) * row_height + GAP_PX), "white")
    draw = ImageDraw.Draw(grid)
    for row, (label, files) in enumerate(rows.items()):
        top = GAP_PX + row * row_height
        _write_label(draw, label, font, (GAP_PX, top, row_height - GAP_PX))
        for column, path in enumerate(files):
            if path is not None and path in sizes and (picture := _picture(path, scale)) is not None:
                left = label_width + column * (cell[0] + GAP_PX)
                place = left + (cell[0] - picture.width) // 2, top + (row_height - GAP_PX - picture.height) // 2
                grid.paste(picture, place)
    return grid


def step_label(step: int) -> str:
    """Return the label of a step's row."""
    return f"step {step}" if step else "step 0\nbase model"


def _scale(width_px: int, height_px: int) -> float:
    return min(1.0, math.sqrt(MAX_PIXELS / (width_px * height_px)), MAX_SIDE_PX / width_px, MAX_SIDE_PX / height_px)


def _size_of(path: Path) -> tuple[int, int] | None:
    """Return an image's size from its header, None for a file that is not an image."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _picture(path: Path, scale: float) -> "Image.Image | None":
    """Return an image at its size in the grid, None for a damaged one."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):
        return None
    if scale == 1:
        return picture
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.LANCZOS)


# Labels --------------------------------------------------------------------------------------------------------------


def _font(cell_height_px: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    from PIL import ImageFont

    return ImageFont.load_default(min(max(cell_height_px // 16, MIN_FONT_PX), MAX_FONT_PX))


def _text_size(text: str, font: "ImageFont.FreeTypeFont | ImageFont.ImageFont") -> tuple[int, int]:
    from PIL import Image, ImageDraw

    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font)
    return math.ceil(right - min(left, 0)), math.ceil(bottom - min(top, 0))


def _write_label(
    draw: "ImageDraw.ImageDraw",
    text: str,
    font: "ImageFont.FreeTypeFont | ImageFont.ImageFont",
    place: tuple[int, int, int],
) -> None:
    """Write the label centred in its row; `place` is left, top and height."""
    left, top, height = place
    draw.multiline_text((left, top + (height - _text_size(text, font)[1]) // 2), text, "black", font)
