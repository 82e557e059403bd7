"""Photos that nobody took: a thing before a cluttered place, lit, a little noisy; and what can be wrong with photos."""

import io
import random
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

WIDTH_PX, HEIGHT_PX = 680, 510
THING_PX = 360


@cache
def made_photo(number: int, background: int | None = None, width_px: int = WIDTH_PX) -> Image.Image:
    """Return photo `number`; those of one `background` have the same place behind another thing in another pose."""
    rng = random.Random(f"photo {number}")
    size = (width_px, HEIGHT_PX)
    picture = place(number if background is None else 1000 + background, size)
    thing, mask = _thing(rng)
    left = (width_px - THING_PX) // 2 + rng.randint(-70, 70)
    top = HEIGHT_PX - THING_PX - rng.randint(20, 120)
    picture.paste(thing, (left, top), mask)
    return _as_taken(picture, number, rng)


def place(number: int, size: tuple[int, int]) -> Image.Image:
    """Return a place full of things of all sizes before and behind each other, as most photos of rooms and streets are.

    Occluding leaves with a power law of sizes have the statistics of natural pictures (Lee, Mumford & Huang 2001).
    """
    rng = random.Random(f"place {number}")
    picture = Image.new("RGB", size, _colour(rng, 128))
    draw = ImageDraw.Draw(picture)
    light = rng.randint(70, 180)
    for _ in range(240):
        radius = 9 / max(rng.random(), 0.03) ** 0.9
        x, y = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        stretch = rng.uniform(0.4, 1)
        box = (x - radius, y - radius * stretch, x + radius, y + radius * stretch)
        (draw.rectangle if rng.random() < 0.4 else draw.ellipse)(box, fill=_colour(rng, light))
    grain = np.random.default_rng(number).normal(128, 34, (size[1], size[0])).clip(0, 255).astype(np.uint8)
    rough = Image.fromarray(grain).filter(ImageFilter.GaussianBlur(rng.choice((0.6, 1.5, 3))))
    return ImageChops.overlay(picture, rough.convert("RGB"))


def _colour(rng: random.Random, light: float) -> tuple[int, ...]:
    """Return a colour as things mostly have: little of it is pure."""
    grey, warm, fresh = rng.gauss(light, 45), rng.gauss(8, 22), rng.gauss(0, 12)
    return tuple(min(max(round(value), 6), 248) for value in (grey + warm, grey + fresh, grey - warm))


def _thing(rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """Return a figure of a body, a head and limbs in two colours, and its mask."""
    size = (THING_PX, THING_PX)
    mask, layer = Image.new("L", size), Image.new("RGB", size, tuple(rng.randint(20, 240) for _ in range(3)))
    outline, paint = ImageDraw.Draw(mask), ImageDraw.Draw(layer)
    outline.ellipse((90, 140, 270, 340), fill=255)
    outline.ellipse((120, 30, 240, 170), fill=255)
    for _ in range(rng.randint(2, 5)):
        x, y = rng.choice((60, 100, 260, 300)), rng.randint(150, 330)
        outline.line((180, 240, x, y), fill=255, width=rng.randint(14, 40))
    second, step = tuple(rng.randint(20, 240) for _ in range(3)), rng.randint(22, 60)
    for y in range(0, THING_PX, step):
        paint.rectangle((0, y, THING_PX, y + step // 3), fill=second)
    for x in (150, 190):
        paint.ellipse((x, 80, x + 18, 98), fill=(15, 15, 18))
    turn = rng.uniform(-25, 25)
    return layer.rotate(turn, Image.Resampling.BICUBIC), mask.rotate(turn, Image.Resampling.BICUBIC)


def _as_taken(picture: Image.Image, number: int, rng: random.Random) -> Image.Image:
    """Return the picture as a camera has it: light that falls off, its own softness, noise, JPEG of good quality."""
    noise = np.random.default_rng(number).normal(0, rng.uniform(1, 3), (picture.height, picture.width, 1))
    noise = noise.astype(np.float32)
    slope = np.linspace(rng.uniform(0.85, 1.05), rng.uniform(0.85, 1.05), picture.width, dtype=np.float32)[
        None, :, None
    ]
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8))), dtype=np.float32)
    pixels = (soft * slope + noise).clip(0, 255).astype(np.uint8)
    return jpeg(Image.fromarray(pixels), rng.randint(88, 96))


# What can be wrong ---------------------------------------------------------------------------------------------------


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return the picture through a JPEG of this quality."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def trained_scale(image: Image.Image) -> float:
    """Return how many pixels of the photo one trained pixel is, at 512."""
    return max(min(image.size) / 512, 1.0)


def out_of_focus(image: Image.Image, spread_px: float) -> Image.Image:
    """Return the photo blurred by this standard deviation in trained pixels."""
    return image.filter(ImageFilter.GaussianBlur(spread_px * trained_scale(image)))


def shaken(image: Image.Image, length_px: float, degrees: float) -> Image.Image:
    """Return the photo moved along a line of this length in trained pixels while it was taken."""
    count = max(round(length_px * trained_scale(image)), 2)
    turned = np.asarray(image.rotate(degrees, Image.Resampling.BICUBIC), dtype=np.float32)
    moved = np.mean([np.roll(turned, shift - count // 2, axis=1) for shift in range(count)], axis=0)
    back = Image.fromarray(moved.astype(np.uint8)).rotate(-degrees, Image.Resampling.BICUBIC)
    margin = round(min(image.size) * 0.17) if degrees else count
    return back.crop((margin, margin, image.width - margin, image.height - margin))


def darkened(image: Image.Image, factor: float) -> Image.Image:
    """Return the photo with this share of its light."""
    return image.point(lambda value: round(value * factor))


def toned(image: Image.Image, black: str, white: str) -> Image.Image:
    """Return the photo in tones between two colours."""
    return ImageOps.colorize(image.convert("L"), black, white)


def with_bars(image: Image.Image, share: float, *, sideways: bool, colour: str) -> Image.Image:
    """Return the photo with flat bars of this share of its side along two edges."""
    x, y = (round(image.width * share), 0) if sideways else (0, round(image.height * share))
    framed = Image.new("RGB", (image.width + 2 * x, image.height + 2 * y), colour)
    framed.paste(image, (x, y))
    return framed


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    """Return the photo without these shares of its sides."""
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def each(change: Callable[[Image.Image, int], Image.Image], count: int, first: int = 0) -> Iterator[Image.Image]:
    """Yield photos `first` to `first + count - 1`, changed."""
    for number in range(first, first + count):
        yield change(made_photo(number), number)
