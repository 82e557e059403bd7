"""Class images are made once, added to what is there, and never take the place of anything."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.data import class_images
from dreambooth.data.class_images import ensure_class_images
from dreambooth.errors import ConfigError
from dreambooth.models.base import Base, load_base
from dreambooth.models.card import BaseCard
from dreambooth.pictures.generation import Picture

CONCEPT = Concept("photo of zwx dog", "photos", "photo of dog")


class Painter:
    """Stands in for the models: picture i has the level i, and each batch takes two denoising steps."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.requests: list[GenerationConfig] = []
        self.num_loads = 0

    def base(self) -> Base:
        self.num_loads += 1
        return Base("", None, None, None, None, {}, BaseCard())

    def generate_images(
        self,
        base: Base,
        request: GenerationConfig,
        *,
        indices: Sequence[int],
        batch_size: int,
        stream: str,
        on_step: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        **_: object,
    ) -> Any:
        assert stream == "class_images"
        self.asked.append(list(indices))
        self.requests.append(request)
        for start in range(0, len(indices), batch_size):
            for _step in range(2):
                on_step(0, 0)
                if should_stop():
                    return
            for index in indices[start : start + batch_size]:
                size = (request.width or 0, request.height or 0)
                yield Picture(Image.new("RGB", size, (index, 0, 0)), (request.seed or 0) + index, "recipe")


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> Painter:
    painter = Painter()
    monkeypatch.setattr(class_images, "generate_images", painter.generate_images)
    return painter


def ensure(painter: Painter, tmp_path: Path, num: int, concept: Concept = CONCEPT, **changes: Any) -> list[Path]:
    settings: dict[str, Any] = {
        "base_factory": painter.base, "cache_dir": tmp_path / "cache", "base_key": "base", "vae_key": "vae",
        "num_class_images": num, "resolution_px": 16, "num_inference_steps": 20, "guidance_scale": 7.5,
        "seed": 7, "batch_size": 2,
        "report": lambda done, total: None, "should_stop": lambda: False,
    }  # fmt: skip
    return ensure_class_images(concept, **(settings | changes))


def levels(paths: list[Path]) -> list[int]:
    return [Image.open(path).getpixel((0, 0))[0] for path in paths]


def test_the_cache_is_filled_once_and_grown(painter: Painter, tmp_path: Path) -> None:
    three = ensure(painter, tmp_path, 3)
    assert levels(three) == [0, 1, 2]
    assert painter.asked == [[0, 1, 2]]
    assert ensure(painter, tmp_path, 3) == three
    assert painter.num_loads == 1
    five = ensure(painter, tmp_path, 5)
    assert five[:3] == three
    assert painter.asked == [[0, 1, 2], [3, 4]]
    assert ensure(painter, tmp_path, 2) == three[:2]
    assert painter.num_loads == 2


def test_what_is_asked_of_the_base(painter: Painter, tmp_path: Path) -> None:
    (path,) = ensure(painter, tmp_path, 1)
    assert painter.requests == [
        GenerationConfig(
            prompt="photo of dog", num_inference_steps=20, guidance_scale=7.5, height=16, width=16, seed=7
        )
    ]  # fmt: skip
    assert json.loads((path.parent / "info.json").read_text()) == {
        "base": "base", "vae": "vae", "prompt": "photo of dog", "sampler": "DDIM", "num_inference_steps": 20,
        "guidance_scale": 7.5, "size_px": 16, "seed": 7,
    }  # fmt: skip


@pytest.mark.parametrize("change", [
    {"base_key": "other"}, {"vae_key": "other"}, {"num_inference_steps": 21}, {"guidance_scale": 7.0},
    {"resolution_px": 24}, {"seed": 8}, {"concept": Concept("photo of zwx dog", "photos", "photo of cat")},
])  # fmt: skip
def test_anything_they_depend_on_has_its_own_cache(painter: Painter, tmp_path: Path, change: dict[str, Any]) -> None:
    first = ensure(painter, tmp_path, 1)
    assert ensure(painter, tmp_path, 1, **change)[0].parent != first[0].parent
    assert painter.num_loads == 2


def test_the_photos_and_the_batch_size_do_not_matter_to_the_cache(painter: Painter, tmp_path: Path) -> None:
    first = ensure(painter, tmp_path, 1)
    again = ensure(painter, tmp_path, 1, Concept("other words", "other photos", "photo of dog"), batch_size=4)
    assert again == first


def test_a_users_folder_is_filled_up_and_nothing_in_it_touched(painter: Painter, tmp_path: Path) -> None:
    own = tmp_path / "dogs"
    own.mkdir()
    Image.new("RGB", (9, 9), (200, 0, 0)).save(own / "rex.jpg")
    Image.new("RGB", (9, 9), (100, 0, 0)).save(own / "10.png")
    (own / "broken.png").write_bytes(b"no picture")
    (own / "notes.txt").write_text("mine")
    (own / ".DS_Store").write_bytes(b"x")
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    concept = Concept("photo of zwx dog", "photos", "photo of dog", str(own))

    paths = ensure(painter, tmp_path, 4, concept)

    assert painter.asked == [[0, 1]]  # two of the five files are pictures
    assert {path.name: path.read_bytes() for path in own.iterdir() if path.name in before} == before
    added = sorted(path.name for path in own.iterdir() if path.name not in before)
    assert [name[-9:] for name in added] == ["00000.png", "00001.png"]
    assert [path.name for path in paths] == ["10.png", *added, "rex.jpg"]
    assert not (tmp_path / "cache").exists()
    ensure(painter, tmp_path, 4, concept)
    assert painter.num_loads == 1


def test_a_users_folder_with_enough_pictures_needs_no_model(painter: Painter, tmp_path: Path) -> None:
    own = tmp_path / "dogs"
    own.mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (9, 9)).save(own / f"{number}.png")
    concept = Concept("zwx", "photos", "dog", str(own))
    assert [path.name for path in ensure(painter, tmp_path, 2, concept)] == ["1.png", "2.png"]
    assert painter.num_loads == 0


def test_a_users_folder_that_is_not_there_yet_is_made(painter: Painter, tmp_path: Path) -> None:
    paths = ensure(painter, tmp_path, 2, Concept("zwx", "photos", "dog", str(tmp_path / "a" / "b")))
    assert [path.parent for path in paths] == [tmp_path / "a" / "b"] * 2


def test_stopped_work_goes_on_where_it_was(painter: Painter, tmp_path: Path) -> None:
    whole = levels(ensure(painter, tmp_path / "whole", 6))
    polls = iter([False] * 4 + [True] * 9)  # the first is asked before the models are loaded
    part = ensure(painter, tmp_path, 6, should_stop=lambda: next(polls))
    assert levels(part) == [0, 1]
    assert levels(ensure(painter, tmp_path, 6)) == whole
    assert painter.asked[1:] == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5]]


def test_a_generated_picture_that_is_damaged_is_made_again_under_its_own_number(
    painter: Painter, tmp_path: Path
) -> None:
    whole = ensure(painter, tmp_path, 5)
    contents = [path.read_bytes() for path in whole]
    whole[2].write_bytes(contents[2][: len(contents[2]) // 2])
    (whole[0].parent / "00005.png").write_bytes(contents[4])  # as an earlier version did: one more beside it
    assert ensure(painter, tmp_path, 5) == whole
    assert [path.read_bytes() for path in whole] == contents
    assert painter.asked[1:] == [[2, 3]], "with those that were in its batch"
    users = tmp_path / "users"
    users.mkdir()
    (users / "mine.png").write_bytes(contents[0][:100])
    concept = Concept("zwx", "photos", "dog", str(users))
    assert len(ensure(painter, tmp_path, 1, concept)) == 1
    assert (users / "mine.png").read_bytes() == contents[0][:100], "what is the user's stays as it is"


def test_stopped_before_the_first_loads_no_model(painter: Painter, tmp_path: Path) -> None:
    assert ensure(painter, tmp_path, 6, should_stop=lambda: True) == []
    assert painter.num_loads == 0


def test_progress_is_told_between_steps_too(painter: Painter, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    ensure(painter, tmp_path, 1)
    ensure(painter, tmp_path, 3, report=lambda done, total: told.append((done, total)))
    # The two come at once, in one batch.
    assert told == [(1, 3), (1, 3), (1, 3), (3, 3)]


def test_a_missing_class_prompt_is_an_error(painter: Painter, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="class_prompt"):
        ensure(painter, tmp_path, 1, Concept("photo of zwx dog", "photos"))


def test_real_models_fill_the_cache(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = dataclasses.replace(load_base(str(tiny_base_folder)), name="")
    paths = ensure(Painter(), tmp_path, 3, base_factory=lambda: base, num_inference_steps=2, resolution_px=32)
    images = [Image.open(path) for path in paths]
    assert [image.size for image in images] == [(32, 32)] * 3
    assert len({image.tobytes() for image in images}) == 3
    assert [f"Seed: {7 + i}," in image.info["parameters"] for i, image in enumerate(images)] == [True] * 3
