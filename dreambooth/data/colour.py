"""Conversion of a photo's colours to sRGB, which base models were trained on.

An embedded ICC profile has precedence over a PNG's gamma. A PNG's cICP chunk, which few programs write, is not
converted: if it names another space than sRGB and there is no profile, that is noted.
"""

import io
import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

BRIGHT_MEAN = 105.0  # of 255
MAX_PROFILE_BYTES = 4 * 1024**2
# So close to sRGB that a conversion would only add rounding.
SAME_LEVELS = 1
SRGB_GAMMA, SAME_GAMMA = 0.45455, 0.02
MODES_OF_SPACE = {"RGB": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}
UNREADABLE = "has a colour profile that cannot be read, so its colours are taken as sRGB"
OTHER_SPACE = "names a colour space (cICP) that is not converted, so its colours are taken as sRGB"
# cICP values of primaries and transfer function (ITU-T H.273) that are sRGB's, or nearly.
_SRGB_PRIMARIES, _SRGB_TRANSFERS = 1, (1, 6, 13)
_MAX_CHUNKS = 64


def in_srgb(image: "Image.Image", path: Path, notes: list[str]) -> "Image.Image":
    """Return a loaded 8-bit image in sRGB, changed in place where possible; notes say what was not converted."""
    profile = image.info.get("icc_profile")
    if not profile:
        return _by_png_chunks(image, path, notes)
    from PIL import ImageCms

    try:
        if len(profile) > MAX_PROFILE_BYTES:
            raise ValueError("too long")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return _converted(image, source)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError, RuntimeError):
        notes.append(UNREADABLE)
        return image


def _converted(image: "Image.Image", source: "object") -> "Image.Image":
    from PIL import Image, ImageCms

    # Pillow's types do not include the attributes of its profiles and transforms: hence the suppressions in this
    # module.
    space = str(source.profile.xcolor_space).strip()  # type: ignore[attr-defined]
    image, alpha = _without_alpha(image, space)
    if image.mode not in MODES_OF_SPACE.get(space, ()):
        raise ValueError(f"a profile for {space} in a picture of {image.mode}")
    transform = ImageCms.buildTransform(
        source, _srgb(), image.mode, "RGB",  # type: ignore[arg-type]
        ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    if image.mode == "RGB":
        if not _changes_colours(transform):
            return image if alpha is None else Image.merge("RGBA", (*image.split(), alpha))
        # In place: a second copy of 50 megapixels would take 200 MB more.
        ImageCms.applyTransform(image, transform, inPlace=True)
    else:
        image = ImageCms.applyTransform(image, transform) or image
    return image if alpha is None else Image.merge("RGBA", (*image.split(), alpha))


def _without_alpha(image: "Image.Image", space: str) -> "tuple[Image.Image, Image.Image | None]":
    """Return the image without its alpha channel, in the mode its profile is for, and the alpha channel."""
    if image.mode in ("RGB", "L", "CMYK") and "transparency" not in image.info:
        return image, None
    if image.mode == "P" and "transparency" not in image.info:
        return image.convert("RGB"), None
    if image.mode == "1":
        return image.convert("L"), None
    whole = image.convert("RGBA")
    return whole.convert("L" if space == "GRAY" else "RGB"), whole.getchannel("A")


@cache
def _srgb() -> "object":
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")


def _changes_colours(transform: "object") -> bool:
    """Return whether a transform from RGB does more than rounding, tested on colours from all over the cube."""
    from PIL import Image, ImageChops, ImageCms

    steps = range(0, 256, 15)
    cube = Image.frombytes("RGB", (len(steps) ** 2, len(steps)), bytes(
        level for red in steps for green in steps for blue in steps for level in (red, green, blue)
    ))  # fmt: skip
    moved = ImageCms.applyTransform(cube, transform)  # type: ignore[arg-type]
    assert moved is not None
    return max(high for _, high in ImageChops.difference(cube, moved).getextrema()) > SAME_LEVELS  # type: ignore[misc]


# PNG -----------------------------------------------------------------------------------------------------------------


def _by_png_chunks(image: "Image.Image", path: Path, notes: list[str]) -> "Image.Image":
    if image.format != "PNG":
        return image
    cicp = _cicp(path)
    if cicp is not None:
        if cicp[0] != _SRGB_PRIMARIES or cicp[1] not in _SRGB_TRANSFERS:
            notes.append(OTHER_SPACE)
        return image
    gamma = image.info.get("gamma")
    if "srgb" in image.info or not isinstance(gamma, float) or abs(gamma - SRGB_GAMMA) < SAME_GAMMA:
        return image
    if not 0.1 <= gamma <= 2:
        notes.append(UNREADABLE)
        return image
    return _with_gamma(image, gamma)


def _with_gamma(image: "Image.Image", gamma: float) -> "Image.Image":
    """Return the image in sRGB encoding, given the PNG gamma of its values."""
    if image.mode in ("P", "1", "PA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return image
    light = [(value / 255) ** (1 / gamma) for value in range(256)]
    encoded = [12.92 * one if one <= 0.0031308 else 1.055 * one ** (1 / 2.4) - 0.055 for one in light]
    table = [min(max(round(255 * one), 0), 255) for one in encoded]
    bands = len(image.getbands())
    has_alpha = image.mode in ("LA", "RGBA")
    tables = table * (bands - has_alpha) + list(range(256)) * has_alpha
    return image.point(tables)


def _cicp(path: Path) -> tuple[int, int] | None:
    """Return the colour primaries and transfer of a PNG's cICP chunk, which Pillow ignores; None without one."""
    with path.open("rb") as file:
        file.seek(8)
        for _ in range(_MAX_CHUNKS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if len(head) < 8 or kind in (b"IDAT", b"IEND"):
                return None
            if kind == b"cICP" and length == 4:
                content = file.read(4)
                return (content[0], content[1]) if len(content) == 4 else None
            file.seek(length + 4, 1)
    return None


def lightened(image: "Image.Image") -> "Image.Image":
    """Return a dark RGB image brightened, shadows most, so that its mean comes close to that of a typical photo."""
    from PIL import ImageStat

    mean = min(max(ImageStat.Stat(image.convert("L")).mean[0], 4.0), 250.0)
    gamma = min(max(math.log(BRIGHT_MEAN / 255) / math.log(mean / 255), 0.3), 1.0)
    return image.point([round(255 * (value / 255) ** gamma) for value in range(256)] * 3)
