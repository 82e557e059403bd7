"""Every finding against photos with the defect and without: nine of ten are found, one of twenty at most is blamed.

`python -m tests.data.test_findings` prints the table of docs/photos.md.
"""

import io
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.data.findings import Code, Finding, Measures, findings, likeness, measure
from dreambooth.data.focus import Focus
from dreambooth.data.photos import read_photo
from dreambooth.errors import PhotoError
from tests.harness.made_photos import (
    cut,
    darkened,
    each,
    jpeg,
    made_photo,
    out_of_focus,
    place,
    shaken,
    toned,
    trained_scale,
    with_bars,
)

NUM_GOOD, NUM_BAD = 50, 24
TONES = (("black", "white"), ("#2b1a08", "#fff0d0"), ("#0a1430", "#f2f6ff"), ("#301020", "#ffe8f0"))


@dataclass(frozen=True)
class Defect:
    """What is done to photos, by what amounts, and the photos it was done to."""

    amounts: str
    photos: Callable[[], Iterable[Image.Image]]


def _between(low: float, high: float, number: int) -> float:
    return low + (high - low) * (number % NUM_BAD) / (NUM_BAD - 1)


def _small(image: Image.Image, number: int) -> Image.Image:
    scale = _between(180, 440, number) / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _blurry(image: Image.Image, number: int) -> Image.Image:
    if number % 2:
        return jpeg(shaken(image, _between(12, 24, number), 45 * (number // 2 % 4)), 92)
    return jpeg(out_of_focus(image, _between(2, 5, number)), 92)


def _compressed(image: Image.Image, number: int) -> Image.Image:
    # As a set keeps it: written once more.
    return jpeg(jpeg(image, round(_between(5, 14, number))), 95)


def _strip(image: Image.Image, number: int) -> Image.Image:
    share = _between(0.12, 0.36, number)
    return cut(image, 0, 0.62 - share, 0, share) if number % 2 else cut(image, 0.72 - share, 0, share, 0)


def _bars(image: Image.Image, number: int) -> Image.Image:
    """Return the photo as others make it square: with bars at two of its edges."""
    colour, share = ("black", "white", "#202020")[number % 3], _between(0.06, 0.3, number)
    sideways = number % 2 == 1
    kept = round(510 * (1 - 2 * share))
    part = image.crop((80, 0, 80 + kept, 510) if sideways else (80, 0, 590, kept))
    return with_bars(part, (510 - kept) / 2 / kept, sideways=sideways, colour=colour)


DEFECTS: dict[Code, Defect] = {
    "small": Defect("short side 180 to 440 px", lambda: each(_small, NUM_BAD)),
    "blurry": Defect(
        "out of focus by 2 to 5 trained px, or shaken along 12 to 24 in four directions", lambda: each(_blurry, NUM_BAD)
    ),
    "dark": Defect(
        "10 to 28 % of the light", lambda: each(lambda image, n: darkened(image, _between(0.1, 0.28, n)), NUM_BAD)
    ),
    "aspect": Defect("cut to 2.1 : 1 and more, wide and tall", lambda: each(_strip, NUM_BAD)),
    "bars": Defect("made square by black, white or grey bars of 6 to 30 % at two edges", lambda: each(_bars, NUM_BAD)),
    "filter": Defect(
        "black and white, sepia, blue or red tones", lambda: each(lambda image, n: toned(image, *TONES[n % 4]), NUM_BAD)
    ),
    "compressed": Defect("JPEG of quality 5 to 14, saved again at 95", lambda: each(_compressed, NUM_BAD)),
}


@cache
def good() -> dict[str, Measures]:
    """Return the measures of photos without a fault."""
    return {str(number): measure(made_photo(number), Focus()) for number in range(NUM_GOOD)}


@cache
def blamed() -> dict[str, list[Finding]]:
    """Return what is found of photos without a fault, as ten sets of five."""
    names = list(good())
    sets = [names[start : start + 5] for start in range(0, NUM_GOOD, 5)]
    return {name: said for one in sets for name, said in findings({key: good()[key] for key in one}).items()}


def false_alarms(code: Code) -> float:
    """Return the share of the photos without a fault of which this is said."""
    return sum(any(one.code == code for one in said) for said in blamed().values()) / NUM_GOOD


def recall(code: Code) -> tuple[int, int]:
    """Return in how many photos with this defect it is found, and how many there are."""
    photos = list(DEFECTS[code].photos())
    said = [findings({"a": measure(photo, Focus())})["a"] for photo in photos]
    return sum(any(one.code == code for one in each_) for each_ in said), len(photos)


@pytest.mark.parametrize("code", list(DEFECTS))
def test_a_defect_is_found_and_good_photos_are_not_blamed(code: Code) -> None:
    found, count = recall(code)
    assert count >= 20
    assert found >= 0.9 * count
    assert false_alarms(code) <= 0.05


# Of several photos ---------------------------------------------------------------------------------------------------


def copies() -> list[tuple[Image.Image, Image.Image]]:
    """Return pairs of a photo and the same picture again, otherwise saved, cut, lit, coloured or mirrored."""
    changes: list[Callable[[Image.Image], Image.Image]] = [
        lambda image: jpeg(image.resize((image.width // 2, image.height // 2)), 60),
        lambda image: cut(image, 0.06, 0, 0, 0.06),
        lambda image: cut(image, 0.04, 0.04, 0.04, 0.04),
        lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        lambda image: darkened(image, 0.75),
        lambda image: image.convert("L").convert("RGB"),
    ]
    return [(made_photo(number), changes[number % 6](made_photo(number))) for number in range(NUM_BAD)]


def duplicate_recall() -> tuple[int, int]:
    """Return of how many second pictures it is said that they are the first again, and how many there are."""
    found = 0
    for number, (photo, copy) in enumerate(copies()):
        others = {"x": good()[str(number + 1)], "y": good()[str(number + 2)]}
        said = findings({"first": measure(photo, Focus()), **others, "again": measure(copy, Focus())})
        found += [one.other for one in said["again"] if one.code == "duplicate"] == ["first"]
    return found, NUM_BAD


def test_the_same_picture_again_is_found_and_named() -> None:
    found, count = duplicate_recall()
    assert found >= 0.9 * count
    assert false_alarms("duplicate") <= 0.05


def same_place_sets() -> list[dict[str, Measures]]:
    """Return six sets of four photos: another thing in another pose, light and cut before one place."""
    sets = []
    for number in range(6):
        rng = random.Random(number)
        photos = [made_photo(100 + 4 * number + one, background=number) for one in range(4)]
        moved = [cut(photo, *(rng.uniform(0, 0.03) for _ in range(4))) for photo in photos]
        lit = [darkened(photo, rng.uniform(0.93, 1.0)) for photo in moved]
        sets.append({str(one): measure(photo, Focus()) for one, photo in enumerate(lit)})
    return sets


def background_recall() -> tuple[int, int]:
    """Return of how many photos taken before one place that is said, and how many there are."""
    said = [one for photos in same_place_sets() for one in findings(photos).values()]
    return sum(any(each_.code == "backgrounds" for each_ in one) for one in said), len(said)


def test_photos_before_one_place_are_told_and_others_are_not() -> None:
    found, count = background_recall()
    assert found >= 0.9 * count
    assert false_alarms("backgrounds") <= 0.05
    # Another thing before the same place is no duplicate.
    duplicates = [
        one
        for photos in same_place_sets()
        for said in findings(photos).values()
        for one in said
        if one.code == "duplicate"
    ]
    assert len(duplicates) <= 0.05 * count


# Of files ------------------------------------------------------------------------------------------------------------


def sideways_recall(folder: Path) -> tuple[int, int]:
    """Return how many of turned and mirrored files are told to have been so, and how many there are."""
    found = 0
    for number in range(21):
        exif = Image.Exif()
        exif[0x0112] = 2 + number % 7
        made_photo(number).resize((90, 60)).save(folder / f"{number}.jpg", exif=exif)
        found += any("sideways" in note for note in read_photo(folder / f"{number}.jpg").notes)
    return found, 21


def test_turned_photos_are_told_and_upright_ones_are_not(tmp_path: Path) -> None:
    found, count = sideways_recall(tmp_path)
    assert found == count
    for number in range(NUM_GOOD):
        made_photo(number).resize((90, 60)).save(tmp_path / "upright.jpg")
        assert read_photo(tmp_path / "upright.jpg").notes == ()


def unreadable_recall(folder: Path) -> tuple[int, int]:
    """Return how many damaged, cut off, empty and mistaken files are refused with a reason, and how many there are."""
    stream = io.BytesIO()
    made_photo(0).resize((120, 90)).save(stream, "JPEG")
    whole, found = stream.getvalue(), 0
    broken = [b"", b"no photo", whole[:2], b"GIF89a" + whole, b"%PDF-1.4", b"\x89PNG\r\n\x1a\n" + whole]
    broken += [whole[: len(whole) * share // 20] for share in range(1, 16)]
    for number, content in enumerate(broken):
        (folder / f"{number}.jpg").write_bytes(content)
        try:
            read_photo(folder / f"{number}.jpg")
        except PhotoError as error:
            found += bool(error.why)
    return found, len(broken)


def test_unreadable_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    found, count = unreadable_recall(tmp_path)
    assert found == count >= 20


def test_every_finding_is_in_the_table() -> None:
    table = (Path(__file__).resolve().parents[2] / "docs" / "photos.md").read_text("utf-8")
    codes = [*DEFECTS, "duplicate", "backgrounds", "sideways"]
    assert [code for code in codes if f"(`{code}`)" not in table] == []
    assert [defect.amounts for defect in DEFECTS.values() if defect.amounts not in table] == []


# Details -------------------------------------------------------------------------------------------------------------


def test_a_zoomed_square_is_judged_by_its_own_pixels() -> None:
    photo = made_photo(3)
    assert findings({"a": measure(photo, Focus())})["a"] == []
    zoomed = findings({"a": measure(photo, Focus(zoom=2.0))})["a"]
    assert [one.code for one in zoomed] == ["small"]
    assert "255 pixels" in zoomed[0].sentence
    # What is trained at 256 px needs no more.
    assert findings({"a": measure(photo, Focus(zoom=2.0), 256)}, 256)["a"] == []


def test_a_square_moved_off_the_bars_is_not_blamed() -> None:
    framed = with_bars(made_photo(4), 0.2, sideways=True, colour="black")
    assert [one.code for one in findings({"a": measure(framed, Focus(0.5, 0.5, 1.0))})["a"]] == []
    edge = measure(framed, Focus(0.1, 0.5))
    assert "bars" in [one.code for one in findings({"a": edge})["a"]]


def test_tiny_plain_and_odd_pictures_are_measured_without_harm() -> None:
    for size in ((1, 1), (2, 900), (900, 2), (31, 17)):
        said = findings({"a": measure(Image.new("RGB", size, "teal"), Focus())})["a"]
        assert "small" in [one.code for one in said]
    assert likeness(measure(Image.new("RGB", (64, 64)), Focus()), measure(place(1, (64, 64)), Focus())) < 0.5
    assert trained_scale(Image.new("RGB", (1024, 2000))) == 2.0


def main() -> None:
    """Print the rows of the table."""
    import tempfile

    rows = [(code, defect.amounts, recall(code)) for code, defect in DEFECTS.items()]
    rows.append(
        ("duplicate", "the same again: half the size, cut by 4 to 6 %, mirrored, darker, grey", duplicate_recall())
    )
    rows.append(("backgrounds", "six sets of four before one place, cut and lit otherwise", background_recall()))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(("sideways", "EXIF orientations 2 to 8", sideways_recall(Path(folder))))
        rows.append(("unreadable", "damaged, cut off, empty, another kind of file", unreadable_recall(Path(folder))))
    for code, amounts, (found, count) in rows:
        alarms = round(false_alarms(code) * NUM_GOOD) if code != "unreadable" else 0  # type: ignore[arg-type]
        print(f"| {code} | {amounts} | {found} of {count} | {alarms} of {NUM_GOOD} |")


if __name__ == "__main__":
    main()
