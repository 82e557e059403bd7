"""The first tab in a real browser: drop photos, read what is wrong, move a square, and train exactly that."""

import io
import json
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageFilter

from dreambooth.data.dataset import Crop, cropped, load_concept
from dreambooth.data.photo_sets import SAMPLE_SET, Line, PhotoSet, Taken, photo_set, photo_sets
from dreambooth.data.photos import find_photos, read_photo
from dreambooth.data.samples import sample_folder
from tests.harness.made_photos import darkened, made_photo
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import Visit
from ui.concepts.words import sample_words

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page of this machine alone."""
    with open_page(tmp_path_factory.mktemp("page"), takes_folders=True) as page:
        yield page


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return five photos as files: two without a fault, one blurry, one dark, one that is the first again."""
    folder = tmp_path_factory.mktemp("photos")
    first = made_photo(0)
    photos = {
        "good.jpg": first, "other.jpg": made_photo(1), "soft.jpg": made_photo(2).filter(ImageFilter.GaussianBlur(5)),
        "night.jpg": darkened(made_photo(3), 0.15), "again.jpg": first.crop((24, 0, *first.size)),
    }  # fmt: skip
    for name, photo in photos.items():
        photo.save(folder / name, quality=93)
    return [str(folder / name) for name in photos]


def newest(opened: OpenPage) -> PhotoSet:
    """Return the set last worked with."""
    return photo_sets(opened.workspace)[0]


def drop(visit: Visit, files: list[str], count: int) -> None:
    """Drop photos and wait until their cards are there."""
    visit.page.locator("#photos input[type=file]").first.set_input_files(files)
    visit.page.locator("#views .db-photo").nth(count - 1).wait_for()


def at_512(visit: Visit) -> None:
    """Set the resolution that photos are judged at to that of Stable Diffusion."""
    visit.new_training()
    visit.page.locator("#field-resolution input").wait_for()
    visit.fill("field-resolution", "512")
    visit.tab("Upload & Concepts")
    visit.page.locator("#views [data-code=blurry]").wait_for()


def test_from_dropped_photos_to_the_square_that_is_trained(
    browser: "Browser", opened: OpenPage, dropped: list[str]
) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    visit.new_set()
    drop(visit, dropped, 5)
    visit.until("report", "5 photos")
    at_512(visit)
    cards = page.locator("#views .db-photo")
    assert "Looks good" in cards.nth(0).inner_text()
    assert "blurry" in cards.nth(2).inner_text()
    assert "very dark" in cards.nth(3).inner_text()
    assert "same picture as photo 1" in cards.nth(4).inner_text()
    visit.until("report", "3 need attention")

    # A finding goes with one click: the dark one is lightened, the second of two removed.
    cards.nth(3).get_by_role("button", name="Brighten").click()
    page.wait_for_function("!document.querySelector('#views [data-code=dark]')")
    cards.nth(4).get_by_role("button", name="Remove photo 5").click()
    visit.until("report", "again.jpg was removed.")
    page.get_by_role("button", name="Bring again.jpg back").click()
    visit.until("report", "again.jpg is back.")
    assert "same picture as photo 1" in cards.nth(4).inner_text(), "where it was"
    cards.nth(4).get_by_role("button", name="Remove photo 5").click()
    visit.until("report", "again.jpg was removed.")

    # The square is moved by hand, then with the keyboard; the cut follows, and is what training cuts.
    cards.nth(0).locator(".db-view").click()
    square = page.locator("#editor .db-square")
    square.wait_for()
    square.scroll_into_view_if_needed()
    page.wait_for_timeout(800)
    before = page.locator("#cut img").get_attribute("src")
    box = square.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 25, y, steps=4)
    page.mouse.up()
    page.wait_for_function(f"document.querySelector('#cut img').getAttribute('src') != {json.dumps(before)}")
    moved = page.locator("#cut img").get_attribute("src")
    for key in ("ArrowLeft", "ArrowLeft", "+", "+"):
        square.press(key)
    page.wait_for_function(f"document.querySelector('#cut img').getAttribute('src') != {json.dumps(moved)}")
    kept = newest(opened)
    photo = kept.photos()[0]
    focus = kept.focus(photo.name)
    assert focus.zoom == pytest.approx(1.21, abs=0.01)
    (loaded,) = [
        one for one in load_concept(kept.concept("a", ""), read_prompts_from_txts=False, num_class_images=0,
                                    report=print).instance if one.path == photo
    ]  # fmt: skip
    source = page.locator("#cut img").get_attribute("src")
    assert source == page.locator("#views .db-photo").nth(0).locator("img").get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(f"{opened.url}{source}").body())) as shown:
        trained = cropped(read_photo(photo).image, Crop(0.1, 0.9, False), (512, 512), loaded.focus)
        assert shown.size == (512, 512)
        assert shown.tobytes() == trained.tobytes()

    # A photo without a caption shows the prompt, as it is now.
    second = "document.querySelectorAll('#views .db-caption')[1].placeholder"
    for word in ("cat", "dog"):
        visit.fill("class-word", word)
        page.wait_for_function(f"{second} == 'photo of zwx {word}'")

    # Words for one photo alone, in the editor and under the photo.
    field = "document.querySelector('#views .db-caption').value"
    visit.fill("caption", "photo of zwx dog <b>asleep</b>")
    page.wait_for_function(f"{field} == 'photo of zwx dog <b>asleep</b>'")
    assert kept.caption(photo.name) == "photo of zwx dog <b>asleep</b>"
    page.get_by_label("Caption of photo 1,").fill("photo of zwx dog awake")
    page.wait_for_function("document.querySelector('#caption textarea').value == 'photo of zwx dog awake'")
    assert kept.caption(photo.name) == "photo of zwx dog awake"
    page.locator("#close-editor").click()
    square.wait_for(state="hidden")
    page.wait_for_function(f"{field} == 'photo of zwx dog awake'")
    page.locator("#delete-photos").click()
    visit.until("report", "all copies of them were deleted")
    visit.close()


def test_mistakes_are_marked_at_their_fields_all_at_once(
    browser: "Browser", opened: OpenPage, dropped: list[str]
) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    visit.new_set()
    assert not page.locator("#identifier").is_visible(), "words come with the photos"
    drop(visit, dropped[:3], 3)
    visit.fill("class-word", "")
    visit.until("verdict", "^(?!.*Prompts for later)")
    assert (visit.value("instance-prompt"), visit.value("class-prompt")) == ("photo of zwx", "")
    visit.fill("class-word", "dog")
    visit.fill("identifier", "two words")
    assert visit.value("instance-prompt") == "photo of two words dog"
    visit.fill("class-prompt", "")
    page.locator("#go-on").click()
    told = visit.until("concept-message", "Identifier must be one word")
    assert "Class prompt is empty" in told
    page.locator("#concept-message a", has_text="Identifier").click()
    assert page.evaluate("document.querySelector('#identifier').getBoundingClientRect().top") < 900, "it is in sight"
    visit.until("identifier", "one word of 2 to 20 letters")
    visit.until("class-prompt", "is empty")
    assert page.locator("#identifier.db-wrong, #class-prompt.db-wrong").count() == 2

    page.locator("#propose").click()
    page.wait_for_function("document.querySelector('#identifier input, #identifier textarea').value != 'two words'")
    visit.until("verdict", "no meaning of their own")
    visit.fill("class-prompt", "photo of dog")
    page.locator("#go-on").click()
    page.get_by_role("tab", name="Train", selected=True).wait_for()
    visit.tab("Upload & Concepts")
    assert page.locator("#identifier.db-wrong, #class-prompt.db-wrong").count() == 0
    visit.fill("identifier", "cat")
    visit.until("verdict", "already knows this word")
    visit.close()


def test_concepts_class_pictures_and_lists(
    browser: "Browser", opened: OpenPage, dropped: list[str], tmp_path: Path
) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    visit.new_set()
    page.locator("#kind").get_by_text("Pet").click()
    drop(visit, dropped[:2], 2)
    page.locator("#add-concept").click()
    visit.until("report", "A new concept")
    page.locator("#concepts input").nth(1).wait_for()
    page.locator("#kind").get_by_text("Object").click()
    drop(visit, dropped[2:4], 2)
    page.wait_for_function("document.querySelector('#class-word input, #class-word textarea').value == 'toy'")
    page.locator("#concepts label").first.click()
    page.wait_for_function("document.querySelector('#class-word input, #class-word textarea').value == 'dog'")
    first = newest(opened)
    assert len(first.together()) == 2

    visit.unfold("class-box")
    page.locator("#class-photos input[type=file]").first.set_input_files(dropped[:2])
    visit.until("class-note", "2 class images of your own")
    page.locator("#class-views img").nth(1).wait_for()
    visit.fill("class-count", "7")
    visit.new_training()
    page.wait_for_function("document.querySelector('#field-num_class_images input').value == '7'")
    # The cards show squares, which is not what buckets train.
    visit.unfold("advanced")
    for now, told in ((True, "near its own aspect ratio"), (False, "cropped to a square")):
        page.locator("#field-buckets input").set_checked(now)
        page.wait_for_function("told => document.querySelector('#photo-shape').textContent.includes(told)", arg=told)
    visit.tab("Upload & Concepts")

    visit.unfold("more")
    page.locator("#export").click()
    page.locator("#exported a").first.wait_for()
    with page.expect_download() as download:
        page.locator("#exported a").first.click()
    listed = tmp_path / "concepts_list.json"
    download.value.save_as(listed)
    entries = json.loads(listed.read_text())
    assert [entry.get("class_data_dir") for entry in entries].count(None) == 1
    page.locator("#listed input[type=file]").first.set_input_files(str(listed))
    visit.until("report", "2 concepts were imported")
    folder = tmp_path / "mine"
    folder.mkdir()
    made_photo(7).save(folder / "seven.png")
    visit.unfold("from-folder")
    visit.fill("folder", str(folder))
    page.locator("#take-folder").click()
    visit.until("report", "seven.png was added")
    visit.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_tab_with_photos_fits_a_phone(browser: "Browser", opened: OpenPage, dropped: list[str], dark: bool) -> None:
    visit = Visit(browser, opened.url, width_px=390, dark=dark)
    visit.new_set()
    drop(visit, dropped, 5)
    visit.page.locator("#views .db-view").nth(4).click()
    visit.page.locator("#editor .db-square").wait_for()
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    visit.close()


def test_own_photos_never_join_the_sample_set(
    browser: "Browser", opened: OpenPage, dropped: list[str], tmp_path: Path
) -> None:
    sample = photo_set(opened.workspace, SAMPLE_SET)
    sample.add(find_photos(sample_folder()).photos)
    sample.keep_words(sample_words())
    visit = Visit(browser, opened.url)  # a fresh page shows the set last worked with: the sample's
    visit.until("report", "5 photos")
    assert visit.value("instance-prompt") == "photo of zwx toy"
    drop(visit, dropped[:2], 2)
    visit.until("report", "2 photos")
    visit.page.wait_for_function("document.querySelector('#class-word input, #class-word textarea').value == 'dog'")
    own = newest(opened)
    assert own.name != sample.name
    assert len(sample.photos()) == 5
    visit.page.wait_for_function("document.querySelector('#instance-prompt textarea').value == 'photo of zwx dog'")
    assert own.words().instance_prompt == "photo of zwx dog"
    assert sample.words().instance_prompt == "photo of zwx toy"
    # What is dropped next goes into the same set.
    drop(visit, dropped[2:3], 3)
    assert len(own.photos()) == 3
    visit.close()


def test_a_second_drop_while_the_first_is_worked_on_is_taken_too(
    browser: "Browser", opened: OpenPage, dropped: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    visit.new_set()
    before = {one.name for one in photo_sets(opened.workspace)}
    original, began, goes_on = PhotoSet.add, threading.Event(), threading.Event()

    def slow(self: PhotoSet, files: Iterable[Path], taken: Taken) -> list[Line]:
        began.set()
        assert goes_on.wait(30)
        return original(self, files, taken)

    monkeypatch.setattr(PhotoSet, "add", slow)
    inputs = page.locator("#photos input[type=file]")
    inputs.first.set_input_files(dropped[:2])
    assert began.wait(30)
    inputs.first.set_input_files(dropped[2:4])
    page.wait_for_timeout(1500)  # the second upload reaches the queue while the first is held
    goes_on.set()
    page.locator("#views .db-photo").nth(3).wait_for()
    visit.until("report", "4 photos")
    (made,) = {one.name for one in photo_sets(opened.workspace)} - before
    assert sorted(made_name(opened, made)) == ["good.jpg", "night.jpg", "other.jpg", "soft.jpg"]
    # Photos of another subject begin another set.
    visit.new_set()
    drop(visit, dropped[:1], 1)
    visit.until("report", "1 photo")
    assert len({one.name for one in photo_sets(opened.workspace)} - before) == 2
    visit.close()


def made_name(opened: OpenPage, name: str) -> list[str]:
    """Return the names that the photos of a set came under."""
    (kept,) = [one for one in photo_sets(opened.workspace) if one.name == name]
    return [kept.shown_name(photo.name) for photo in kept.photos()]
