"""A photo set on disk: what is taken in, kept beside the photos, changed in a click, and gone when it is deleted."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth.config.training import TrainingConfig
from dreambooth.data.dataset import load_concept
from dreambooth.data.findings import Finding
from dreambooth.data.focus import Focus, read_focus
from dreambooth.data.photo_sets import PhotoSet, photo_set, photo_sets
from dreambooth.data.photos import read_photo
from dreambooth.data.removed_photos import forget_all_removed
from dreambooth.data.words import Words
from dreambooth.errors import PhotoError
from dreambooth.records.workspace import Workspace
from tests.harness.made_photos import made_photo
from ui.concepts import cards as photo_cards


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Return an empty data folder."""
    return Workspace(tmp_path / "data")


def taken(tmp_path: Path, count: int = 3, kind: str = "jpg") -> list[Path]:
    """Return photos as a camera leaves them."""
    paths = [tmp_path / f"IMG {number}.{kind}" for number in range(count)]
    tmp_path.mkdir(exist_ok=True)
    for number, path in enumerate(paths):
        made_photo(number).resize((272, 204)).save(path, quality=92)
    return paths


def test_every_photo_gets_a_square_at_once_and_training_takes_it(workspace: Workspace, tmp_path: Path) -> None:
    kept = photo_set(workspace, "dog")
    assert [fine for fine, _ in kept.add(taken(tmp_path))] == [True] * 3
    assert set(kept.focuses()) == {photo.name for photo in kept.photos()}
    name = kept.photos()[1].name
    kept.keep_focus(name, Focus(0.9, 0.5, 2.0))
    # The true centre: a square of half the side at the right edge.
    assert kept.focus(name) == Focus((272 - 51) / 272, 0.5, 2.0)
    loaded = load_concept(
        kept.concept("photo of zwx dog", ""), read_prompts_from_txts=False, num_class_images=0, report=print
    )
    assert {one.path.name: one.focus for one in loaded.instance} == kept.focuses()
    kept.propose_again(name)
    assert kept.focus(name).zoom == 1.0


def test_photos_keep_their_order_whatever_is_done_to_them(workspace: Workspace, tmp_path: Path) -> None:
    kept = photo_set(workspace, "dog")
    kept.add(taken(tmp_path))
    names = [photo.name for photo in kept.photos()]
    kept.turn(names[0])
    kept.brighten(names[1])
    assert [photo.name for photo in kept.photos()] == names
    assert [kept.shown_name(name) for name in names] == ["IMG 0.jpg", "IMG 1.jpg", "IMG 2.jpg"]


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_turning_takes_the_square_along(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    kept = photo_set(workspace, "dog")
    kept.add(taken(tmp_path, 1, kind))
    name = kept.photos()[0].name
    kept.keep_focus(name, Focus(0.25, 0.5, 2.0))
    before = read_photo(kept.photo(name)).image
    cut = before.crop(tuple(round(edge) for edge in kept.focus(name).box(before.size)))
    kept.turn(name)
    after = read_photo(kept.photo(name)).image
    assert after.size == before.size[::-1]
    turned = after.crop(tuple(round(edge) for edge in kept.focus(name).box(after.size)))
    expected = np.asarray(cut.transpose(Image.Transpose.ROTATE_270), dtype=float)
    assert np.abs(np.asarray(turned, dtype=float) - expected).mean() < 3


def test_lightening_a_dark_photo_mends_what_was_found(workspace: Workspace, tmp_path: Path) -> None:
    made_photo(2).point(lambda value: round(value * 0.2)).save(tmp_path / "night.png")
    kept = photo_set(workspace, "dog")
    kept.add([tmp_path / "night.png"])
    name = kept.photos()[0].name
    assert "dark" in [one.code for one in kept.findings(512)[name]]
    kept.brighten(name)
    assert "dark" not in [one.code for one in kept.findings(512)[name]]


def test_notes_of_the_file_stay_known(workspace: Workspace, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    made_photo(0).save(tmp_path / "side.jpg", exif=exif)
    kept = photo_set(workspace, "dog")
    ((fine, sentence),) = kept.add([tmp_path / "side.jpg"])
    assert fine
    assert "turned upright" in sentence
    (said,) = kept.findings(512).values()
    assert [one.code for one in said] == ["sideways"]


def test_a_zip_is_taken_in_with_its_captions(workspace: Workspace, tmp_path: Path) -> None:
    photos = taken(tmp_path)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in photos:
            archive.write(path, path.name)
        archive.writestr("IMG 1.txt", "photo of zwx dog asleep")
        archive.writestr("notes.pdf", "no photo")
    kept = photo_set(workspace, "dog")
    told = kept.add([tmp_path / "all.zip", photos[0]])
    assert told[0] == (True, "all.zip: 3 photos were added.")
    assert [fine for fine, _ in told] == [True, False, False]
    assert len(kept.photos()) == len(kept.focuses()) == 3
    assert sorted(kept.caption(photo.name) for photo in kept.photos()) == ["", "", "photo of zwx dog asleep"]
    assert kept.with_captions({}) == {"read_prompts_from_txts": True}
    assert list(workspace.datasets_dir.iterdir()) == [kept.folder]
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no zip")
    ((fine, sentence),) = kept.add([tmp_path / "bad.zip"])
    assert not fine
    assert "bad.zip is not unpacked." in sentence
    assert list(workspace.datasets_dir.iterdir()) == [kept.folder]


def test_a_folder_is_read_one_deep_and_copied(workspace: Workspace, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "deeper").mkdir(parents=True)
    taken(folder)
    (folder / "IMG 2.txt").write_text("asleep")
    (folder / "x.doc").write_text("no photo")
    kept = photo_set(workspace, "dog")
    told = kept.add_folder(folder)
    assert [fine for fine, _ in told] == [True, True, True, False, False]
    assert kept.caption(kept.photos()[2].name) == "asleep"
    assert len(list(folder.glob("*.jpg"))) == 3


def test_one_bad_file_costs_no_other_wherever_photos_come_in(workspace: Workspace, tmp_path: Path) -> None:
    first, last = taken(tmp_path / "mine", 2)
    wide = tmp_path / "mine" / "IMG 1b.png"
    Image.new("RGB", (66_000, 700)).save(wide)
    for told in (
        photo_set(workspace, "dropped").add([first, wide, last]),
        photo_set(workspace, "folder").add_folder(tmp_path / "mine"),
        photo_set(workspace, "class").add_class_pictures([first, wide, last]),
    ):
        assert sorted(fine for fine, _ in told) == [False, True, True]
        assert [sentence for fine, sentence in told if not fine] == [
            "IMG 1b.png is too long. It has 66000 x 700 pixels; a side has at most 65500. Crop it to the subject."
        ]
    assert [len(photo_set(workspace, name).photos()) for name in ("dropped", "folder")] == [2, 2]
    assert len(photo_set(workspace, "class").class_pictures()) == 2


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_bad_captions_and_squares_are_told_and_good_ones_taken(workspace: Workspace, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "mine"
    names = [path.name for path in taken(source)]
    (source / "IMG 0.TXT").write_text("first", "utf-16")
    (source / "IMG 1.txt").write_bytes("café".encode("cp1252"))
    (source / "IMG 2.txt").write_text("x" * 2001)
    squares = {names[0]: {"x": 0.5, "y": 0.5, "zoom": 4}, "gone.jpg": {"x": 0.5, "y": 0.5, "zoom": 1}}
    (source / "focus.json").write_text(json.dumps(squares), "utf-8-sig")
    kept = photo_set(workspace, "dog")
    if kind == "folder":
        told = kept.add_folder(source)
    else:
        with zipfile.ZipFile(tmp_path / "mine.zip", "w", zipfile.ZIP_STORED) as archive:
            for path in source.iterdir():
                archive.write(path, path.name)
        told = kept.add([tmp_path / "mine.zip"])
    problems = " ".join(sentence for fine, sentence in told if not fine)
    for text in ("IMG 1.txt", "0xE9", "IMG 2.txt", "too long", '"gone.jpg", which does not exist'):
        assert text in problems
    assert str(workspace.data_dir) not in problems
    photos = kept.photos()
    assert [kept.shown_name(photo.name) for photo in photos] == names
    assert [kept.caption(photo.name) for photo in photos] == ["first", "", ""]
    assert kept.focus(photos[0].name).zoom == 4
    assert len(kept.focuses()) == 3
    # What is left trains: nothing that cannot be read lies in the set.
    loaded = load_concept(kept.concept("x", "y"), read_prompts_from_txts=True, num_class_images=0, report=print)
    assert [photo.caption for photo in loaded.instance].count("first") == 1


def test_removing_a_photo_removes_all_that_is_kept_of_it(workspace: Workspace, tmp_path: Path) -> None:
    kept = photo_set(workspace, "dog")
    kept.add(taken(tmp_path))
    kept.keep_words(Words())
    name = kept.photos()[0].name
    kept.keep_caption(name, "  photo of\nzwx dog ")
    assert kept.caption(name) == "photo of zwx dog"
    kept.remove(name)
    left = b"".join(path.read_bytes() for path in kept.folder.glob("*.json"))
    assert name.encode() not in left
    assert not list(kept.folder.glob("*.txt"))
    with pytest.raises(PhotoError):
        kept.remove(name)
    with pytest.raises(PhotoError):
        kept.keep_focus("../" + name, Focus())
    with pytest.raises(PhotoError):
        kept.keep_caption(kept.photos()[0].name, "x" * 3000)


def test_class_pictures_of_ones_own_lie_beside_and_go_with_the_set(workspace: Workspace, tmp_path: Path) -> None:
    kept = photo_set(workspace, "dog")
    photos = taken(tmp_path, 5)
    kept.add(photos[:3])
    assert kept.concept("a", "b").class_data_dir is None
    assert [fine for fine, _ in kept.add_class_pictures(photos[3:])] == [True, True]
    assert kept.concept("a", "b").class_data_dir == str(kept.class_folder)
    assert photo_sets(workspace) == [kept]
    assert len(kept.delete()) == 5
    assert list(workspace.datasets_dir.iterdir()) == []


def test_several_concepts_are_trained_together_until_one_leaves(workspace: Workspace, tmp_path: Path) -> None:
    photos = taken(tmp_path, 6)
    sets = [photo_set(workspace, name) for name in ("dog", "cup", "cat")]
    for one, start in zip(sets, (0, 2, 4), strict=True):
        one.add(photos[start : start + 2])
        one.keep_words(Words(instance_prompt=f"photo of {one.name}", class_prompt="thing"))
    sets[0].keep_together(sets)
    for one in sets:
        assert one.together() == sets
    prompts = [concept.instance_prompt for concept in sets[1].concepts("as typed", "thing")]
    assert prompts == ["photo of dog", "as typed", "photo of cat"]
    TrainingConfig(concepts=sets[1].concepts("as typed", "thing"), with_prior_preservation=True).checked()
    sets[1].leave()
    assert sets[1].together() == [sets[1]]
    assert sets[0].together() == [sets[0], sets[2]]
    sets[2].delete()
    assert sets[0].together() == [sets[0]]


def test_damaged_sidecars_harm_nothing(workspace: Workspace, tmp_path: Path) -> None:
    kept = photo_set(workspace, "dog")
    kept.add(taken(tmp_path, 2))
    for content in (
        "",
        "[]x",
        "{",
        '{"a": 1}',
        "[" * 100_000,
        '{"a": {"name": 3, "notes": 5}}',
        "null",
        '["../..", 4]',
    ):
        for name in ("photos.json", "together.json", "words.json", "focus.json"):
            (kept.folder / name).write_text(content)
        assert len(kept.photos()) == 2
        assert kept.words() == Words()
        assert kept.together() == [kept]
        assert kept.focuses() == {}
        assert kept.shown_name(kept.photos()[0].name)
    # Training says so instead of taking other squares.
    with pytest.raises(PhotoError):
        read_focus(kept.folder)
    assert json.loads((kept.folder / "together.json").read_text())[0] == "../.."


# What the page says of them ------------------------------------------------------------------------------------------


def test_the_report_counts_advises_and_escapes() -> None:
    report = photo_cards.set_report(2, [(True, "a.jpg was added."), (False, "b<.txt is no photo.")], {}, "pet")
    assert "2 photos" in report
    assert "3 to 5 photos are recommended" in report
    assert "b&lt;.txt" in report
    assert "recommended" not in photo_cards.set_report(5, [], {}, "pet")
    assert "No photos yet" in photo_cards.set_report(0, [], {}, "pet")
    found = {"a": [Finding("dark", "x")], "b": [Finding("sideways", "y")]}
    assert "1 needs attention" in photo_cards.set_report(5, [], found, "person")
    assert "More than 20" in photo_cards.set_report(21, [], {}, "style")


def test_cards_escape_what_came_from_people() -> None:
    card = photo_cards.PhotoCard("a'><b>.png", "<img src=x>", "/tmp/a b'.png", [Finding("dark", "<i>")], "<script>")
    text = photo_cards.cards([card], None) + photo_cards.editor("a'><b>", "/x'y", (10, 20), Focus())
    for raw in ("<img src=x>", "<i>", "<script>", "a'><b>", "/x'y"):
        assert raw not in text
    assert "data-act='brighten'" in text


def test_a_removed_photo_comes_back_whole_within_the_hour(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        made_photo(number).save(folder / f"{number}.png")
    kept = PhotoSet(tmp_path / "datasets" / "dog")
    kept.add(sorted(folder.iterdir()))
    before = kept.contents()
    name = before[1].path.name
    kept.keep_caption(name, "asleep")
    kept.keep_focus(name, Focus(0.4, 0.6, 1.5))
    as_it_was = kept.contents()
    kept.remove(name)
    assert [one.path.name for one in kept.contents()] == [before[0].path.name, before[2].path.name]
    assert not [path for path in kept.folder.iterdir() if path.name.startswith(Path(name).stem)]
    kept.restore(name)
    assert kept.contents() == as_it_was
    kept.remove(name)
    forget_all_removed(tmp_path / "datasets", kept_s=-1)
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["dog"], "deleted for good"
    for gone in (name, "../in/0.png", "x"):
        with pytest.raises(PhotoError, match="cannot be brought back"):
            kept.restore(gone)
    kept.remove(before[0].path.name)
    kept.delete()
    assert list((tmp_path / "datasets").iterdir()) == []
