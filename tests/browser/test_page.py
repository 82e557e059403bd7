"""The page in a real browser: from photos to pictures by clicking, and what a reload, a phone and the dark do to it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from dreambooth.data.samples import sample_folder
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import TABS, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page for all tests of this file."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


# The names of what was fetched before the page opened, the large components' scripts left out.
FETCHED = """() => performance.getEntriesByType('resource').filter(one => one.startTime
  < performance.getEntriesByName('db-opened')[0].startTime)
  .map(one => new URL(one.name)).filter(one => one.protocol.startsWith('http'))
  .map(one => one.pathname.split('/').pop())"""


def choose_tiny(visit: Visit, opened: OpenPage, steps: str) -> None:
    """Set the Train tab to a short run on the tiny base."""
    visit.new_training()
    visit.page.locator("#base input").click()
    visit.page.get_by_role("option", name="tiny").click()
    visit.page.wait_for_function("document.querySelector('#field-resolution input').value == '32'")
    visit.fill("field-max_train_steps", steps)
    visit.fill("field-num_class_images", "2")
    visit.page.get_by_text("Advanced", exact=True).first.click()
    visit.fill("field-save_infer_steps", "1")
    visit.fill("field-n_save_sample", "1")
    visit.page.locator("#field-use_8bit_adam input").uncheck()
    visit.page.locator("#field-mixed_precision input").click()
    visit.page.get_by_role("option", name="no", exact=True).click()


def test_a_first_visit_says_what_this_is_and_offers_two_ways_to_begin(browser: "Browser", opened: OpenPage) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    # On a slow connection each file takes seconds: until the page can be used there are no more than these.
    fetched = page.evaluate(FETCHED)
    scripts = [name for name in fetched if name.endswith((".js", ".css"))]
    assert len([name for name in scripts if name.startswith("bundle-")]) == 1
    assert len(fetched) < 25, fetched
    visit.new_set()
    assert "then make new pictures of it" in page.locator("#welcome h2").inner_text()
    page.wait_for_function("[...document.querySelectorAll('#upload-view img')].every(one => one.naturalWidth > 0)")
    assert page.locator("#sample-photos img").count() == 5
    assert "toy model" in page.locator("#sample-photos").inner_text()
    assert re.search(r"\(about \d+ min here\)", page.locator("#try-sample").inner_text())
    sample, own = (page.locator(name).bounding_box() for name in ("#sample-photos", "#own-photos"))
    assert sample is not None
    assert own is not None
    assert (sample["width"], sample["height"]) == pytest.approx((own["width"], own["height"]), abs=1)
    later = ("add-concept", "new-set", "delete-photos", "verdict", "identifier", "class-box", "go-on", "views")
    assert [name for name in later if page.locator(f"#{name}").is_visible()] == []
    page.locator("#photos input[type=file]").first.set_input_files(str(sample_folder() / "1.png"))
    page.locator("#go-on").wait_for()
    assert [name for name in later if not page.locator(f"#{name}").is_visible()] == []
    assert not page.locator("#welcome").is_visible()
    visit.close()


@pytest.mark.slow
def test_from_photos_to_pictures_by_clicking(browser: "Browser", opened: OpenPage, tmp_path: Path) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    photos = sorted(sample_folder().glob("*.png"))
    page.locator("#photos input[type=file]").first.set_input_files([str(path) for path in photos])
    visit.until("report", "5 photos")
    page.locator("#views img").nth(4).wait_for()
    visit.fill("identifier", "qxz")
    visit.fill("class-word", "robot")
    assert visit.value("instance-prompt") == "photo of qxz robot"

    page.locator("#go-on").click()
    choose_tiny(visit, opened, "0")
    page.locator("#start").click()
    assert "Steps max_train_steps is 0: it must be 1 to" in visit.until("start-message", "to start").replace("\n", " ")
    visit.fill("field-max_train_steps", "3000")
    page.locator("#start").click()
    visit.until("run-status", r"step [1-9]\d* of 3000")

    # A reload and a second window show the same run, further on, and the same photos.
    visit.reload()
    visit.until("run-status", r"step [1-9]\d* of 3000")
    visit.tab("Upload & Concepts")
    page.locator("#views img").nth(4).wait_for()
    assert visit.value("instance-prompt") == "photo of qxz robot"
    second = Visit(browser, opened.url)
    for window in (visit, second):
        window.tab("Train")
        window.until("run-status", r"running\s+Training: step [1-9]\d* of 3000")
        window.until("log", "sample picture")
    page.locator("#samples img").first.wait_for()
    second.page.locator("#stop").click()
    stopped = visit.until("run-status", r"Stopped after \d+ of 3000 steps")
    second.until("run-status", "Stopped after")
    second.close()
    assert re.search(r"after [1-9]\d* of", stopped)

    visit.tab("Convert")
    # Its last step, or the recommended one where the run was fast enough to save several.
    page.wait_for_function("document.querySelector('#convert-model input').value.includes(', step ')")
    page.locator("#prepare").click()
    visit.until("convert-message", "is ready")
    with page.expect_download() as download:
        page.locator("#download").click()
    (exported,) = opened.workspace.exports_dir.glob("*-step-*-fp16.safetensors")
    assert Path(download.value.path()).read_bytes() == exported.read_bytes()

    visit.tab("Generate")
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'photo of qxz robot'")
    visit.fill("generate-num_images_per_prompt", "2")
    visit.fill("generate-seed", "9007199254740993")
    page.locator("#generate").click()
    visit.until("generate-message", "Done: 2 pictures")
    page.locator("#pictures img").nth(1).wait_for()
    made = sorted(opened.workspace.pictures_dir.rglob("*.png"))
    with Image.open(made[0]) as picture:
        assert "Seed: 9007199254740993" in picture.info["parameters"]
    source = page.locator("#pictures img").first.get_attribute("src")
    assert page.request.get(source).body() in [path.read_bytes() for path in made]
    visit.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1200])
def test_every_tab_fits(browser: "Browser", opened: OpenPage, width_px: int, dark: bool) -> None:
    visit = Visit(browser, opened.url, width_px=width_px, dark=dark)
    for name in TABS:
        visit.tab(name)
        visit.page.wait_for_timeout(400)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width_px, name
    visit.close()


def test_files_that_are_no_photos_are_told(browser: "Browser", opened: OpenPage, tmp_path: Path) -> None:
    visit = Visit(browser, opened.url)
    visit.new_set()
    (tmp_path / "note.txt").write_text("no photo")
    (tmp_path / "damaged.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "huge.jpg").open("wb") as huge:
        huge.truncate(31 * 1000**2)
    files = [tmp_path / name for name in ("note.txt", "damaged.heic", "empty.png", "huge.jpg")] + [
        sample_folder() / "1.png"
    ]
    visit.page.locator("#photos input[type=file]").first.set_input_files([str(path) for path in files])
    report = visit.until("report", "1 photo")
    assert "note.txt is not a readable photo." in report
    assert "damaged.heic" in report
    assert "empty.png" in report
    assert "huge.jpg" in report
    assert "3 to 5 photos are recommended" in report
    assert "Traceback" not in report
    assert "1.png was added." in report
    visit.page.locator("#views img").first.click()
    visit.page.locator("#remove").click()
    visit.until("report", "No photos yet")
    visit.close()


def test_a_cut_of_the_network_loses_no_click_and_no_place(browser: "Browser", opened: OpenPage) -> None:
    """In a browser of another language, whose page is English all the same."""
    context = browser.new_context(locale="de-DE")
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(opened.url)
    page.locator("#tabs:not(.db-opening)").wait_for()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert "Click to Upload" in page.locator("#photos").inner_text()
    if page.locator("#new-set").is_visible():  # photos of another test
        page.locator("#new-set").click()
    page.locator("#report", has_text="No photos yet").wait_for()
    files = sorted(sample_folder().glob("*.png"))[:2]
    page.locator("#photos input[type=file]").first.set_input_files([str(path) for path in files])
    page.locator("#views .db-photo").nth(1).wait_for()
    page.evaluate("window.sameWindow = true")
    context.set_offline(True)
    page.get_by_role("button", name="Remove photo 2").click()
    page.get_by_text("No connection to the app.").wait_for()
    page.wait_for_timeout(8000)
    assert page.locator("#views .db-photo").count() == 2
    context.set_offline(False)
    page.locator("#views .db-photo").nth(1).wait_for(state="detached")
    page.locator("#connection-lost").wait_for(state="detached")
    assert page.evaluate("window.sameWindow") is True, "the page was not loaded anew"
    context.close()
