"""Masks beside photos: whose they are, what is wrong with them, and what happens to them with their photo."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.data.archives import unpacked_folder
from dreambooth.data.concept_notices import concept_notices
from dreambooth.data.dataset import load_concept
from dreambooth.data.masks import mask_beside, mask_files, read_mask, remove_mask
from dreambooth.data.photo_sets import photo_set
from dreambooth.data.photos import find_photos, read_photo
from dreambooth.errors import PhotoError
from dreambooth.records.workspace import Workspace

SIZE = (60, 40)


def corner(size: tuple[int, int] = SIZE) -> Image.Image:
    """Return a mask whose top left quarter is the subject."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1] // 2))
    return mask


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """Return a folder with three photos: two of them have masks, one named in other cases."""
    folder = tmp_path / "masked"
    folder.mkdir()
    for number, name in enumerate(("a.jpg", "B.png", "c.webp")):
        Image.new("RGB", SIZE, (40 * number, 90, 120)).save(folder / name)
    corner().save(folder / "a-masklabel.png")
    corner((30, 20)).save(folder / "b-MaskLabel.PNG")
    return folder


def loaded(folder: Path, *, with_masks: bool = True, reader: int = 3) -> dict[str, Path | None]:
    """Return the mask of each photo of a folder as training reads it."""
    concept = Concept("photo of zwx dog", str(folder))
    photos = load_concept(
        concept, read_prompts_from_txts=False, num_class_images=0, report=print, reader=reader, with_masks=with_masks
    ).instance
    return {photo.path.name: photo.mask for photo in photos}


def test_masks_are_no_photos_and_belong_to_photos_by_their_names(masked: Path) -> None:
    found = find_photos(masked)
    assert ([photo.name for photo in found.photos], found.skipped) == (["a.jpg", "B.png", "c.webp"], [])
    a, b = masked / "a-masklabel.png", masked / "b-MaskLabel.PNG"
    assert loaded(masked) == {"a.jpg": a, "B.png": b, "c.webp": None}
    assert set(loaded(masked, with_masks=False).values()) == {None}
    # To a run that an earlier version began they are what they were to it.
    assert loaded(masked, reader=2) == dict.fromkeys(["a-masklabel.png", "a.jpg", "b-MaskLabel.PNG", "B.png", "c.webp"])


@pytest.mark.parametrize(
    ("size", "mode", "colour", "why"),
    [
        (SIZE, "L", 0, 'The mask "a-masklabel.png" is all black. Nothing is painted as the subject.'),
        ((40, 60), "L", 255, 'The mask "a-masklabel.png" has another shape than its photo. It has 40 x 60 pixels,'),
        (SIZE, "RGBA", (255, 255, 255, 0), 'The mask "a-masklabel.png" is transparent in places.'),
    ],
)
def test_a_mask_that_says_nothing_of_its_photo_is_refused_in_one_sentence(
    masked: Path, size: tuple[int, int], mode: str, colour: int | tuple[int, ...], why: str
) -> None:
    Image.new(mode, size, colour).save(masked / "a-masklabel.png")
    with pytest.raises(PhotoError) as refused:
        loaded(masked)
    assert str(refused.value).startswith(why)
    assert loaded(masked, with_masks=False), "nothing reads it then"


def test_masks_without_effect_and_without_a_photo_are_told_before_the_start(masked: Path) -> None:
    concepts = [Concept("photo of zwx dog", str(masked), "photo of dog")]
    assert concept_notices(concepts, 0.1) == [
        "2 photos have masks of the subject; the base model finds the subject of the other 1 (background_weight is "
        "0.1)."
    ]
    (notice,) = concept_notices(concepts, 1.0)
    assert notice.startswith("2 photos have masks without effect: set background_weight to 0.1")
    (masked / "a.jpg").rename(masked / "d.jpg")
    (masked / "b-MaskLabel.PNG").unlink()
    assert concept_notices(concepts, 1.0) == [
        'No photo belongs to the mask "a-masklabel.png". The mask of "dog.jpg" is named "dog-masklabel.png".'
    ]


def zipped(folder: Path, archive: Path) -> Path:
    """Return a zip of a folder's files."""
    with zipfile.ZipFile(archive, "w") as written:
        for file in sorted(folder.iterdir()):
            written.write(file, f"mine/{file.name}")
    return archive


@pytest.mark.parametrize("way", ["folder", "zip", "drop"])
def test_masks_come_along_with_their_photos_wherever_these_come_in(masked: Path, tmp_path: Path, way: str) -> None:
    corner().save(masked / "nobody-masklabel.png")
    Image.new("L", SIZE).save(masked / "c-masklabel.png")
    kept = photo_set(Workspace(tmp_path / "data"), "dog")
    if way == "folder":
        lines = kept.add_folder(masked)
    elif way == "zip":
        lines = kept.add([zipped(masked, tmp_path / "mine.zip")])
    else:
        lines = kept.add(sorted(masked.iterdir()))
    masks = {one.known_as: one.mask for one in kept.contents()}
    assert {name for name, mask in masks.items() if mask} == {"a.jpg", "B.png"}
    for mask in filter(None, masks.values()):
        assert np.asarray(read_mask(mask, SIZE))[0, 0] == 255
        assert mask.parent == kept.folder
    problems = " ".join(sentence for fine, sentence in lines if not fine)
    assert "all black" in problems
    if way != "folder":  # a folder of one's own may hold the masks of photos that are elsewhere
        assert "nobody-masklabel.png" in problems
    assert len(kept.photos()) == 3
    # Training reads them from there.
    assert sorted(filter(None, loaded(kept.folder).values())) == sorted(filter(None, masks.values()))


def test_a_zip_for_the_command_line_has_masks_too_and_a_bad_one_is_refused_when_trained(
    masked: Path, tmp_path: Path
) -> None:
    folder = unpacked_folder(zipped(masked, tmp_path / "mine.zip"), tmp_path / "data").photos[0].parent
    assert [bool(mask) for mask in loaded(folder).values()] == [True, True, False]
    corner((20, 90)).save(masked / "a-masklabel.png")
    unpacked = unpacked_folder(zipped(masked, tmp_path / "bad.zip"), tmp_path / "data")
    assert [str(path) for path, _ in unpacked.skipped] == ["mine/a-masklabel.png"]
    assert "has another shape than its photo" in unpacked.skipped[0][1]
    with pytest.raises(PhotoError, match="another shape than its photo"):
        loaded(unpacked.photos[0].parent)


def test_a_mask_turns_goes_and_comes_back_with_its_photo(masked: Path, tmp_path: Path) -> None:
    kept = photo_set(Workspace(tmp_path / "data"), "dog")
    kept.add_folder(masked)
    photo = kept.photos()[1]
    kept.turn(photo.name)
    (mask,) = (one.mask for one in kept.contents() if one.path == photo)
    assert mask is not None
    turned = read_mask(mask, read_photo(photo).image.size)
    assert turned.size == (20, 30), "turned as the photo, which has twice its sides"
    assert [turned.getpixel(place) for place in ((0, 0), (19, 0), (19, 14), (19, 29))] == [0, 255, 255, 0]
    kept.remove(photo.name)
    assert mask_files(kept.photos()).keys() == {kept.photos()[0]}
    kept.restore(photo.name)
    assert read_mask(mask, (40, 60)).tobytes() == turned.tobytes()
    remove_mask(photo)
    assert mask_beside(photo) is None
