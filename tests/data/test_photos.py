"""Untrusted files: whatever is usable comes out upright and RGB, everything else is refused with a reason."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.data.photos import MAX_PHOTO_BYTES, find_photos, ingest, read_photo, square, training_view
from dreambooth.errors import PhotoError

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 200, 20), (20, 20, 220), (220, 220, 20)
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


def corners() -> Image.Image:
    """Return a 96 x 64 picture with another colour in each quarter: red, green above blue, yellow."""
    image = Image.new("RGB", (96, 64), RED)
    image.paste(GREEN, (48, 0, 96, 32))
    image.paste(BLUE, (0, 32, 48, 64))
    image.paste(YELLOW, (48, 32, 96, 64))
    return image


def assert_is_corners(image: Image.Image) -> None:
    assert image.mode == "RGB"
    assert image.size == (96, 64)
    for place, colour in (((12, 8), RED), ((84, 8), GREEN), ((12, 56), BLUE), ((84, 56), YELLOW)):
        assert np.abs(np.subtract(image.getpixel(place), colour)).max() < 12, place


def texture(size: tuple[int, int] = (90, 60)) -> Image.Image:
    values = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values)


def refused(path: Path) -> str:
    with pytest.raises(PhotoError) as caught:
        read_photo(path)
    assert path.name in caught.value.what
    assert caught.value.why
    assert caught.value.todo
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_becomes_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    transpose = STORED[orientation]
    stored = corners() if transpose is None else corners().transpose(transpose)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    stored.save(path, exif=exif, quality=95)

    photo = read_photo(path)

    assert_is_corners(photo.image)
    assert len(photo.notes) == (orientation != 1)
    assert dict(photo.image.getexif()) == {}


def test_heic_is_read(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    for name in ("photo.heic", "misnamed.jpg"):
        corners().save(tmp_path / name, format="HEIF", quality=90)
        assert_is_corners(read_photo(tmp_path / name).image)


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    image.putpixel((2, 0), (200, 0, 0, 51))  # a fifth of 200 and four fifths of 255
    image.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert [photo.image.getpixel((x, 0)) for x in range(4)] == [
        (255, 255, 255), (200, 0, 0), (244, 204, 204), (255, 255, 255),
    ]  # fmt: skip
    assert photo.notes == ("transparent areas became white",)
    Image.new("RGBA", (4, 2), (10, 20, 30, 255)).save(tmp_path / "opaque.png")
    assert read_photo(tmp_path / "opaque.png").notes == ()


def palette(image: Image.Image) -> Image.Image:
    return image.quantize(8)


def cmyk(image: Image.Image) -> Image.Image:
    return image.convert("CMYK")


@pytest.mark.parametrize(("convert", "suffix"), [(palette, "png"), (palette, "webp"), (cmyk, "jpg")])
def test_other_colour_models_become_rgb(
    tmp_path: Path, convert: Callable[[Image.Image], Image.Image], suffix: str
) -> None:
    path = tmp_path / f"photo.{suffix}"
    image = convert(corners())
    image.convert("RGB").save(path, lossless=True) if suffix == "webp" else image.save(path, quality=95)
    assert_is_corners(read_photo(path).image)


def test_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([9, 9, 9, 200, 100, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    read = read_photo(tmp_path / "p.png").image
    assert [read.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (200, 100, 0)]


def test_sixteen_bit_grey_is_scaled_not_cut(tmp_path: Path) -> None:
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    read = np.asarray(read_photo(tmp_path / "grey.png").image)
    assert read[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (read[..., :1] == read).all()


@pytest.mark.parametrize(("suffix", "image_format"), [("png", "PNG"), ("webp", "WEBP")])
def test_animations_give_their_first_frame(tmp_path: Path, suffix: str, image_format: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    others = [Image.new("RGB", (96, 64), colour) for colour in (RED, BLUE)]
    corners().save(path, format=image_format, save_all=True, append_images=others, duration=100, lossless=True)
    photo = read_photo(path)
    assert_is_corners(photo.image)
    assert photo.notes == ("animated: only its first frame is used",)


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated_at_any_length_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    texture().save(whole)
    content = whole.read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for number in range(1, 60):
        # The last hundredth is left alone: a JPEG without its end mark, or a PNG without its end chunk, is complete.
        path.write_bytes(content[: len(content) * number // 61])
        refused(path)


def test_damaged_png_never_raises_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "damaged.png"
    buffer = io.BytesIO()
    texture().save(buffer, "PNG")
    for number in range(60):
        content = bytearray(buffer.getvalue())
        content[number * len(content) // 60] ^= 0xFF
        path.write_bytes(content)
        refused(path)


def test_empty_missing_and_text_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    assert "is empty" in refused(tmp_path / "empty.jpg")
    assert "No such file" in refused(tmp_path / "gone.jpg")
    (tmp_path / "text.jpg").write_text("not a photo\n" * 50)
    assert "none of JPEG, PNG, WebP, AVIF or HEIC" in refused(tmp_path / "text.jpg")
    (tmp_path / "drawing.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    refused(tmp_path / "drawing.png")
    texture().save(tmp_path / "gif.jpg", format="GIF")
    assert "none of JPEG" in refused(tmp_path / "gif.jpg")


def png_header(path: Path, width: int, height: int) -> None:
    """Write a PNG of a few bytes that declares this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [7100, 9500, 13_000, 60_000])
def test_bombs_are_refused_on_their_header(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    png_header(path, side, side)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    assert "megapixels" in refused(path)


def test_too_large_a_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    with path.open("wb") as file:
        file.truncate(MAX_PHOTO_BYTES + 1)
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: pytest.fail("opened"))
    assert "at most 30 MB" in refused(path)


# Folders -------------------------------------------------------------------------------------------------------------


def test_photos_are_found_in_natural_order(tmp_path: Path) -> None:
    for name in ("photo10.JPG", "photo9.png", "photo1.webp", "photo2.heic"):
        (tmp_path / name).touch()
    for name in (".DS_Store", "photo1.webp.txt", "photo9.txt", "Thumbs.db", "._photo1.jpg", "info.json"):
        (tmp_path / name).touch()
    (tmp_path / "notes.pdf").touch()
    (tmp_path / "more").mkdir()
    found = find_photos(tmp_path)
    assert [path.name for path in found.photos] == ["photo1.webp", "photo2.heic", "photo9.png", "photo10.JPG"]
    assert {path.name: reason.split(";")[0] for path, reason in found.skipped} == {
        "more": "is a folder", "notes.pdf": "does not end in .jpg, .png, .webp, .avif or .heic",
    }  # fmt: skip


def test_a_folder_without_photos_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="is not a folder"):
        find_photos(tmp_path / "missing")
    (tmp_path / "movie.mp4").touch()
    with pytest.raises(PhotoError, match='"movie.mp4" does not end in .jpg, .png, .webp, .avif or .heic.'):
        find_photos(tmp_path)
    (tmp_path / "dog.jpg").symlink_to("gone.jpg")
    with pytest.raises(PhotoError, match='None of its 2 files is a photo: "dog.jpg" is a broken link'):
        find_photos(tmp_path)


def test_ingest_keeps_the_picture_and_drops_the_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Secret Camera"
    source = tmp_path / "my photo (1).jpg"
    corners().transpose(STORED[6] or 0).save(source, exif=exif, quality=95)

    copy = ingest(source, tmp_path / "dataset")

    assert copy.parent == tmp_path / "dataset"
    assert copy.name.startswith("my-photo-1-")
    assert copy.suffix == ".jpg"
    assert b"Secret" not in copy.read_bytes()
    assert_is_corners(read_photo(copy).image)
    assert read_photo(copy).notes == ()


def test_ingest_reports_a_duplicate_by_content(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    texture((8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    first = ingest(tmp_path / "a.png", dataset)
    assert first.suffix == ".png"
    assert (np.asarray(Image.open(first)) == np.asarray(texture((8, 8)))).all()
    with pytest.raises(PhotoError, match=f"b.png is there already, as {first.name}"):
        ingest(tmp_path / "b.png", dataset)
    assert list(dataset.iterdir()) == [first]


def test_ingest_gives_files_of_one_name_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    texture((8, 8)).save(tmp_path / "a.png")
    corners().save(tmp_path / "other" / "a.png")
    names = {ingest(path, tmp_path / "set").name for path in (tmp_path / "a.png", tmp_path / "other" / "a.png")}
    assert len(names) == 2


@pytest.mark.parametrize("name", ["..jpg", "<img onerror=x>.jpg", "\u00e9\u4e2d.jpg", "x" * 200 + ".jpg"])
def test_ingest_makes_safe_names(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    corners().save(source, format="JPEG")
    copy = ingest(source, tmp_path / "set")
    assert copy.parent == tmp_path / "set"
    assert copy.name.isascii()
    assert not set(copy.name) & set("<>&\"'/\\ ")
    assert not copy.name.startswith(".")


# Views ---------------------------------------------------------------------------------------------------------------


def test_the_training_view_is_the_middle_square() -> None:
    wide = Image.new("RGB", (400, 100), BLUE)
    wide.paste(RED, (150, 0, 250, 100))
    view = np.asarray(training_view(wide, 20))
    assert view.shape == (20, 20, 3)
    assert (view[:, 3:-3] == RED).all()
    assert view[:, 0].max() < 240  # red, with what Lanczos sees of the blue beside it


def test_a_square_is_the_scaled_picture_cut() -> None:
    image = texture((60, 30))
    scaled = image.resize((30, 15), Image.Resampling.LANCZOS)
    for x, left in ((0.0, 0), (0.4, 6), (1.0, 15)):
        cut = np.asarray(scaled.crop((left, 0, left + 15, 15)), dtype=int)
        assert np.abs(np.asarray(square(image, 15, x, 0.5), dtype=int) - cut).max() <= 1


@pytest.mark.parametrize(("size", "x", "y", "colour"), [
    ((40, 10), 0.0, 0.5, RED), ((40, 10), 1.0, 0.5, GREEN), ((10, 40), 0.5, 0.0, RED), ((10, 40), 0.5, 1.0, GREEN),
])  # fmt: skip
def test_the_square_moves_along_the_longer_side(
    size: tuple[int, int], x: float, y: float, colour: tuple[int, int, int]
) -> None:
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (20, 0, 40, 10) if size[0] > size[1] else (0, 20, 10, 40))
    assert (np.asarray(square(image, 10, x, y)) == colour).all()


def test_a_square_of_the_right_size_is_untouched() -> None:
    image = texture((32, 32))
    assert (np.asarray(training_view(image, 32)) == np.asarray(image)).all()


def test_a_strip_needs_no_more_memory_than_its_square() -> None:
    assert training_view(Image.new("RGB", (200_000, 2), RED), 512).getpixel((256, 256)) == RED


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_of_photos_is_that_of_their_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned: bool
) -> None:
    """Names that are alike as people count: on another disk, or copied, a folder lists them another way."""
    names = ["01.png", "1.png", "10.png", "2.png", "A.png", "a.png", "cafe\u0301.png", "caf\u00e9.png", "caff.png"]
    for name in names:
        (tmp_path / name).touch()
    listed = sorted(tmp_path.iterdir(), reverse=turned)
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(listed))
    expected = ["01.png", "1.png", "2.png", "10.png", "A.png", "a.png", "cafe\u0301.png", "caf\u00e9.png", "caff.png"]
    assert [path.name for path in find_photos(tmp_path).photos] == expected
    of_earlier_runs = [path.name for path in find_photos(tmp_path, reader=1).photos]
    assert (of_earlier_runs == expected) != turned, "they go on with the order they began with"
