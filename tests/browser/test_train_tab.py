"""The Train tab as a person meets it: mistakes at their fields, a failure with its button, the line, the way back."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from dreambooth.data.samples import sample_folder
from tests.browser.conftest import Played
from tests.harness.open_page import OpenPage, open_page
from tests.harness.visit import TABS, Visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.browser
# Everything that can be operated, and whether something tells a screen reader what it is.
NAMELESS = """() => {
  const shown = element => element.offsetParent !== null && getComputedStyle(element).visibility !== 'hidden';
  const kinds = 'input, textarea, select, button, [role=combobox], [role=tab], img:not([alt])';
  const controls = document.querySelectorAll(kinds);
  return [...controls].filter(shown).filter(control => {
    const labelled = control.getAttribute('aria-labelledby');
    const told = control.getAttribute('aria-label') || control.alt || control.title
      || (labelled && document.getElementById(labelled)?.innerText)
      || control.closest('label')?.innerText || [...(control.labels || [])].map(label => label.innerText).join('')
      || control.innerText;
    return !(told || '').trim();
  }).map(control => control.outerHTML.slice(0, 200));
}"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, player: Played) -> Iterator[OpenPage]:
    """Open a page for all tests of this file."""
    with open_page(tmp_path_factory.mktemp("page"), train=player) as page:
        yield page


@pytest.fixture
def visit(browser: "Browser", opened: OpenPage, played: Played) -> Iterator[Visit]:
    """Open a window, and end what still trains in the end: the next test's run would wait behind it."""
    visit = Visit(browser, opened.url)
    yield visit
    played.go_on.set()
    visit.until("header", "Idle")
    visit.close()


def with_photos(visit: Visit) -> None:
    """Have five photos in the first tab."""
    photos = sorted(sample_folder().glob("*.png"))
    # Without photos the report says how many are recommended.
    if not visit.page.locator("#report").inner_text().startswith("5 photos"):
        visit.page.locator("#photos input[type=file]").first.set_input_files([str(path) for path in photos])
        visit.until("report", "^5 photos")


def test_five_photos_become_a_gallery_in_three_clicks_and_a_drop(visit: Visit, played: Played) -> None:
    page = visit.page
    page.locator("#kind").get_by_text("Object", exact=True).click()
    with_photos(visit)
    page.locator("#go-on").click()
    visit.until("plan", r"(?s)5 photos.*600 steps.*needs .* GB memory.*writes up to")
    page.locator("#start").click()
    page.locator("#samples img").nth(1).wait_for()
    visit.until("run-status", r"running\s+Training: step \d+ of 600")
    assert not page.locator("#field-max_train_steps").is_visible(), "out of the way while it runs"
    assert page.url.endswith(f"tab=train&run={visit.value('run')}")
    visit.until("run-status", r"\d+ s left|min left")
    visit.until("run-status", "GB memory in use")
    page.locator("#save-now").click()
    page.locator("#samples img").nth(3).wait_for()
    visit.until("run-message", r"^\s*$")  # what was announced is there
    played.go_on.set()
    visit.until("run-status", "Finished after 600 steps")
    run, step = visit.value("run"), page.locator("#run-steps [data-act=use]").last.get_attribute("data-step")
    assert step != "600", "Save now saved another"
    page.locator(f"#run-steps [data-act=convert][data-step='{step}']").click()
    page.wait_for_function(
        "step => document.querySelector('#convert-model input')?.value.includes(`step ${step} `)", arg=step
    )
    page.go_back()
    page.locator(f"#run-steps [data-act=compare][data-step='{step}']").click()
    page.wait_for_function("run => document.querySelector('#compare-run input')?.value == run", arg=run)
    page.locator("#compare-steps").get_by_text(f"step {step}", exact=True).wait_for()
    page.locator("#compare").wait_for()
    assert not page.locator("#generate").is_visible(), "the button is that of the way that is shown"
    page.go_back()
    page.locator(f"#run-steps [data-act=use][data-step='{step}']").click()
    page.wait_for_function(
        "step => document.querySelector('#generate-model input')?.value.includes(`step ${step} `)", arg=step
    )
    page.go_back()
    page.locator("#make-pictures").click()
    page.locator("#pictures img").nth(1).wait_for()
    page.wait_for_function("document.querySelector('#generate-model input')?.value.includes('step 600')")
    page.wait_for_function("document.querySelector('#recipe textarea').value.includes('played/600')")
    page.locator("#use-settings").click()
    page.wait_for_function("document.querySelector('#generate-seed input, #generate-seed textarea').value == '600'")


def test_every_mistake_is_marked_at_its_field_until_it_is_mended(visit: Visit, opened: OpenPage) -> None:
    with_photos(visit)
    visit.new_training()
    visit.fill("field-max_train_steps", "0")
    visit.fill("field-seed", "<b>some</b> *number*")
    visit.unfold("advanced")
    visit.page.locator("#field-hflip").wait_for()
    visit.fill("find-setting", "adam beta1")
    visit.page.locator("#field-hflip").wait_for(state="hidden")
    assert visit.page.locator("#advanced [id^=field-]:visible").count() == 1
    visit.fill("field-adam_beta1", "7")
    visit.fill("find-setting", "memory and precision")
    visit.page.locator("#field-gradient_checkpointing").wait_for()
    assert not visit.page.locator("#field-adam_beta1").is_visible()
    visit.page.locator("#advanced > button").click()
    runs = opened.workspace.runs()
    visit.page.locator("#start").click()
    assert "Fix 3 settings to start" in visit.until("start-message", "to start")
    for name, told in (
        ("max_train_steps", "is 0: it must be 1 to 1000000 steps"),
        ("seed", 'is "<b>some</b> \u2217number\u2217": it must be a whole number'),
        ("adam_beta1", "is 7: it must be 0 to 0.9999"),
    ):
        field = visit.page.locator(f"#field-{name}.db-wrong")
        field.wait_for()
        assert told in field.inner_text(), "Advanced was opened for its field"
    assert opened.workspace.runs() == runs, "before anything starts"
    visit.fill("field-max_train_steps", "5")
    visit.page.wait_for_function("!document.querySelector('#field-max_train_steps.db-wrong')")
    assert visit.page.locator(".db-wrong").count() == 2
    visit.fill("field-seed", "")
    visit.fill("field-adam_beta1", "0.9")
    visit.page.wait_for_function("!document.querySelector('.db-wrong')")


def test_out_of_memory_is_a_panel_with_a_button_that_works(visit: Visit, played: Played) -> None:
    with_photos(visit)
    visit.new_training()
    played.error = type("OutOfMemoryError", (RuntimeError,), {})("Tried to allocate 2.00 GiB. More words")
    visit.page.locator("#start").click()
    told = visit.until("run-status", "ran out of memory")
    assert "Tried to allocate 2.00 GiB." in told
    assert "What needs less: --gradient_checkpointing" in told
    played.error = None
    visit.page.locator("#retry").click()
    visit.until("run-message", "gradient_checkpointing: on")
    visit.until("run-status", r"Training: step \d+ of")
    assert [config.gradient_checkpointing for config in played.seen] == [False, True]
    assert not visit.page.locator("#retry").is_visible()


def test_a_second_training_waits_in_line_and_an_old_run_goes(visit: Visit, played: Played, opened: OpenPage) -> None:
    with_photos(visit)
    visit.new_training()
    page = visit.page
    page.locator("#start").click()
    visit.until("run-status", "Training: step")
    visit.new_training()
    page.locator("#start").click()
    visit.until("run-message", "Queued, position 1, after")
    visit.until("run-status", "Queued, position 1, after")
    visit.until("header", "1 waiting")
    page.locator("#stop", has_text="Remove from queue").click()
    visit.until("run-status", "stopped")
    name = visit.value("run")
    visit.unfold("run-more")
    page.locator("#delete-run").click()
    page.locator("#delete-sure").click()
    page.locator("#runs-message").get_by_text(f"{name} was deleted").wait_for()
    page.locator("#runs-list").get_by_text(name, exact=True).wait_for(state="detached")
    assert not (opened.workspace.runs_dir / name).exists()
    played.go_on.set()
    visit.until("header", "Idle")


def test_a_run_of_the_past_is_chosen_in_the_table_and_its_settings_are_taken_over(visit: Visit, played: Played) -> None:
    with_photos(visit)
    visit.new_training()
    page = visit.page
    # Nothing is planned of settings that cannot be, and nothing started while the plan is that of others.
    page.evaluate("""new MutationObserver(() => window.wasClosed = true).observe(
      document.documentElement, {attributes: true, attributeFilter: ['data-stale-plan']})""")
    visit.fill("field-max_train_steps", "-5")
    visit.until("plan", "Steps is -5: it must be 1 to")
    assert page.evaluate("window.wasClosed") is True
    page.wait_for_function("!document.documentElement.hasAttribute('data-stale-plan')")
    visit.fill("field-max_train_steps", "17")
    visit.fill("field-learning_rate", "0.00123")
    played.go_on.set()
    page.locator("#start").click()
    visit.until("run-status", "Finished after 17 steps")
    name = visit.value("run")
    # In the same window the form is as it was left; another begins with what is recommended.
    visit.reload()
    visit.new_training()
    visit.until("plan", "17 steps")
    visit.page.evaluate("sessionStorage.clear()")
    visit.reload()
    visit.until("plan", "5 photos")
    assert visit.value("field-max_train_steps") == "600"
    visit.run(name)
    page.wait_for_function("name => document.querySelector('#run input').value == name", arg=name)
    visit.unfold("run-more")
    visit.until("run-settings", r"learning_rate\s+0.00123")
    with page.expect_response(lambda answer: "queue/join" in answer.url):
        visit.fill("run-note", "a high rate")
    page.wait_for_timeout(500)
    visit.reload()
    page.wait_for_function("document.querySelector('#run-note textarea')?.value == 'a high rate'")
    visit.unfold("run-more")
    page.locator("#reuse").click()
    page.wait_for_function("document.querySelector('#field-max_train_steps input').value == '17'")
    assert visit.value("field-learning_rate") == "0.00123"
    visit.unfold("as-command")
    visit.until("command", r"python -m dreambooth train .*--max_train_steps 17")


def test_every_place_has_an_address_and_nobody_lands_on_the_run_of_another(
    browser: "Browser", opened: OpenPage, visit: Visit, played: Played
) -> None:
    with_photos(visit)
    visit.new_training()
    page = visit.page
    visit.fill("field-max_train_steps", "1234")
    page.locator("#start").click()
    visit.until("run-status", "Training: step")
    name = visit.value("run")
    assert page.url.endswith(f"tab=train&run={name}")
    page.go_back()
    page.locator("#start").wait_for()
    assert visit.value("field-max_train_steps") == "1234"
    visit.reload()
    page.locator("#start").wait_for()
    assert visit.value("field-max_train_steps") == "1234", "the form is as it was left"
    visit.until("plan", "1234 steps")
    visit.tab("Upload & Concepts")
    page.go_back()
    page.locator("#start").wait_for()
    page.go_forward()
    page.locator("#go-on").wait_for()
    visit.until("status-line", r"Training: step \d+ of 1234")

    # A second browser: a bookmark of the run, and its own photos lead to the form and not to that run.
    served = page.request.get(opened.url).text()
    assert "Connecting..." in served
    assert ">Idle<" not in served, "a training is at work: the first paint must not say otherwise"
    other = Visit(browser, opened.url, place=f"tab=train&run={name}")
    other.until("run-status", r"Training: step \d+ of 1234")
    other.tab("Upload & Concepts")
    other.page.locator("#go-on").click()
    other.page.locator("#start").wait_for()
    assert not other.page.locator("#run-status").is_visible()
    other.tab("Generate")
    assert other.page.url.endswith("tab=generate")
    other.page.locator("#status-line a").click()
    other.page.locator("#run-status").wait_for()
    played.go_on.set()
    other.until("run-status", "Finished after 1234 steps")
    other.page.locator("#status-line").wait_for(state="hidden")
    other.run(name)
    other.until("runs-list", rf"{name}\s*done\s*5 \u00b7 .*1234 of 1234")
    other.close()


def test_everything_has_a_name_and_the_keyboard_reaches_the_start(visit: Visit) -> None:
    for name in TABS:
        visit.tab(name)
        visit.page.wait_for_timeout(400)
        assert visit.page.evaluate(NAMELESS) == [], name
    visit.new_training()
    visit.page.get_by_role("tab", name="Train", exact=True).focus()
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        if visit.page.evaluate("document.activeElement.id || document.activeElement.parentElement.id") == "start":
            break
    else:
        raise AssertionError("60 tabs do not reach Start training")


def test_a_phone_shows_a_run_without_scrolling_sideways(browser: "Browser", opened: OpenPage, played: Played) -> None:
    desk = Visit(browser, opened.url)
    with_photos(desk)
    desk.new_training()
    desk.page.locator("#start").click()
    desk.until("run-status", "Training: step")
    phone = Visit(browser, opened.url, width_px=390)
    phone.tab("Train")
    phone.until("run-status", r"Training: step \d+ of")
    phone.page.locator("#samples img").first.wait_for()
    phone.unfold("run-more")
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    phone.run()
    assert phone.page.evaluate("document.documentElement.scrollWidth") == 390
    # Stop is at hand on every tab.
    phone.tab("Generate")
    phone.until("status-line", r"Training: step \d+ of")
    phone.page.locator("#status-line a").click()
    phone.until("run-status", r"Training: step \d+ of")
    phone.tab("Generate")
    phone.page.locator("#status-line-stop").click()
    phone.tab("Train")
    stopped = phone.until("run-status", r"Stopped after \d+ of")
    step = re.findall(r"after (\d+)", stopped)[0]
    desk.until("run-status", f"Stopped after {step} of")
    for window in (desk, phone):
        window.close()
