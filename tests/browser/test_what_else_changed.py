"""The report of what a training changed beside its subject, by a click: how far it is, its ranks, its picture."""

import shutil
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.data.samples import sample_folder
from dreambooth.events import StatusChanged
from dreambooth.records.runlog import RunLog
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import start_records
from dreambooth.scoring import bleed
from tests.harness.open_page import OpenPage, open_page
from tests.harness.tiny import tiny_base
from tests.harness.visit import Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
# An image that is there and not only its frame.
IS_DRAWN = "document.querySelector('#bleed-picture img')?.naturalWidth > 0"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page over a run that has ended, whose one step is a model with other weights than its base."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        run = page.workspace.run("dog")
        concept = Concept("photo of zwx dog", str(sample_folder()), "photo of dog")
        config = TrainingConfig(
            concepts=(concept,), pretrained_model_name_or_path=str(page.base), resolution=32, save_infer_steps=1
        )
        start_records(config, run)
        shutil.move(tiny_base(page.workspace.data_dir / "other", seed=1), run.step_folder(60))
        RunLog(run, 60)(StatusChanged("done"))
        yield page


def held_pictures(monkeypatch: pytest.MonkeyPatch, num_free: int) -> threading.Event:
    """Have the report's pictures wait for the event once so many prompts were asked for."""
    go_on, make = threading.Event(), bleed.generate_images
    asked: list[str] = []

    def held(pipe: Any, request: Any) -> Any:
        asked.append(request.prompt)
        if len(asked) > num_free:
            assert go_on.wait(60)
        return make(pipe, request)

    monkeypatch.setattr(bleed, "generate_images", held)
    return go_on


def test_a_click_tells_how_far_it_is_and_then_shows_the_ranked_report_with_its_picture(
    browser: "Browser", opened: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = held_pictures(monkeypatch, num_free=3)
    visit = Visit(browser, opened.url)
    visit.run()
    page = visit.page
    visit.until("run-status", "Finished")
    page.locator("#bleed-run").click()
    # Beside the button, in a place that is empty until then, and was hidden with all that stood in it.
    page.locator("#run-bleed .progress-level", has_text="Making pictures to compare").wait_for()
    page.locator("#run-bleed .progress-level", has_text="15.0%").wait_for()
    assert not page.locator("#bleed-picture").is_visible()
    go_on.set()
    visit.until("run-message", "See What else it changed, next to the scores")
    told = visit.until("run-bleed", "(?s)What else it changed.*Step 60")
    assert "Scored by pixels" in told
    cells = page.locator("#run-bleed td:nth-child(2)").all_inner_texts()
    changes = [float(cell) for cell in cells]
    assert len(changes) == 10
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0
    prompts = page.locator("#run-bleed td:nth-child(1)").all_inner_texts()
    assert {"photo of dog", "photo of cat", "(no words)"} < set(prompts)
    most = "a picture without words" if prompts[0] == "(no words)" else prompts[0]
    assert f"Most of all: {most}." in page.locator("#run-message").inner_text()
    page.locator("#bleed-picture img").scroll_into_view_if_needed()
    page.wait_for_function(IS_DRAWN)

    # It lies in the run's folder: any other window has it too.
    phone = Visit(browser, opened.url, width_px=390)
    phone.run()
    phone.until("run-bleed", "Step 60")
    phone.page.locator("#bleed-picture img").scroll_into_view_if_needed()
    phone.page.wait_for_function(IS_DRAWN)
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.close()
    visit.close()
    assert bleed.kept_report(RunFolder(opened.workspace.runs_dir / "dog")) is not None
