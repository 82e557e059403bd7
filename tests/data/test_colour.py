"""Colour profiles: a photo is trained in the colours that its camera meant, whatever space it was stored in."""

import dataclasses
import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import ingest, read_photo
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import resume, train
from dreambooth.training import preparation
from tests.harness.killed_runs import Killed, killing_at
from tests.harness.letters import letter

MEANT, STORED = (217, 42, 23), (200, 60, 40)  # one colour in sRGB, and in Display P3
P3_PRIMARIES = {b"rXYZ": (0.51512, 0.2412, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
                b"bXYZ": (0.1571, 0.06657, 0.78407)}  # fmt: skip


def display_p3() -> bytes:
    """Return a Display P3 profile: D65 adapted to D50, and sRGB's curve."""

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))

    curve = b"para\0\0\0\0\0\3\0\0" + struct.pack(
        ">5i", *(round(value * 65536) for value in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045))
    )
    name = b"desc\0\0\0\0" + struct.pack(">I", 11) + b"Display P3\0" + bytes(12 + 67)
    tags = {b"desc": name, b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"cprt": b"text\0\0\0\0none\0"}
    tags |= {tag: xyz(values) for tag, values in P3_PRIMARIES.items()}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    table, content, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + struct.pack(">2I", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    head = struct.pack(">I4sI4s4s4s", start + len(content), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + content


def near(pixel: object, wanted: tuple[int, ...], slack: int = 2) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(one - other) <= slack for one, other in zip(pixel, wanted, strict=True))


def chunked(path: Path, kind: bytes, content: bytes) -> None:
    """Put a chunk behind the header of a PNG."""
    png, crc = path.read_bytes(), zlib.crc32(kind + content)
    path.write_bytes(png[:33] + struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc) + png[33:])


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.avif", "a.heic"])
def test_a_photo_in_display_p3_is_read_in_the_colours_it_means(tmp_path: Path, name: str) -> None:
    if name.endswith("heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    lossless = (
        {} if name.endswith(("jpg", "png")) else {"lossless": True} if name.endswith("webp") else {"quality": 100}
    )
    Image.new("RGB", (64, 48), STORED).save(tmp_path / name, icc_profile=display_p3(), **lossless)
    read = read_photo(tmp_path / name)
    assert near(read.image.getpixel((30, 20)), MEANT, 4 if name.endswith(("avif", "heic")) else 2)
    assert read.notes == ()
    assert "icc_profile" not in read.image.info
    assert near(read_photo(tmp_path / name, reader=1).image.getpixel((30, 20)), STORED, 4)


@pytest.mark.parametrize("mode", ["RGBA", "P", "P with a hole"])
def test_transparency_stays_beside_the_converted_colours(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (64, 48), (*STORED, 255))
    image.paste((0, 0, 0, 0), (0, 0, 20, 48))
    image = image if mode == "RGBA" else image.convert("RGB").quantize(16)
    options = {"transparency": image.getpixel((5, 5))} if mode.endswith("hole") else {}
    image.save(tmp_path / "a.png", icc_profile=display_p3(), **options)
    read = read_photo(tmp_path / "a.png").image
    assert near(read.getpixel((40, 20)), MEANT)
    assert near(read.getpixel((5, 5)), (0, 0, 0) if mode == "P" else (255, 255, 255))


def test_the_stored_copy_keeps_the_colours_without_the_profile(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), STORED).save(tmp_path / "a.jpg", icc_profile=display_p3(), quality=100)
    stored = ingest(tmp_path / "a.jpg", tmp_path / "set")
    with Image.open(stored) as image:
        assert "icc_profile" not in image.info
        assert near(image.getpixel((30, 20)), MEANT)


def test_a_photo_with_srgbs_own_profile_is_not_touched(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    letter().save(tmp_path / "plain.png")
    letter().save(tmp_path / "tagged.png", icc_profile=profile)
    assert read_photo(tmp_path / "tagged.png").image.tobytes() == read_photo(tmp_path / "plain.png").image.tobytes()


def test_grey_with_a_profile_of_its_own_is_converted(tmp_path: Path) -> None:
    """A gamma of 1: half the light is 188 in sRGB, in 8 and in 16 bits."""
    curve = b"curv\0\0\0\0\0\0\0\0"  # no entries: the identity
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"grey\0" + bytes(12 + 67)
    tags = {b"desc": name, b"wtpt": white, b"kTRC": curve}
    table, content, start = b"", b"", 128 + 4 + 36
    for tag, value in tags.items():
        table += tag + struct.pack(">2I", start + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    profile = bytearray(display_p3()[:128])
    profile[:4] = struct.pack(">I", start + len(content))
    profile[16:20] = b"GRAY"
    grey = bytes(profile) + struct.pack(">I", 3) + table + content
    Image.new("L", (64, 48), 128).save(tmp_path / "8.png", icc_profile=grey)
    Image.new("I;16", (64, 48), 128 * 257).save(tmp_path / "16.png", icc_profile=grey)
    for name_ in ("8.png", "16.png"):
        read = read_photo(tmp_path / name_)
        assert near(read.image.getpixel((30, 20)), (188, 188, 188)), name_
        assert read.notes == ()


@pytest.mark.parametrize("profile", [b"no profile", bytes(200), display_p3()[:300]])
def test_an_unreadable_profile_is_told_and_the_photo_is_used(tmp_path: Path, profile: bytes) -> None:
    Image.new("RGB", (64, 48), STORED).save(tmp_path / "a.png", icc_profile=profile)
    read = read_photo(tmp_path / "a.png")
    assert read.image.getpixel((30, 20)) == STORED
    assert read.notes == ("has a colour profile that cannot be read, so its colours are taken as sRGB",)


def test_a_profile_of_another_kind_of_picture_is_told(tmp_path: Path) -> None:
    Image.new("CMYK", (64, 48), (10, 20, 30, 40)).save(tmp_path / "a.jpg", icc_profile=display_p3())
    read = read_photo(tmp_path / "a.jpg")
    assert "colour profile that cannot be read" in read.notes[0]
    assert read.image.size == (64, 48)


def test_a_pngs_gamma_counts_where_it_has_no_profile(tmp_path: Path) -> None:
    for name, chunks in {
        "linear": [(b"gAMA", struct.pack(">I", 100_000))],
        "usual": [(b"gAMA", struct.pack(">I", 45_455))],
        "srgb": [(b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0")],
    }.items():
        Image.new("RGB", (64, 48), (128, 128, 128)).save(tmp_path / f"{name}.png")
        for kind, content in chunks:
            chunked(tmp_path / f"{name}.png", kind, content)
    levels = {name: read_photo(tmp_path / f"{name}.png").image.getpixel((3, 3)) for name in ("linear", "usual", "srgb")}
    assert near(levels["linear"], (188, 188, 188))
    assert levels["usual"] == levels["srgb"] == (128, 128, 128)


@pytest.mark.parametrize(("space", "is_told"), [((1, 13, 0, 1), False), ((12, 13, 0, 1), True), ((9, 16, 0, 1), True)])
def test_a_png_that_names_another_space_is_told(tmp_path: Path, space: tuple[int, ...], is_told: bool) -> None:
    Image.new("RGB", (64, 48), STORED).save(tmp_path / "a.png")
    chunked(tmp_path / "a.png", b"cICP", bytes(space))
    assert bool(read_photo(tmp_path / "a.png").notes) == is_told


def test_a_large_photo_with_a_profile_is_converted_in_place() -> None:
    from dreambooth.data.colour import in_srgb

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), STORED).save(buffer, "PNG", icc_profile=display_p3())
    image = Image.open(buffer)
    image.load()
    assert in_srgb(image, Path("a.png"), []) is image


# Runs that an earlier version began ----------------------------------------------------------------------------------


def trained(config: TrainingConfig, folder: Path) -> bytes:
    """Return the UNet that an undisturbed run with these settings ends with."""
    last = train(dataclasses.replace(config, output_dir=str(folder)))
    return (last / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()


def interrupted(config: TrainingConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Return the same run, killed behind a state."""
    with killing_at(monkeypatch, 3), pytest.raises(Killed):
        train(dataclasses.replace(config, output_dir=str(folder)))
    return RunFolder(folder)


def test_a_run_goes_on_with_the_reader_of_photos_it_began_with(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for photo in photos.iterdir():
        with Image.open(photo) as image:
            image.save(photo, icc_profile=display_p3())
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), concepts=(Concept("photo of zwx dog", str(photos)),),
        resolution=32, train_batch_size=1, seed=7, max_train_steps=6, checkpointing_steps=2, num_crop_variants=2,
        gauge_interval=0, learning_rate=1e-3,
    )  # fmt: skip
    with monkeypatch.context() as earlier:
        earlier.setattr(preparation, "PHOTO_READER", 1)
        earlier.setattr(preparation, "write_reader", lambda file: None)
        unconverted = trained(config, tmp_path / "earlier")
        run = interrupted(config, tmp_path / "earlier-killed", monkeypatch)
    assert not run.photo_reader_path.exists()
    assert (resume(run.path) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == unconverted

    converted = trained(config, tmp_path / "now")
    run = interrupted(config, tmp_path / "now-killed", monkeypatch)
    assert json.loads(run.photo_reader_path.read_text()) == {"version": 3}
    assert (resume(run.path) / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == converted
    assert converted != unconverted
