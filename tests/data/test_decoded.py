"""Pictures are decoded once, and what is remembered of them is what the files hold."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.commands.cli import main
from dreambooth.data import decoded
from dreambooth.data.decoded import forget_decoded
from dreambooth.data.photo_sets import PhotoSet
from dreambooth.data.photos import PHOTO_READER, read_photo
from tests.harness.decodes import count_decodes
from tests.harness.made_photos import made_photo


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    """Begin with no picture decoded."""
    forget_decoded()


def test_a_training_decodes_each_photo_and_class_image_once(
    tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the findings that are told before the start to the latents, with crops of several places of a photo."""
    photos, classes = tmp_path / "photos", tmp_path / "class"
    for folder, numbers in ((photos, range(3)), (classes, range(5, 7))):
        folder.mkdir()
        for number in numbers:
            made_photo(number).save(folder / f"{number}.jpg", quality=90)
    monkeypatch.setenv("DREAMBOOTH_HOME", str(tmp_path / "home"))
    counts = count_decodes(monkeypatch)
    flags = {
        "pretrained_model_name_or_path": tiny_base_folder, "instance_data_dir": photos, "class_data_dir": classes,
        "instance_prompt": "photo of zwx dog", "class_prompt": "photo of dog", "output_dir": tmp_path / "run",
        "resolution": 32, "max_train_steps": 2, "num_class_images": 4, "num_crop_variants": 3, "save_infer_steps": 1,
        "n_save_sample": 1, "gauge_interval": 1,
    }  # fmt: skip
    assert (
        main(["train", *(f"--{name}={value}" for name, value in flags.items()), "--hflip", "--with_prior_preservation"])
        == 0
    )
    names = [path.name for folder in (photos, classes) for path in folder.iterdir() if path.is_file()]
    assert {name: counts[name] for name in names} == dict.fromkeys(names, 1)
    assert len(names) == 3 + 4, "two class images were missing and were made"


def test_a_stored_png_is_not_decoded_to_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_photo(1).save(tmp_path / "a.png")
    counts = count_decodes(monkeypatch)
    kept = PhotoSet(tmp_path / "set")
    kept.add([tmp_path / "a.png"])
    (stored,) = kept.photos()
    known = read_photo(stored)
    assert (dict(counts), known.path, known.notes) == ({"a.png": 1}, stored, ())
    forget_decoded()
    assert np.array_equal(np.asarray(read_photo(stored).image), np.asarray(known.image))


def test_a_file_that_changed_is_decoded_again(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for colour in ("red", "blue"):
        Image.new("RGB", (8, 8), colour).save(path)
        assert read_photo(path).image.getpixel((0, 0)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_each_reader_has_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path)
    assert read_photo(path, 1) is read_photo(path, 1)
    assert read_photo(path, 1) is not read_photo(path, PHOTO_READER)


def test_no_more_is_remembered_than_memory_is_set_aside_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more photos than fit the first stay: dropping the oldest would leave none for the next pass."""
    monkeypatch.setattr(decoded, "MAX_KEPT_PIXELS", 200)
    counts = count_decodes(monkeypatch)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    for path in paths * 2:
        read_photo(path)
    assert [counts[path.name] for path in paths] == [1, 1, 1, 2, 2]
