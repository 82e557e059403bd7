"""What an example shows is a function of (seed, k), and every photo comes equally often."""

import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.data.dataset import (
    CaptionedPhoto,
    ConceptPhotos,
    Crop,
    Pick,
    class_pick,
    crop_variant,
    cropped,
    instance_pick,
    load_concept,
    pixels,
)
from dreambooth.data.focus import Focus, keep_focus
from dreambooth.errors import PhotoError


def save_photo(path: Path, level: int = 100, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 0, 0)).save(path)
    return path


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, dreambooth.data.dataset, dreambooth.data.photos; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The sequence --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pick", [instance_pick, class_pick])
def test_each_pass_is_a_permutation_of_its_own(pick: Callable[..., Pick]) -> None:
    passes = [[pick(3, 7 * number + place, [7], 4).photo for place in range(7)] for number in range(6)]
    assert all(sorted(order) == list(range(7)) for order in passes)
    assert len({tuple(order) for order in passes}) == 6


def test_photos_of_any_number_are_seen_equally_often() -> None:
    # 800 examples of 5 photos and of 3: 160 times each, and 266 or 267 times each.
    assert set(Counter(instance_pick(1337, k, [5], 8).photo for k in range(800)).values()) == {160}
    assert sorted(Counter(instance_pick(1337, k, [3], 8).photo for k in range(800)).values()) == [266, 267, 267]


def test_concepts_take_turns_and_keep_their_own_passes() -> None:
    picks = [instance_pick(11, k, [2, 5, 3], 4) for k in range(90)]
    assert [pick.concept for pick in picks] == [0, 1, 2] * 30
    counts = Counter((pick.concept, pick.photo) for pick in picks)
    assert counts == {(0, n): 15 for n in range(2)} | {(1, n): 6 for n in range(5)} | {(2, n): 10 for n in range(3)}


def test_class_pictures_come_in_an_order_of_their_own() -> None:
    instance = [instance_pick(5, k, [6], 4) for k in range(60)]
    of_class = [class_pick(5, k, [6], 4) for k in range(60)]
    assert [pick.photo for pick in instance] != [pick.photo for pick in of_class]
    # Pairs are not fixed for the run: each photo meets more than two class images.
    pairs = {(a.photo, b.photo) for a, b in zip(instance, of_class, strict=True)}
    assert all(len({b for a, b in pairs if a == photo}) > 2 for photo in range(6))


def test_variants_are_used_evenly() -> None:
    counts = Counter(instance_pick(2, k, [5], 8).variant for k in range(4000))
    assert sorted(counts) == list(range(8))
    assert max(abs(count - 500) for count in counts.values()) < 100  # under five standard deviations of 21


def test_the_seed_decides_and_nothing_else() -> None:
    first = [instance_pick(1, k, [9], 8) for k in range(40)]
    torch.manual_seed(99)
    backwards = [instance_pick(1, k, [9], 8) for k in reversed(range(40))]
    assert first == backwards[::-1]
    assert first != [instance_pick(2, k, [9], 8) for k in range(40)]


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    instance_pick(1, 123, [9], 8)
    crop_variant(1, 0, 0, 0, center_crop=False, hflip=True, is_class=False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_picks_of_a_seed_stay_what_they_are() -> None:
    # Recorded once: a change here would change every run that someone repeats by its seed.
    assert [instance_pick(1, k, [5], 8) for k in range(5)] == [
        Pick(0, 1, 3), Pick(0, 4, 6), Pick(0, 2, 1), Pick(0, 3, 0), Pick(0, 0, 6),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "accumulation", "num_processes"), [(1, 1, 1), (4, 1, 1), (1, 4, 1), (1, 1, 4), (2, 3, 2)]
)
def test_batch_accumulation_and_processes_cut_one_sequence(batch: int, accumulation: int, num_processes: int) -> None:
    def example(step: int, micro_step: int, rank: int, i: int) -> Pick:
        k = ((step * accumulation + micro_step) * num_processes + rank) * batch + i
        return instance_pick(8, k, [5, 4], 8)

    num_steps = 48 // (batch * accumulation * num_processes)
    seen = [
        example(step, micro_step, rank, i)
        for step in range(num_steps)
        for micro_step in range(accumulation)
        for rank in range(num_processes)
        for i in range(batch)
    ]
    assert seen == [instance_pick(8, k, [5, 4], 8) for k in range(48)]


# Crops ---------------------------------------------------------------------------------------------------------------


def crops(count: int, *, center_crop: bool, hflip: bool, is_class: bool = False, seed: int = 4) -> list[Crop]:
    return [
        crop_variant(seed, 0, 0, n, center_crop=center_crop, hflip=hflip, is_class=is_class) for n in range(count)
    ]  # fmt: skip


def test_crops_are_deterministic_and_spread() -> None:
    random = crops(400, center_crop=False, hflip=True)
    assert random == crops(400, center_crop=False, hflip=True)
    assert random != crops(400, center_crop=False, hflip=True, seed=5)
    assert random != crops(400, center_crop=False, hflip=True, is_class=True)
    assert abs(np.mean([crop.x for crop in random]) - 0.5) < 0.06  # four standard errors: 0.29 / 20 * 4
    assert min(crop.x for crop in random) < 0.02
    assert max(crop.x for crop in random) > 0.98
    assert 160 < sum(crop.flip for crop in random) < 240


def test_center_crop_and_no_flip() -> None:
    assert set(crops(20, center_crop=True, hflip=False)) == {Crop(0.5, 0.5, False)}
    assert {crop.flip for crop in crops(20, center_crop=True, hflip=True)} == {False, True}
    assert not any(crop.flip for crop in crops(20, center_crop=False, hflip=False))


def test_flipping_does_not_move_the_crop() -> None:
    with_flips, without = crops(50, center_crop=False, hflip=True), crops(50, center_crop=False, hflip=False)
    assert [(crop.x, crop.y) for crop in with_flips] == [(crop.x, crop.y) for crop in without]


def test_a_crop_is_cut_then_mirrored() -> None:
    image = Image.fromarray(np.arange(3 * 8 * 12, dtype=np.uint8).reshape(8, 12, 3))
    plain = np.asarray(cropped(image, Crop(1.0, 0.0, False), (8, 8)))
    assert (plain == np.asarray(image)[:, 4:]).all()
    assert (np.asarray(cropped(image, Crop(1.0, 0.0, True), (8, 8))) == plain[:, ::-1]).all()


def test_pixels_are_what_the_vae_takes() -> None:
    image = Image.new("RGB", (3, 2), (0, 255, 51))
    values = pixels(image)
    assert values.shape == (3, 2, 3)
    assert values.dtype == torch.float32
    assert values.is_contiguous()
    torch.testing.assert_close(values[:, 0, 0], torch.tensor([-1.0, 1.0, -0.6]))


# Concepts ------------------------------------------------------------------------------------------------------------


def test_a_concept_is_read_in_natural_order_and_strays_are_told(tmp_path: Path) -> None:
    photos = [save_photo(tmp_path / f"{n}.png") for n in (1, 2, 10)]
    (tmp_path / "3.png").write_text("no picture")
    (tmp_path / "movie.mp4").touch()
    (tmp_path / ".DS_Store").touch()
    told: list[str] = []
    concept = Concept("photo of zwx dog", str(tmp_path))
    loaded = load_concept(concept, read_prompts_from_txts=False, num_class_images=0, report=told.append)
    assert loaded == ConceptPhotos(
        tuple(CaptionedPhoto(path, "photo of zwx dog", size=(20, 16)) for path in photos), ()
    )
    assert len(told) == 2
    assert "movie.mp4" in told[0]
    assert "3.png is not a readable photo" in told[1]


def test_captions_come_from_either_name_of_text_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        save_photo(tmp_path / name)
    (tmp_path / "a.png.txt").write_text("zwx dog\n on a beach\n", "utf-8")
    (tmp_path / "a.txt").write_text("not this one", "utf-8")
    (tmp_path / "b.txt").write_text("\ufeffzwx dog caf\u00e9", "utf-8")
    (tmp_path / "c.txt").write_text(" \n", "utf-8")
    told: list[str] = []
    concept = Concept("photo of zwx dog", str(tmp_path))
    loaded = load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=told.append)
    assert [photo.caption for photo in loaded.instance] == [
        "zwx dog on a beach", "zwx dog caf\u00e9", "photo of zwx dog", "photo of zwx dog",
    ]  # fmt: skip
    assert ["c.txt is empty" in told[0], "d.png has no caption file" in told[1], len(told)] == [True, True, 2]
    unasked = load_concept(concept, read_prompts_from_txts=False, num_class_images=0, report=told.append)
    assert {photo.caption for photo in unasked.instance} == {"photo of zwx dog"}


def test_captions_are_found_in_any_case_and_unicode_form_and_encoding(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    for name in ("1.png", "2.PNG", f"{nfc}.png", "A.png", "a.png"):
        save_photo(tmp_path / name)
    (tmp_path / "1.TXT").write_text("one", "utf-16")
    (tmp_path / "2.png.Txt").write_text("two", "utf-8-sig")
    (tmp_path / f"{nfd}.txt").write_text("three")
    (tmp_path / "a.txt").write_text("small a")  # of the photo of exactly this name only
    told: list[str] = []
    loaded = load_concept(
        Concept("x", str(tmp_path)), read_prompts_from_txts=True, num_class_images=0, report=told.append
    )
    captions = {photo.path.name: photo.caption for photo in loaded.instance}
    assert captions == {"1.png": "one", "2.PNG": "two", f"{nfc}.png": "three", "A.png": "x", "a.png": "small a"}


def test_squares_for_photos_that_are_not_there_are_told(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    save_photo(tmp_path / nfd)
    keep_focus(tmp_path, {nfc: Focus(0.5, 0.5, 2.0), "gone.png": Focus()})
    told: list[str] = []
    loaded = load_concept(
        Concept("x", str(tmp_path)), read_prompts_from_txts=False, num_class_images=0, report=told.append
    )
    assert [photo.focus for photo in loaded.instance] == [Focus(0.5, 0.5, 2.0)]
    assert told == [f'focus.json in {tmp_path} has crops for photos that do not exist: "gone.png".']


def test_a_photo_too_long_for_its_copy_costs_no_other(tmp_path: Path) -> None:
    for name in ("1.png", "3.png"):
        save_photo(tmp_path / name)
    Image.new("RGB", (66_000, 700)).save(tmp_path / "2.png")
    told: list[str] = []
    loaded = load_concept(
        Concept("x", str(tmp_path)), read_prompts_from_txts=False, num_class_images=0, report=told.append
    )
    assert [photo.path.name for photo in loaded.instance] == ["1.png", "3.png"]
    assert "2.png is too long" in told[0]


def test_a_caption_that_is_no_text_is_an_error(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(PhotoError, match="a.txt"):
        load_concept(Concept("x", str(tmp_path)), read_prompts_from_txts=True, num_class_images=0, report=print)


def test_class_pictures_are_the_first_readable_ones(tmp_path: Path) -> None:
    save_photo(tmp_path / "photos" / "a.png")
    pictures = [save_photo(tmp_path / "class" / f"{n}.png") for n in (1, 2, 3, 10, 11)]
    pictures[1].write_bytes(b"broken")
    concept = Concept("zwx dog", str(tmp_path / "photos"), "dog", str(tmp_path / "class"))
    told: list[str] = []
    loaded = load_concept(concept, read_prompts_from_txts=True, num_class_images=3, report=told.append)
    assert [photo.path.name for photo in loaded.class_images] == ["1.png", "3.png", "10.png"]
    assert {photo.caption for photo in loaded.class_images} == {"dog"}
    assert load_concept(concept, read_prompts_from_txts=True, num_class_images=0, report=told.append).class_images == ()


def test_a_concept_without_a_readable_photo_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(PhotoError, match="None of the 1 photos"):
        load_concept(Concept("x", str(tmp_path)), read_prompts_from_txts=False, num_class_images=0, report=print)
