"""A test picture that is like none of its seven turned and mirrored forms: the letter F."""

import numpy as np
from PIL import Image

# How a camera stores an upright picture so that this orientation tag turns it upright again.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def letter() -> Image.Image:
    """Return a black F on white, 96 wide and 128 high."""
    image = Image.new("RGB", (96, 128), "white")
    for box in ((16, 16, 32, 112), (32, 16, 80, 32), (32, 56, 64, 72)):
        image.paste("black", box)
    return image


def is_upright_letter(image: Image.Image) -> bool:
    """Return whether this is the letter as it was, but for what a lossy format changes."""
    if image.mode != "RGB" or image.size != letter().size:
        return False
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(letter(), dtype=int))
    return bool(difference.mean() < 8)
