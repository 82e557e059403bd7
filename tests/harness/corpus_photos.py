"""Hostile and odd photo files, made by code from fixed seeds: the corpus of 600, and as many of HEIC as have a meaning.

The families and their counts: truncations 180, bit flips 180, orientations 24, colour models 30, bombs 16, wrong
contents 60, sizes 40, names 40, duplicates 20, plain good ones 10. HEIC comes on top: 20 cut, 20 damaged, 8 turned.
"""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from PIL import Image

from tests.harness.letters import STORED, letter

Verdict = Literal["read", "refused", "either"]
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True)
class Case:
    """One file: its family, name and bytes, and whether it must be read, must be refused, or may be either."""

    family: str
    name: str
    content: bytes
    verdict: Verdict


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture as a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def textured(width: int = 300, height: int = 200, seed: int = 7) -> Image.Image:
    """Return a picture with detail everywhere, so that no part of its file is without meaning."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = rng.integers(-20, 21, (height, width, 3), dtype=np.int16)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def corpus() -> Iterator[Case]:
    """Yield the 600 files and those of HEIC."""
    yield from truncated()
    yield from flipped()
    yield from oriented()
    yield from colour_models()
    yield from bombs()
    yield from wrong_contents()
    yield from sizes()
    yield from names()
    yield from duplicates()
    for number in range(10):
        yield Case("good", f"good{number}.jpg", encoded(textured(320, 240, 100 + number), "JPEG", quality=92), "read")
    yield from heic()


# Damage --------------------------------------------------------------------------------------------------------------


def truncated() -> Iterator[Case]:
    """Yield each format cut at 60 lengths; what is missing is never only the end mark."""
    for suffix, kind in FORMATS.items():
        whole = encoded(textured(), kind)
        for number in range(60):
            content = whole[: len(whole) * number // 61]
            yield Case("truncated", f"cut-{number}.{suffix}", content, "refused")


def flipped() -> Iterator[Case]:
    """Yield each format with 8 bits flipped, 60 times; a JPEG or WebP may still decode, to another picture."""
    rng = random.Random(11)
    for suffix, kind in FORMATS.items():
        whole = encoded(textured(), kind)
        for number in range(60):
            verdict: Verdict = "refused" if suffix == "png" else "either"
            yield Case("flipped", f"flip-{number}.{suffix}", with_flips(whole, rng), verdict)


def with_flips(content: bytes, rng: random.Random, num_bits: int = 8) -> bytes:
    """Return the bytes with so many bits flipped anywhere."""
    damaged = bytearray(content)
    for _ in range(num_bits):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


# Orientation and colour ----------------------------------------------------------------------------------------------


def oriented() -> Iterator[Case]:
    """Yield each format in each of the eight orientations of EXIF."""
    for suffix, kind in FORMATS.items():
        for orientation in range(1, 9):
            content = encoded(turned(orientation), kind, exif=exif_with_gps(orientation), quality=95)
            yield Case("orientation", f"turn-{orientation}.{suffix}", content, "read")


def turned(orientation: int) -> Image.Image:
    """Return the letter as a camera stores it under this orientation."""
    transpose = STORED[orientation]
    return letter() if transpose is None else letter().transpose(transpose)


def exif_with_gps(orientation: int) -> bytes:
    """Return EXIF with an orientation, a maker, an owner and a place."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "CANARY Maker"
    exif[0xA430] = "CANARY Owner"
    exif.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.6), 3: "E", 4: (2.0, 17.0, 40.2), 29: "CANARY:GPS"})
    return exif.tobytes()


def colour_models() -> Iterator[Case]:
    """Yield 30 files of other colour models, depths and kinds of transparency."""
    rgb = textured(120, 80)
    alpha = Image.linear_gradient("L").resize(rgb.size)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    la = Image.merge("LA", (rgb.convert("L"), alpha))
    deep = Image.fromarray(np.linspace(0, 65535, 120 * 80).astype(np.uint16).reshape(80, 120))
    ycck = encoded(rgb.convert("CMYK"), "JPEG").replace(b"\xff\xc0", b"\xff\xc0", 1)
    files: list[tuple[str, bytes]] = [
        *((f"bilevel.{s}", encoded(rgb.convert("1"), k)) for s, k in (("png", "PNG"), ("jpg", "JPEG"))),
        *((f"grey.{s}", encoded(rgb.convert("L"), k)) for s, k in FORMATS.items()),
        ("grey-alpha.png", encoded(la, "PNG")),
        ("grey-alpha.webp", encoded(la.convert("RGBA"), "WEBP")),
        *((f"palette-{n}.png", encoded(rgb.quantize(n), "PNG")) for n in (2, 4, 16, 256)),
        *((f"palette-alpha-{n}.png", encoded(rgb.quantize(16), "PNG", transparency=n)) for n in (0, 15)),
        ("palette-alphas.png", encoded(rgb.quantize(4), "PNG", transparency=bytes([0, 80, 160, 255]))),
        ("colour-key.png", encoded(rgb, "PNG", transparency=(1, 2, 3))),
        ("grey-key.png", encoded(rgb.convert("L"), "PNG", transparency=7)),
        ("rgba.png", encoded(rgba, "PNG")),
        ("rgba.webp", encoded(rgba, "WEBP", lossless=True)),
        ("rgba-lossy.webp", encoded(rgba, "WEBP")),
        ("sixteen.png", encoded(deep, "PNG")),
        *((f"cmyk-{q}.jpg", encoded(rgb.convert("CMYK"), "JPEG", quality=q)) for q in (30, 95)),
        ("ycck.jpg", ycck.replace(b"Adobe\x00d\x00\x00\x00\x00\x00", b"Adobe\x00d\x00\x00\x00\x00\x02")),
        ("ycbcr-444.jpg", encoded(rgb, "JPEG", subsampling=0)),
        ("ycbcr-420.jpg", encoded(rgb, "JPEG", subsampling=2)),
        ("progressive.jpg", encoded(rgb, "JPEG", progressive=True)),
        ("interlaced.png", interlaced_png()),
        ("deep-rgb.png", sixteen_bit_rgb_png()),
        ("profile.png", encoded(rgb, "PNG", icc_profile=bytes(range(256)) * 4)),
        ("profile.jpg", encoded(rgb, "JPEG", icc_profile=bytes(range(256)) * 4)),
    ]
    assert len(files) == 30, len(files)
    yield from (Case("colour", name, content, "read") for name, content in files)


def png(header: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of this header and these chunks, checksums right."""
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def interlaced_png() -> bytes:
    """Return a PNG in Adam7's seven passes, which Pillow reads and cannot write."""
    pixels = np.asarray(textured(24, 16))
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for y, x, down, across in passes for row in pixels[y::down, x::across]]
    return png(struct.pack(">IIBBBBB", 24, 16, 8, 2, 0, 0, 1), (b"IDAT", zlib.compress(b"".join(rows))))


def sixteen_bit_rgb_png() -> bytes:
    """Return a PNG of three channels of 16 bits."""
    rows = b"".join(b"\0" + bytes(range(6)) * 20 for _ in range(10))
    return png(struct.pack(">IIBBBBB", 20, 10, 16, 2, 0, 0, 0), (b"IDAT", zlib.compress(rows)))


# Bombs ---------------------------------------------------------------------------------------------------------------


def bombs() -> Iterator[Case]:
    """Yield 16 small files that would unpack to something enormous."""
    for side in (9_000, 13_000, 20_000, 60_000):
        for colour, name in ((2, "rgb"), (3, "palette")):
            header = struct.pack(">IIBBBBB", side, side, 8, colour, 0, 0, 0)
            body = zlib.compress(bytes(side * 30), 9)
            content = png(header, (b"PLTE", bytes(768)), (b"IDAT", body))
            yield Case("bomb", f"{name}-{side}.png", content, "refused")
    jpeg, webp = encoded(textured(), "JPEG"), encoded(textured(), "WEBP", exif=exif_with_gps(1))
    for side in (9_000, 65_500):
        yield Case("bomb", f"sides-{side}.jpg", with_jpeg_size(jpeg, side), "refused")
    canvas = webp.index(b"VP8X") + 12
    wide = webp[:canvas] + (16_382).to_bytes(3, "little") * 2 + webp[canvas + 6 :]
    yield Case("bomb", "canvas.webp", wide, "refused")
    much = zlib.compress(bytes(100 * 10**6), 9)
    rows = (b"IDAT", zlib.compress(b"\0" + bytes(3)))
    one = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    yield Case("bomb", "text.png", png(one, (b"zTXt", b"Comment\0\0" + much), rows), "either")
    yield Case("bomb", "words.png", png(one, (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + much), rows), "either")
    yield Case("bomb", "profile.png", png(one, (b"iCCP", b"icc\0\0" + much), rows), "either")
    yield Case("bomb", "frames.png", many_framed_png(10_000), "read")
    yield Case("bomb", "frames.webp", many_framed_webp(10_000), "read")


def with_jpeg_size(content: bytes, side: int) -> bytes:
    """Return the JPEG with another size in its frame header."""
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", side, side) + content[start + 4 :]


def many_framed_png(num_frames: int) -> bytes:
    """Return an animated PNG of so many frames of one pixel."""
    pixel = zlib.compress(b"\0\xc0\x40\x40")
    chunks = [(b"acTL", struct.pack(">II", num_frames, 0))]
    number = 0
    for frame in range(num_frames):
        chunks.append((b"fcTL", struct.pack(">IIIIIHHBB", number, 1, 1, 0, 0, 1, 100, 0, 0)))
        chunks.append((b"IDAT", pixel) if frame == 0 else (b"fdAT", struct.pack(">I", number + 1) + pixel))
        number += 1 if frame == 0 else 2
    return png(struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), *chunks)


def many_framed_webp(num_frames: int) -> bytes:
    """Return an animated WebP whose frame comes so many times."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=50)
    start = content.index(b"ANMF")
    frame = content[start : start + 8 + struct.unpack("<I", content[start + 4 : start + 8])[0]]
    body = content[8:start] + frame * num_frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


# What is something else ----------------------------------------------------------------------------------------------


def wrong_contents() -> Iterator[Case]:
    """Yield fifteen kinds of file that are no photo, under each of four photo names."""
    small = textured(40, 30)
    contents = {
        "html": b"<!doctype html><script>alert(1)</script>" * 20,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "pdf": b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 10,
        "elf": b"\x7fELF\x02\x01\x01" + bytes(500),
        "zip": b"PK\x05\x06" + bytes(18),
        "gif": encoded(small, "GIF"),
        "tiff": encoded(small, "TIFF"),
        "bmp": encoded(small, "BMP"),
        "ico": encoded(small, "ICO", sizes=[(16, 16)]),
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30, 40, 8, 3) + bytes(200),
        "fits": b"SIMPLE  =                    T".ljust(2880),
        "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(300),
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300),
        "byte": b"\xff",
        "empty": b"",
    }
    for kind, content in contents.items():
        for suffix in ("jpg", "png", "webp", "heic"):
            yield Case("content", f"{kind}.{suffix}", content, "refused")


def sizes() -> Iterator[Case]:
    """Yield 40 pictures of the smallest, longest and oddest sizes."""
    for width, height in (
        (1, 1), (2, 2), (7, 7), (8, 8), (15, 17), (511, 511), (511, 509), (640, 3), (3, 640),
        (1, 5_000), (5_000, 1), (12_000, 1), (1, 12_000),
    ):  # fmt: skip
        for suffix, kind in FORMATS.items():
            content = encoded(textured(width, height), kind)
            yield Case("size", f"{width}x{height}.{suffix}", content, "read")
    yield Case("size", "511-progressive.jpg", encoded(textured(511, 511), "JPEG", progressive=True), "read")


def names() -> Iterator[Case]:
    """Yield 40 good photos under names that confuse shells, pages, other systems and people."""
    stems = (
        "\u732b\u306e\u5199\u771f", "\u00e9t\u00e9", "e\u0301te\u0301", "\U0001f415",
        "\u202egpj.exe", "\u0627\u0644\u0643\u0644\u0628",
        "x" * 251, "-rf", "--help", ".hidden", "..", "...", " leading", "trailing ", "CON", "nul", "COM1", "a\nb",
        "a\rb", "a\tb", "a\x1b[31mred", "a\x7fb", "%2e%2e%2fetc", "%00", "a;rm -rf ~", "$(id)", "`id`", "a|b", "a&b",
        "<img src=x onerror=alert(1)>", "\"quoted\"", "'single'", "a\\b", "..\\..\\x", "C:", "*", "?", "#{x}", "{{x}}",
        "a" + "\u0301" * 100,
    )  # fmt: skip
    assert len(stems) == 40, len(stems)
    for number, stem in enumerate(stems):
        yield Case("name", f"{stem}.jpg", encoded(textured(64, 48, 300 + number), "JPEG"), "read")


def duplicates() -> Iterator[Case]:
    """Yield five photos, ten copies of them to the byte, and five of other bytes that look the same."""
    for number in range(5):
        picture = textured(64, 48, 400 + number)
        content = encoded(picture, "JPEG", quality=90)
        yield Case("duplicate", f"first-{number}.jpg", content, "read")
        yield Case("duplicate", f"copy-{number}.jpg", content, "refused")
        yield Case("duplicate", f"copy-{number}.png", content, "refused")
        yield Case("duplicate", f"near-{number}.jpg", encoded(picture, "JPEG", quality=80), "read")


# HEIC ----------------------------------------------------------------------------------------------------------------


def heic() -> Iterator[Case]:
    """Yield HEIC files cut at 20 lengths, damaged in 20 ways, and in the eight orientations; needs pillow-heif."""
    import pillow_heif

    pillow_heif.register_heif_opener()
    rng = random.Random(13)
    whole = encoded(textured(), "HEIF", quality=80)
    for number in range(20):
        yield Case("heic", f"cut-{number}.heic", whole[: len(whole) * number // 21], "refused")
    for number in range(20):
        yield Case("heic", f"flip-{number}.heic", with_flips(whole, rng), "either")
    for orientation in range(1, 9):
        content = encoded(turned(orientation), "HEIF", exif=exif_with_gps(orientation), quality=95)
        yield Case("heic", f"turn-{orientation}.heic", content, "read")
