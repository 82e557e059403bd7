"""The painted world: the same seed paints the same picture, and a caption says what is painted."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.data.samples import SAMPLE_CONTEXTS, SAMPLE_PX, SAMPLE_SUBJECT, sample_concept, sample_folder
from dreambooth.starter import scenes, subjects
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.scenes import ACCESSORIES, PATTERNS, Scene
from dreambooth.starter.things import CLASSES, COLOURS, LIVE

PLAIN_WALL = "white"


def painted(scene: Scene, seed: int = 0, size_px: int = 64) -> Image.Image:
    return scenes.render(scene, size_px, random.Random(seed))


def share_of_colour(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 40) -> float:
    distance = np.abs(np.asarray(image).astype(int) - np.array(colour)).max(axis=2)
    return float((distance < tolerance).mean())


def test_a_seed_paints_the_same_scene_again() -> None:
    def world(seed: int) -> list[tuple[str, bytes]]:
        rng = random.Random(seed)
        drawn = [scenes.random_scene(rng) for _ in range(5)]
        return [(scenes.training_caption(scene, rng), scenes.render(scene, 64, rng).tobytes()) for scene in drawn]

    assert world(1) == world(1)
    assert world(1) != world(2)


@pytest.mark.parametrize("size_px", [64, 128])
def test_the_world_takes_any_size(size_px: int) -> None:
    image = painted(Scene("dog", "red", "plain", "snow"), size_px=size_px)
    assert image.size == (size_px, size_px)
    assert image.mode == "RGB"


def test_the_classes_and_contexts_are_the_papers() -> None:
    paper = {
        "backpack", "stuffed animal", "bowl", "can", "candle", "cat", "clock", "sneaker", "dog", "toy", "boot",
        "glasses", "cartoon", "teapot", "vase",
    }  # fmt: skip
    assert paper | {"person"} <= set(CLASSES)
    phrases = {phrase for phrase, _ in CONTEXTS.values()}
    assert {"in the snow", "on the beach", "in the jungle", "floating on top of water"} <= phrases


def test_the_caption_says_everything_in_the_papers_wording() -> None:
    assert Scene("dog", "red", "plain", "snow").caption == "a photo of a red dog in the snow"
    dressed = Scene("cat", "blue", "striped", "beach", accessory="yellow hat")
    assert dressed.caption == "a photo of a blue striped cat wearing a yellow hat on the beach"


def test_what_a_caption_says_is_read_back() -> None:
    rng = random.Random(1)
    for _ in range(500):
        scene = scenes.random_scene(rng)
        found = scenes.attributes_in(scene.caption)
        assert found["class"] == scene.class_word
        assert found["colour"] == scene.colour
        assert found["context"] == scene.context
        assert found.get("pattern", "plain") == scene.pattern
        assert found.get("accessory") == scene.accessory
    assert scenes.attributes_in("photo of duck toy") == {"class": "duck toy"}
    assert scenes.attributes_in("") == {}


@pytest.mark.parametrize("class_word", LIVE)
def test_every_accessory_is_seen(class_word: str) -> None:
    bare = painted(Scene(class_word, "gray", "plain", PLAIN_WALL), seed=2)
    dressed = {painted(Scene(class_word, "gray", "plain", PLAIN_WALL, worn), seed=2).tobytes() for worn in ACCESSORIES}
    assert len(dressed | {bare.tobytes()}) == len(ACCESSORIES) + 1


def test_a_training_caption_says_nothing_false() -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = scenes.random_scene(rng)
        caption = scenes.training_caption(scene, rng)
        assert scene.class_word in caption
        allowed = f"{scene.caption} photo of a {scene.class_word}".split()
        assert set(caption.split()) <= set(allowed)


@pytest.mark.parametrize("colour", [name for name in COLOURS if name not in ("white", "gray")])
@pytest.mark.parametrize("class_word", ["dog", "ball", "teapot", "car"])
def test_the_colour_of_the_caption_is_on_the_picture(class_word: str, colour: str) -> None:
    others = [name for name in ("red", "green", "blue", "yellow") if name != colour]
    image = painted(Scene(class_word, colour, "plain", PLAIN_WALL), seed=3)
    shares = {name: share_of_colour(image, COLOURS[name]) for name in [colour, *others]}
    assert shares[colour] > 0.10
    assert all(shares[other] < 0.5 * shares[colour] for other in others)


@pytest.mark.parametrize("class_word", list(CLASSES))
def test_every_class_is_large(class_word: str) -> None:
    for seed in range(5):
        image = np.asarray(painted(Scene(class_word, "red", "plain", PLAIN_WALL), seed)).astype(int)
        is_ground = (image.max(axis=2) - image.min(axis=2) < 12) & (image.min(axis=2) > 200)
        assert 0.06 < 1 - is_ground.mean() < 0.75


@pytest.mark.parametrize("attribute", ["pattern", "context", "class_word"])
def test_each_word_changes_the_picture(attribute: str) -> None:
    values = {"pattern": PATTERNS, "context": tuple(CONTEXTS), "class_word": tuple(CLASSES)}[attribute]
    words = {"class_word": "teapot", "colour": "red", "pattern": "plain", "context": "snow"}
    pictures = {painted(Scene(**(words | {attribute: value})), seed=5).tobytes() for value in values}
    assert len(pictures) == len(values)


def test_a_subject_is_the_same_individual_in_every_picture() -> None:
    rng = random.Random(0)
    assert subjects.random_subject(random.Random(4)) == subjects.random_subject(random.Random(4))
    for _ in range(20):
        subject = subjects.random_subject(rng, "ball")
        assert len({subject.left, subject.right, subject.emblem_colour}) == 3
        for _ in range(2):
            image = subjects.render_subject(subject, PLAIN_WALL, 64, rng)
            for colour in (subject.left, subject.right, subject.emblem_colour):
                assert share_of_colour(image, COLOURS[colour]) > 0.006, (subject, colour)


def test_some_individuals_are_kept_from_the_judge() -> None:
    rng = random.Random(0)
    drawn = [subjects.random_subject(rng) for _ in range(1000)]
    held_out = [subject for subject in drawn if subjects.is_held_out(subject)]
    assert 150 < len(held_out) < 250
    for wanted in (True, False):
        assert subjects.is_held_out(subjects.random_subject(rng, "dog", held_out=wanted)) == wanted


def test_a_near_miss_differs_in_one_thing() -> None:
    rng = random.Random(0)
    for _ in range(100):
        subject = subjects.random_subject(rng, held_out=False)
        for other in subjects.near_misses(subject, rng):
            pairs = zip(dataclasses.astuple(subject), dataclasses.astuple(other), strict=True)
            assert sum(a != b for a, b in pairs) == 1
            assert len({other.left, other.right, other.emblem_colour}) == 3
            assert not subjects.is_held_out(other)


def test_no_training_scene_is_like_a_subject() -> None:
    """A plain thing of the world shows one strong colour; a subject shows two halves of it in two."""
    subject = subjects.Subject("ball", "red", "blue", "star", "yellow")
    image = subjects.render_subject(subject, PLAIN_WALL, 64, random.Random(0))
    assert all(share_of_colour(image, COLOURS[name]) > 0.008 for name in ("red", "blue", "yellow"))
    for seed in range(30):
        for pattern in PATTERNS:
            world = painted(Scene("ball", "red", pattern, PLAIN_WALL), seed)
            assert share_of_colour(world, COLOURS["blue"]) < 0.001
            assert share_of_colour(world, COLOURS["yellow"]) < 0.001


def test_the_bundled_pictures_show_the_stated_individual() -> None:
    subject = subjects.Subject(*SAMPLE_SUBJECT)
    assert subjects.is_held_out(subject)
    for number, context in enumerate(SAMPLE_CONTEXTS, start=1):
        painted_now = subjects.render_subject(subject, context, SAMPLE_PX, random.Random(number))
        with Image.open(sample_folder() / f"{number}.png") as bundled:
            distance = np.abs(np.asarray(bundled.convert("RGB")).astype(int) - np.asarray(painted_now).astype(int))
        assert distance.mean() < 1, "another Pillow may round an edge, no more"


def test_five_pictures_of_the_sample_subject_are_bundled() -> None:
    files: list[Path] = sorted(sample_folder().glob("*.png"))
    assert [file.name for file in files] == ["1.png", "2.png", "3.png", "4.png", "5.png"]
    for file in files:
        with Image.open(file) as image:
            assert min(image.size) >= 64
    concept = sample_concept()
    assert concept.class_prompt == "photo of toy"
    assert concept.instance_prompt == "photo of zwx toy"
    assert "toy" in CLASSES
