"""Answers that come late, held back on purpose: what somebody has typed or chosen since stays as it is.

Half of them are in the long tier: `python -m pytest -m reliability tests/browser/test_late_answers.py`.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dreambooth.data import photo_sets
from dreambooth.data.samples import sample_folder
from dreambooth.data.words import prompts_for
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import Visit
from ui.concepts import handlers as concept_handlers
from ui.concepts import photos as photo_handlers
from ui.concepts.scripts import MAKE_PROMPTS
from ui.train import handlers as train_handlers

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
HELD_S = 60


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page for all tests of this file."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture
def visit(browser: "Browser", opened: OpenPage) -> Iterator[Visit]:
    """Open a window."""
    visit = Visit(browser, opened.url)
    yield visit
    visit.close()


class Held:
    """A function of the server that waits: for its caller to be noticed, and to be let go."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.asked, self.let_go = function, threading.Event(), threading.Event()
        self.left = threading.Semaphore(0)

    def __call__(self, *values: Any, **named: Any) -> Any:
        self.asked.set()
        assert self.let_go.wait(HELD_S)
        try:
            return self.function(*values, **named)
        finally:
            self.left.release()


@contextlib.contextmanager
def held(place: Any, name: str) -> Iterator[Held]:
    """Hold a function back until the block ends, or lets it go."""
    function = Held(getattr(place, name))
    with pytest.MonkeyPatch.context() as patch:
        # As a plain function it is a method where it stands in for one.
        patch.setattr(place, name, lambda *values, **named: function(*values, **named))
        try:
            yield function
        finally:
            function.let_go.set()


def answered(visit: Visit, function: Held) -> None:
    """Let the held answers go, and give the page time for what it does with them."""
    assert function.asked.wait(HELD_S)
    function.let_go.set()
    assert function.left.acquire(timeout=HELD_S)
    visit.page.wait_for_timeout(1500)


def words(visit: Visit) -> list[str]:
    return [visit.value(name) for name in ("identifier", "class-word", "instance-prompt", "class-prompt")]


def new_photos(visit: Visit) -> None:
    visit.new_set()
    visit.page.locator("#photos input[type=file]").first.set_input_files(str(sample_folder() / "1.png"))
    visit.until("report", "1.png was added")


def test_prompts_follow_without_the_server_and_nothing_comes_back_over_them(visit: Visit) -> None:
    new_photos(visit)
    with held(photo_sets.PhotoSet, "keep_words") as keeping:
        visit.page.locator("#kind").get_by_text("Object", exact=True).click()
        visit.fill("identifier", "qxz")
        assert words(visit) == ["qxz", "toy", "photo of qxz toy", "photo of toy"]
        visit.fill("class-word", "robot")
        visit.fill("class-prompt", "a plain robot")
        typed = ["qxz", "robot", "photo of qxz robot", "a plain robot"]
        assert words(visit) == typed
        answered(visit, keeping)
    assert words(visit) == typed
    assert visit.page.locator("#kind input:checked").get_attribute("value") == "object"
    visit.reload()
    visit.page.wait_for_function("document.querySelector('#identifier input, #identifier textarea').value == 'qxz'")
    assert words(visit) == typed, "the last words are those kept"


def test_prompts_of_the_browser_are_those_of_the_server(visit: Visit) -> None:
    for said in (
        ("pet", "zwx", "dog"),
        ("style", " zwx ", "ink drawing"),
        ("object", "{class_word}", "$& cup"),
        ("", "", ""),
    ):
        assert tuple(visit.page.evaluate(f"said => ({MAKE_PROMPTS})(...said)", said)) == prompts_for(*said)


@pytest.mark.reliability
def test_other_photos_that_come_late_leave_words_typed_meanwhile(visit: Visit) -> None:
    new_photos(visit)
    with held(photo_handlers, "photo_sets") as looking:
        visit.page.locator("#new-set").click()
        assert looking.asked.wait(HELD_S)
        visit.page.locator("#kind").get_by_text("Style", exact=True).click()
        visit.fill("identifier", "vbn")
        answered(visit, looking)
    visit.until("report", "No photos yet")
    assert words(visit) == ["vbn", "painting", "painting in vbn style", "painting"]
    assert visit.page.locator("#kind input:checked").get_attribute("value") == "style"
    # Without anything typed meanwhile the words are those of the other photos.
    new_photos(visit)
    visit.page.locator("#new-set").click()
    visit.page.wait_for_function("document.querySelector('#identifier input, #identifier textarea').value == 'zwx'")
    assert words(visit)[2:] == ["photo of zwx dog", "photo of dog"]


@pytest.mark.reliability
def test_a_word_proposed_late_leaves_one_typed_meanwhile(visit: Visit) -> None:
    with held(concept_handlers, "proposed") as proposing:
        visit.page.locator("#propose").click()
        assert proposing.asked.wait(HELD_S)
        visit.fill("identifier", "mine")
        answered(visit, proposing)
    assert words(visit)[0] == "mine"


def test_marks_stay_when_answers_to_what_was_typed_come_after_the_click(visit: Visit) -> None:
    new_photos(visit)
    with held(photo_sets.PhotoSet, "keep_words") as keeping:
        visit.fill("identifier", "two words")
        visit.fill("class-prompt", "")
        visit.page.locator("#go-on").click()
        visit.until("concept-message", "(?s)Identifier must be one word.*Class prompt is empty")
        visit.until("identifier", "one word of 2 to 20 letters")
        answered(visit, keeping)
    assert visit.page.locator("#identifier.db-wrong, #class-prompt.db-wrong").count() == 2
    assert visit.value("class-prompt") == ""
    visit.fill("identifier", "zwx")


@pytest.mark.reliability
def test_proposals_that_come_late_leave_settings_typed_meanwhile(visit: Visit) -> None:
    visit.new_training()
    visit.until("plan", "steps")
    with held(train_handlers, "proposed_config") as proposing:
        visit.tab("Upload & Concepts")
        visit.page.locator("#kind").get_by_text("Person", exact=True).click()
        assert proposing.asked.wait(HELD_S)
        visit.new_training()
        visit.fill("field-max_train_steps", "123")
        visit.fill("field-seed", "9")
        visit.page.locator("#preset").get_by_text("Full precision").click()
        answered(visit, proposing)
    visit.until("plan", "123 steps")
    assert visit.value("field-seed") == "9"
    assert visit.page.locator("#preset input:checked").get_attribute("value") == "full_precision"
    # They are still those of a person: another base, or another kind, does not take them away.
    visit.tab("Upload & Concepts")
    visit.page.locator("#kind").get_by_text("Object", exact=True).click()
    visit.new_training()
    visit.page.wait_for_timeout(1500)
    assert visit.value("field-max_train_steps") == "123"


def test_nothing_can_be_clicked_before_the_first_answers_and_everything_stays_after(
    browser: "Browser", opened: OpenPage
) -> None:
    context = browser.new_context()
    page = context.new_page()
    with held(photo_handlers, "photo_sets") as looking:
        page.goto(opened.url)
        page.locator("#kind").wait_for()
        assert looking.asked.wait(HELD_S)
        page.wait_for_timeout(500)
        reached = (
            "[...document.querySelectorAll('#tabs')].every(one => one.inert && one.classList.contains('db-opening'))"
        )
        assert page.evaluate(reached)
        clicked = page.locator("#kind").get_by_text("Style", exact=True)
        with pytest.raises(Exception, match="Timeout"):
            clicked.click(timeout=500)
        looking.let_go.set()
        clicked.click()
    page.wait_for_timeout(1500)
    assert page.locator("#kind input:checked").get_attribute("value") == "style"
    assert page.locator("#instance-prompt textarea").input_value().endswith(" style")
    context.close()


@pytest.mark.reliability
def test_a_page_whose_first_answer_fails_can_be_used_all_the_same(
    browser: "Browser", opened: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr(photo_handlers, "photo_sets", broken)
    context = browser.new_context()
    page = context.new_page()
    page.goto(opened.url)
    page.locator("#tabs:not(.db-opening)").wait_for()
    assert not page.evaluate("document.getElementById('tabs').inert")
    page.locator("#kind").get_by_text("Style", exact=True).click()
    assert page.locator("#instance-prompt textarea").input_value() == "painting in zwx style"
    context.close()
