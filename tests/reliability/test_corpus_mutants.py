"""The long tier of files from anywhere: thousands of damaged photos, archives and weights, each answered in words."""

import io
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from dreambooth.data.archives import unpack_photos
from dreambooth.data.photos import read_photo
from dreambooth.errors import BaseModelError, PhotoError
from dreambooth.models.weights import read_weights
from tests.harness.corpus_archives import photo, tree, zipped
from tests.harness.corpus_photos import encoded, exif_with_gps, textured, with_flips

pytestmark = pytest.mark.reliability
NUM_PHOTOS = 1_000  # of each of the four formats
NUM_ARCHIVES = 2_000
NUM_WEIGHTS = 1_500  # of each of the three formats


def mutant(content: bytes, rng: random.Random) -> bytes:
    """Return the bytes with bits flipped, a piece zeroed, removed, doubled or taken from elsewhere, or the end cut."""
    kind = rng.randrange(6)
    start = rng.randrange(len(content))
    end = min(len(content), start + rng.choice([1, 4, 64, 1024]))
    piece = content[start:end]
    other = rng.randrange(len(content))
    return {
        0: lambda: with_flips(content, rng, rng.choice([1, 2, 8, 64])),
        1: lambda: content[:start] + bytes(len(piece)) + content[end:],
        2: lambda: content[:start] + content[end:],
        3: lambda: content[:end] + piece * rng.choice([1, 9]) + content[end:],
        4: lambda: content[:start] + content[other : other + len(piece)] + content[end:],
        5: lambda: content[:start] + b"\xff" * len(piece) + content[end:],
    }[kind]()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "HEIF"])
def test_thousands_of_damaged_photos_are_answered_in_words(kind: str, tmp_path: Path) -> None:
    """S1, longer: 4 x 1,000 mutants, half of them damaged in the first 400 bytes, where headers are."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    rng = random.Random(17)
    whole = encoded(textured(90, 60), kind, exif=exif_with_gps(6), quality=85)
    path = tmp_path / "photo.jpg"
    verdicts = {"read": 0, "refused": 0}
    for number in range(NUM_PHOTOS):
        head = 400 if number % 2 else len(whole)
        path.write_bytes(mutant(whole[:head], rng) + whole[head:])
        try:
            verdicts["read"] += read_photo(path).image.mode == "RGB"
        except PhotoError as error:
            verdicts["refused"] += bool(error.what and error.why and error.todo and str(error).isprintable())
    print(kind, verdicts)
    assert sum(verdicts.values()) == NUM_PHOTOS


def test_thousands_of_damaged_archives_are_answered_in_words(tmp_path: Path) -> None:
    """S3, longer: 2,000 mutants of a good zip: unpacked, or refused with nothing left."""
    rng = random.Random(19)
    whole = zipped(("photos/1.jpg", photo(1)), ("photos/1.txt", b"a dog"), ("photos/2.jpg", photo(2)))
    whole_stored = zipped(("1.jpg", photo(1)), ("2.jpg", photo(2)), method=0)
    verdicts = {"unpacked": 0, "refused": 0}
    for number in range(NUM_ARCHIVES):
        base = whole_stored if number % 2 else whole
        head = rng.choice([0, len(base) - 250])  # the directory is at the end
        archive = tmp_path / "a.zip"
        archive.write_bytes(base[:head] + mutant(base[head:], rng))
        room = tmp_path / str(number)
        try:
            unpack_photos(archive, room / "set")
            verdicts["unpacked"] += all(name.startswith("set/00") or name == "set/photos.json" for name in tree(room))
        except PhotoError as error:
            verdicts["refused"] += bool(error.what and error.why and error.todo and not tree(room))
    print(verdicts)
    assert sum(verdicts.values()) == NUM_ARCHIVES


@pytest.mark.parametrize("kind", ["zip.ckpt", "legacy.ckpt", "plain.safetensors"])
def test_thousands_of_damaged_weights_are_answered_in_words(kind: str, tmp_path: Path) -> None:
    """S4, longer: 3 x 1,500 mutants of a small file of weights: read as tensors, or refused in words."""
    import torch
    from safetensors.torch import save

    weights: dict[str, Any] = {"a.weight": torch.ones(4, 3), "b": torch.arange(5), "c": torch.zeros(2, 2).half()}
    buffer = io.BytesIO()
    torch.save({"state_dict": weights}, buffer, _use_new_zipfile_serialization=kind == "zip.ckpt")
    whole = save(weights) if kind == "plain.safetensors" else buffer.getvalue()
    rng = random.Random(23)
    path = tmp_path / kind
    verdicts = {"read": 0, "refused": 0}
    for _ in range(NUM_WEIGHTS):
        path.write_bytes(mutant(whole, rng))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                verdicts["read"] += all(torch.is_tensor(tensor) for tensor in read_weights(path).values())
            except BaseModelError as error:
                verdicts["refused"] += bool(error.what and error.why and error.todo)
    print(kind, verdicts)
    assert sum(verdicts.values()) == NUM_WEIGHTS
