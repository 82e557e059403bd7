"""The Generate tab in a real browser: pictures one by one, cancelled, chosen, used again, compared, found again."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.pictures.settings_text import read_recipe, text_of_picture
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import start_records
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser


def make_run(opened: OpenPage) -> RunFolder:
    """Write a run of two steps, as a training of the tiny base leaves it."""
    run = opened.workspace.run("dog")
    concept = Concept("photo of zwx dog", str(opened.workspace.datasets_dir), "photo of dog")
    config = TrainingConfig(
        concepts=(concept,), pretrained_model_name_or_path=str(opened.base), save_guidance_scale=3.0
    )
    start_records(config, run)
    for step in (2, 4):
        shutil.copytree(opened.base, run.step_folder(step))
    return run


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page with a run in it for all tests of this file."""
    folder = tmp_path_factory.mktemp("page")
    with open_page(folder) as page:
        make_run(page)
        yield page


def visit_tab(browser: "Browser", opened: OpenPage, *, width_px: int = 1200) -> Visit:
    visit = Visit(browser, opened.url, width_px=width_px)
    visit.tab("Generate")
    visit.page.wait_for_function("document.querySelector('#prompt textarea')?.value == 'photo of zwx dog'")
    return visit


def ask(visit: Visit, number: str, steps: str, seed: str) -> None:
    for name, value in (("num_images_per_prompt", number), ("seed", seed)):
        visit.fill(f"generate-{name}", value)
    if not visit.page.locator("#generate-num_inference_steps").is_visible():
        visit.unfold("generate-advanced")
    visit.fill("generate-num_inference_steps", steps)


def test_pictures_come_one_by_one_and_can_be_cancelled(browser: "Browser", opened: OpenPage) -> None:
    visit = visit_tab(browser, opened)
    page = visit.page
    assert page.locator("#examples button").first.inner_text() == "photo of zwx dog"
    page.locator("#examples button", has_text="on the beach").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'photo of zwx dog on the beach'")
    page.locator("#take-negative").click()
    page.wait_for_function("document.querySelector('#negative-prompt textarea').value.includes('blurry')")
    ask(visit, "64", "40", "11")
    page.locator("#generate").click()
    visit.until("generate-message", r"Picture \d+ of 64")
    page.locator("#pictures img").nth(1).wait_for()
    page.locator("#cancel").click()
    told = visit.until("generate-message", r"Cancelled: \d+ of 64 pictures were made")
    made = int(told.split("Cancelled: ")[1].split()[0])
    assert 2 <= made < 64
    assert len(list((opened.workspace.pictures_dir / "dog").glob("*-11-*.png"))) == made
    assert not page.locator("#cancel").is_enabled()
    visit.close()


def test_a_chosen_picture_gives_its_settings_and_its_seed(browser: "Browser", opened: OpenPage, tmp_path: Path) -> None:
    visit = visit_tab(browser, opened)
    page = visit.page
    ask(visit, "2", "3", "41")
    page.locator("#generate").click()
    visit.until("generate-message", "Done: 2 pictures")
    page.wait_for_function("document.querySelector('#recipe textarea').value.includes('Seed: 41')")
    page.locator("#pictures .thumbnail-item").nth(1).click()
    page.wait_for_function("document.querySelector('#recipe textarea').value.includes('Seed: 42')")

    # The picture as the browser has it still holds its recipe.
    source = page.locator("#pictures .preview img, #pictures img").first.get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(source or "").body())) as image:
        assert "Sampler: DDIM" in image.info["parameters"]

    visit.fill("prompt", "something else")
    visit.fill("generate-num_inference_steps", "9")
    page.locator("#use-seed").click()
    page.wait_for_function("document.querySelector('#generate-seed input, #generate-seed textarea').value == '42'")
    assert visit.value("prompt") == "something else"
    page.locator("#use-settings").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value == 'photo of zwx dog'")
    assert visit.value("generate-num_inference_steps") == "3"
    page.locator("#generate").click()
    visit.until("generate-message", "Done: 1 picture ")
    newest = sorted((opened.workspace.pictures_dir / "dog").glob("*-42-0.png"))[-1]
    before = next((opened.workspace.pictures_dir / "dog").glob("*-41-1.png"))
    assert Image.open(newest).tobytes() == Image.open(before).tobytes()

    # A file from anywhere, read in another window, which shows the newest request's recipe by itself.
    shutil.copyfile(next((opened.workspace.pictures_dir / "dog").glob("*-41-0.png")), tmp_path / "kept.png")
    visit.reload()
    visit.tab("Generate")
    page.locator("#read-png").wait_for()
    page.locator("#read-png ~ input[type=file], input[type=file][accept*='png']").first.set_input_files(
        str(tmp_path / "kept.png")
    )
    page.wait_for_function("document.querySelector('#recipe textarea').value.includes('Seed: 41')")

    page.locator("#recipe textarea").fill("a cat\nSteps: 3, Sampler: Restart, Seed: 8")
    page.locator("#use-settings").click()
    visit.until("generate-message", 'The sampler "Restart" is not available here')
    page.wait_for_function("document.querySelector('#generate-seed input, #generate-seed textarea').value == '8'")
    visit.close()


def test_steps_are_compared_in_a_grid_and_found_again(browser: "Browser", opened: OpenPage) -> None:
    visit = visit_tab(browser, opened)
    page = visit.page
    ask(visit, "1", "1", "5")
    page.get_by_role("tab", name="Compare steps").click()
    page.wait_for_function("document.querySelector('#compare-prompts textarea')?.value == 'photo of zwx dog'")
    visit.fill("compare-prompts", "photo of zwx dog\nphoto of zwx dog in the snow")
    chosen = page.locator("#compare-steps .token")
    assert chosen.all_inner_texts() == ["base model", "step 2", "step 4"]
    page.locator("#compare").click()
    visit.until("generate-message", "Done: 6 pictures")
    page.locator("#pictures img").nth(6).wait_for()
    # The grid comes last and stands first; the recipe stays that of the first picture.
    recipe = page.locator("#recipe textarea")
    page.wait_for_function("document.querySelector('#recipe textarea').value.includes('Seed: 5')")
    of_first = recipe.input_value()
    assert read_recipe(of_first).model == "tiny"
    (grid,) = (opened.workspace.pictures_dir / "dog").glob("*-5-grid.png")
    cells = sorted((opened.workspace.pictures_dir / "dog").glob("*-5-[0-9].png"))
    models = [read_recipe(text_of_picture(path)).model for path in cells]
    assert models == ["tiny"] * 2 + ["dog/2"] * 2 + ["dog/4"] * 2
    with Image.open(grid) as image:
        assert image.height > 3 * 32

    # A step saved meanwhile is there as soon as one comes back.
    run = opened.workspace.run("dog")
    shutil.copytree(opened.base, run.step_folder(6))
    page.get_by_role("tab", name="Make pictures").click()
    page.get_by_role("tab", name="Compare steps").click()
    chosen.nth(3).wait_for()
    assert chosen.nth(3).inner_text() == "step 6"
    shutil.rmtree(run.step_folder(6))
    visit.until("history-count", r"\d+ pictures")
    page.locator("#history-pictures .thumbnail-item").nth(2).click()
    page.wait_for_function("was => document.querySelector('#recipe textarea').value != was", arg=of_first)
    assert "Seed: 5" in recipe.input_value()
    page.locator("#history-pack").click()
    with page.expect_download() as download:
        page.locator("#history-download").click()
    assert Path(download.value.path()).read_bytes() == (opened.workspace.exports_dir / "pictures-dog.zip").read_bytes()
    visit.close()


def test_mistakes_are_told_all_at_once_before_anything_starts(browser: "Browser", opened: OpenPage) -> None:
    visit = visit_tab(browser, opened, width_px=390)
    ask(visit, "0", "3000", "x")
    visit.fill("prompt", "")
    visit.page.locator("#generate").click()
    told = visit.until("generate-message", "to start")
    for name in ("num_images_per_prompt", "num_inference_steps", "seed"):
        assert name in told
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 390
    # What was typed outlives a reload, and the prompt that the page offers for its model.
    visit.fill("prompt", "photo of zwx dog in a hat")
    visit.reload()
    visit.page.wait_for_function("document.querySelector('#prompt textarea')?.value == 'photo of zwx dog in a hat'")
    assert visit.value("generate-seed") == "x"
    visit.close()
