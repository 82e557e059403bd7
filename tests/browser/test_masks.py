"""A mask painted over a photo in a real browser: with the mouse, saved, trained by, and taken back."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dreambooth.data.masks import mask_beside, read_mask
from dreambooth.data.photo_sets import PhotoSet, photo_sets
from tests.harness.made_photos import made_photo
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser

# How much of the canvas is painted, 0 to 1.
INK = """() => {
  const canvas = document.querySelector('#painter canvas');
  const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return all.reduce((sum, level, place) => sum + (place % 4 === 3 && level > 127), 0) / (all.length / 4);
}"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page of this machine alone."""
    with open_page(tmp_path_factory.mktemp("page"), takes_folders=True) as page:
        yield page


@pytest.fixture
def kept(opened: OpenPage, tmp_path: Path) -> PhotoSet:
    """Return a new set of two photos, the one that a page opens with."""
    files = [tmp_path / f"{number}.jpg" for number in range(2)]
    for number, file in enumerate(files):
        made_photo(number).resize((360, 270)).save(file)
    for one in photo_sets(opened.workspace):
        one.delete()
    made = PhotoSet(opened.workspace.datasets_dir / "painted")
    made.add(files)
    return made


def mask_of(kept: PhotoSet) -> np.ndarray:
    """Return the mask of the first photo, 0 or 1, as large as the photo."""
    photo = kept.photos()[0]
    mask = mask_beside(photo)
    assert mask is not None
    return np.asarray(read_mask(mask, (360, 270)).resize((360, 270))) / 255


def test_a_mask_is_painted_saved_trained_by_and_taken_back(
    browser: "Browser", opened: OpenPage, kept: PhotoSet
) -> None:
    visit = Visit(browser, opened.url)
    page = visit.page
    card = page.locator("#views .db-photo").first
    card.locator(".db-view").click()
    visit.until("mask-note", "No mask")
    assert not page.locator("#remove-mask").is_enabled()
    assert page.locator("#painter canvas").count() == 0

    page.locator("#paint-mask").click()
    canvas = page.locator("#painter canvas[data-ready]")
    canvas.wait_for()
    page.get_by_role("button", name="Save mask").click()
    page.get_by_text("Nothing is painted").first.wait_for()
    stroke(visit, 100, 50)
    stroke(visit, -100, -50)
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Save mask").click()
    visit.until("report", r"The mask of 0\.jpg was saved")
    card.locator("[data-code=mask]").wait_for()
    assert card.locator("img.db-mask").is_visible()
    painted = mask_of(kept)
    # The stroke goes from the middle of the photo to the right and down.
    assert painted[135, 180] == 1
    assert painted[170, 250] == 1
    assert painted[:60].max() == 0
    assert painted[:, :120].max() == 0
    canvas.wait_for(state="detached")

    # Opened again it is where it was painted, and saved as it was.
    page.locator("#paint-mask").click()
    canvas.wait_for()
    page.get_by_role("button", name="Save mask").click()
    canvas.wait_for(state="detached")
    assert np.abs(mask_of(kept) - painted).mean() < 0.01

    # The form proposes to train by it, and the plan says so.
    visit.new_training()
    told = visit.until("plan", "1 photo has a mask of the subject; the base model finds the subject of the other 1")
    assert "(background_weight is 0.1)" in told
    visit.tab("Upload & Concepts")

    # What the base finds is another place to begin from; closed without saving, it changes nothing.
    page.locator("#paint-mask").click()
    canvas.wait_for()
    page.get_by_role("button", name="Clear").click()
    assert ink(visit) == 0
    page.get_by_role("button", name="Start from the found mask").click()
    page.wait_for_function(f"({INK})() > 0")
    page.locator("#painter [data-tool=close]").click()
    canvas.wait_for(state="detached")
    assert np.abs(mask_of(kept) - painted).mean() < 0.01

    page.locator("#remove-mask").click()
    visit.until("report", "was removed: the base model finds the subject")
    card.locator("[data-code=mask]").wait_for(state="detached")
    assert mask_beside(kept.photos()[0]) is None
    assert visit.problems == []
    visit.close()


def ink(visit: Visit) -> float:
    """Return how much of the canvas is painted, 0 to 1."""
    return float(visit.page.evaluate(f"({INK})()"))


def stroke(visit: Visit, x: int, y: int) -> None:
    """Paint a stroke from the middle of the photo by so many pixels of the screen."""
    canvas = visit.page.locator("#painter canvas")
    canvas.scroll_into_view_if_needed()
    visit.page.wait_for_timeout(600)  # the editor scrolls smoothly into sight
    box = canvas.bounding_box()
    assert box is not None
    left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    visit.page.mouse.move(left, top)
    visit.page.mouse.down()
    visit.page.mouse.move(left + x, top + y, steps=6)
    visit.page.mouse.up()
