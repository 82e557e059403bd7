"""The square that is trained is the one that was chosen, to the pixel; the guess holds what matters."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.data.dataset import Crop, crop_variant, cropped, load_concept
from dreambooth.data.focus import FOCUS_FILE, Focus, content_box, focused, keep_focus, proposed_focus, read_focus
from dreambooth.data.photos import read_photo, training_view
from dreambooth.errors import PhotoError
from tests.harness.made_photos import with_bars


def spot(size: tuple[int, int], at: tuple[float, float], number: int = 0) -> Image.Image:
    """Return a grainy wall with one striped ball on it, whose middle lies at these shares of width and height."""
    grain = np.random.default_rng(number).normal(140, 9, (size[1], size[0])).clip(0, 255).astype(np.uint8)
    picture = Image.fromarray(grain).convert("RGB")
    radius = min(size) // 6
    left, top = round(at[0] * size[0]) - radius, round(at[1] * size[1]) - radius
    ball = Image.new("RGB", (2 * radius, 2 * radius), (190, 60 + 9 * number % 90, 40))
    for y in range(0, 2 * radius, 16):
        ball.paste((240, 220, 60), (0, y, 2 * radius, y + 6))
    mask = Image.radial_gradient("L").resize(ball.size).point(lambda value: 255 if value < 180 else 0)
    picture.paste(ball, (left, top), mask)
    return picture


@pytest.mark.parametrize("size", [(640, 360), (360, 640), (900, 400), (400, 900)], ids=str)
def test_the_guess_holds_the_subject_wherever_it_is(size: tuple[int, int]) -> None:
    for number, place in enumerate((0.2, 0.35, 0.5, 0.65, 0.8)):
        at = (place, 0.5) if size[0] > size[1] else (0.5, place)
        photo = spot(size, at, number)
        left, top, right, bottom = proposed_focus(photo).box(size)
        radius = min(size) / 6
        x, y = at[0] * size[0], at[1] * size[1]
        assert left <= x - 0.8 * radius, place
        assert right >= x + 0.8 * radius, place
        assert top <= y - 0.8 * radius, place
        assert bottom >= y + 0.8 * radius, place
        assert right - left == min(size)


def test_the_guess_leaves_bars_out() -> None:
    photo = spot((480, 320), (0.5, 0.5))
    framed = with_bars(photo, 0.25, sideways=False, colour="black")
    left, top, right, bottom = proposed_focus(framed).box(framed.size)
    assert top >= 79
    assert bottom <= 401
    assert content_box(photo) == (0, 0, 480, 320)
    # A flat ground is none either.
    ground = photo.copy()
    ground.paste((90, 70, 50), (0, 280, 480, 320))
    assert content_box(ground) == (0, 0, 480, 320)
    # A drawing on white has no bars: nothing ends there at once.
    drawing = Image.new("RGB", (400, 400), "white")
    drawing.paste((200, 0, 20), (150, 120, 260, 300))
    assert content_box(drawing) == (0, 0, 400, 400)


def test_a_plain_picture_is_cut_in_the_middle() -> None:
    assert proposed_focus(Image.new("RGB", (300, 200), "grey")).box((300, 200)) == (50, 0, 250, 200)
    for size in ((1, 1), (1, 500), (3, 2)):
        left, top, right, bottom = proposed_focus(Image.new("RGB", size)).box(size)
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]


def test_a_centre_at_the_edge_is_moved_in() -> None:
    assert Focus(0, 0, 2).box((400, 200)) == (0, 0, 100, 100)
    assert Focus(1, 1, 1).box((400, 200)) == (200, 0, 400, 200)
    assert Focus(0, 0, 2).inside((400, 200)) == Focus(0.125, 0.25, 2)


def test_what_is_trained_is_what_is_shown(tmp_path: Path) -> None:
    photo = spot((300, 200), (0.7, 0.4))
    photo.save(tmp_path / "a.png")
    spot((300, 200), (0.2, 0.4)).save(tmp_path / "b.png")
    keep_focus(tmp_path, {"a.png": Focus(0.7, 0.4, 1.5)})
    concept = Concept("photo of zwx ball", str(tmp_path))
    loaded = load_concept(concept, read_prompts_from_txts=False, num_class_images=0, report=lambda text: None)
    first, second = loaded.instance
    assert (first.focus, second.focus) == (Focus(0.7, 0.4, 1.5), None)
    shown = np.asarray(focused(read_photo(first.path).image, 64, Focus(0.7, 0.4, 1.5)))
    for variant in range(8):
        crop = crop_variant(3, 0, 0, variant, center_crop=False, hflip=False, is_class=False)
        trained = cropped(read_photo(first.path).image, crop, (64, 64), first.focus)
        assert (np.asarray(trained) == shown).all()
    # A photo without one is cropped at random, as the seed script does.
    crops = {crop_variant(3, 0, 1, variant, center_crop=False, hflip=False, is_class=False).x for variant in range(8)}
    assert len(crops) == 8
    # The plain focus is the middle square.
    middle = np.asarray(cropped(photo, Crop(0, 0, False), (64, 64), Focus()))
    assert (middle == np.asarray(training_view(photo, 64))).all()


def test_the_file_is_read_or_refused_in_words(tmp_path: Path) -> None:
    assert read_focus(tmp_path) == {}
    keep_focus(tmp_path, {"b.png": Focus(0.25, 0.5, 2), "a.png": Focus()})
    assert read_focus(tmp_path) == {"a.png": Focus(), "b.png": Focus(0.25, 0.5, 2)}
    wrong = [
        "", "[]", "{", '{"a": 1}', '{"a": {"x": 0, "y": 0}}', '{"a": {"x": 2, "y": 0, "zoom": 1}}',
        '{"a": {"x": NaN, "y": 0, "zoom": 1}}', '{"a": {"x": "0", "y": 0, "zoom": 1}}', "[" * 100_000,
        '{"a": {"x": 0.5, "y": 0.5, "zoom": 1e9}}', '{"a": {"x": 0.5, "y": 0.5, "zoom": 1, "more": 1}}', " " * 2**21,
    ]  # fmt: skip
    for text in wrong:
        (tmp_path / FOCUS_FILE).write_text(text)
        with pytest.raises(PhotoError, match=r"focus\.json cannot be read"):
            read_focus(tmp_path)
    (tmp_path / FOCUS_FILE).write_bytes(b"\xff\xfe{}")
    with pytest.raises(PhotoError):
        read_focus(tmp_path)


def test_only_places_in_a_photo_are_kept(tmp_path: Path) -> None:
    for focus in (Focus(-0.1, 0), Focus(0, 1.1), Focus(0, 0, 0.5), Focus(0, 0, 99), Focus(float("nan"), 0)):
        with pytest.raises(PhotoError, match="not a place in a photo"):
            keep_focus(tmp_path, {"a": focus})
    assert not (tmp_path / FOCUS_FILE).exists()
    keep_focus(tmp_path, {"a": Focus(1, 0)})
    assert json.loads((tmp_path / FOCUS_FILE).read_text()) == {"a": {"x": 1.0, "y": 0.0, "zoom": 1.0}}
