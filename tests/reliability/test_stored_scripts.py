"""S11 in a real browser: scripts in prompts, names of files, runs and models, logs and errors; none of them runs."""

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photo_records import RECORDS_FILE
from dreambooth.data.photo_sets import photo_set
from dreambooth.data.samples import sample_folder
from dreambooth.data.words import Words
from dreambooth.durable import write_json
from dreambooth.events import Notice, SamplesMade, StatusChanged, StepLoss
from dreambooth.records.runlog import RunLog
from tests.harness.open_page import OpenPage, open_page
from tests.harness.raw_events import RawEvents

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.reliability, pytest.mark.browser]
TABS = ("Upload & Concepts", "Train", "Convert", "Generate")
PAYLOADS = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<svg onload=alert(1)>", "<svg/onload=alert(1)>",
    '"><img src=x onerror=alert(1)>', "'><img src=x onerror=alert(1)>", '" onmouseover=alert(1) x="',
    "' autofocus onfocus=alert(1) x='", "</title><script>alert(1)</script>", "</textarea><script>alert(1)</script>",
    "</pre><img src=x onerror=alert(1)>", "</style><script>alert(1)</script>", "<iframe src=javascript:alert(1)>",
    "<iframe srcdoc='<script>parent.alert(1)</script>'>", "<a href=javascript:alert(1)>click</a>",
    "[click](javascript:alert(1))", "![x](x\" onerror=\"alert(1))", "javascript:alert(1)",
    "<details open ontoggle=alert(1)>", "<video><source onerror=alert(1)>", "<audio src=x onerror=alert(1)>",
    "<body onload=alert(1)>", "<object data=javascript:alert(1)>", "<embed src=javascript:alert(1)>",
    "<math><mtext><script>alert(1)</script>", "<svg><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<style>@import'javascript:alert(1)'</style><img src=x onerror=alert(1)>", "${alert(1)}{{alert(1)}}",
    "&lt;img src=x onerror=alert(1)&gt;", "\\u003cimg src=x onerror=alert(1)\\u003e",
]  # fmt: skip
# What would be in the document if a payload had become HTML.
MADE_HTML = (
    "[onerror],[onload],[onmouseover],[onfocus],[ontoggle],[onbegin],[srcdoc],iframe,object,embed,math,img[src='x'],"
    "[href^='javascript:'],[src^='javascript:'],[data^='javascript:']"
)
PNG = sample_folder() / "1.png"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page over a data folder in which every payload lies in every place that holds a text."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        for number, payload in enumerate(PAYLOADS):
            stored_run(page, f"run-{number}", payload)
            named = payload.replace("/", "\u2215")
            stored_run(page, named, payload)
            stored_photos(page, f"photos-{number}", [payload])
            (page.workspace.models_dir / named).mkdir()
            shutil.copy(PNG, page.workspace.pictures_dir / f"{named}.png")
        stored_photos(page, "photos-all", PAYLOADS)
        yield page


def stored_run(page: OpenPage, name: str, payload: str) -> None:
    """Write a run whose prompts, log, sentences and sample names are the payload."""
    run = dataclasses.replace(page.workspace.run("x"), path=page.workspace.runs_dir / name)
    concept = Concept(payload, "photos", payload)
    config = TrainingConfig(concepts=(concept,), save_sample_prompt=payload, pretrained_model_name_or_path=payload)
    write_json(run.config_path, config.to_json())
    samples = run.step_folder(1) / "samples"
    samples.mkdir(parents=True)
    sample = samples / f"{payload.replace('/', chr(0x2215))}.png"
    shutil.copy(PNG, sample)
    shutil.copy(page.base / "model_index.json", run.step_folder(1))
    log = RunLog(run, 10)
    for event in (
        StatusChanged("running"), Notice(payload, "warning"), StepLoss(1, 0.5, 0.5, None, 1e-6),
        SamplesMade(1, (str(sample),)), StatusChanged("failed", payload, payload, payload),
    ):  # fmt: skip
        log(event)


def stored_photos(page: OpenPage, name: str, payloads: list[str]) -> None:
    """Write a photo set with a photo for each payload, which is its name and its caption; the first is its words."""
    kept = photo_set(page.workspace, name)
    sources = [page.copies_dir / f"{number}.png" for number in range(len(payloads))]
    for number, source in enumerate(sources):
        source.write_bytes(png(number))
    kept.add(sources)
    records = {
        photo.name: {"name": payload, "notes": []} for photo, payload in zip(kept.photos(), payloads, strict=True)
    }
    write_json(kept.folder / RECORDS_FILE, records)
    for photo, payload in zip(kept.photos(), payloads, strict=True):
        kept.keep_caption(photo.name, payload)
    kept.keep_words(Words("object", *payloads[:1] * 4))


def png(number: int) -> bytes:
    """Return a photo whose file is another one for each number, as the same is not taken twice."""
    file, told = io.BytesIO(), PngInfo()
    told.add_text("number", str(number))
    with Image.open(PNG) as image:
        image.save(file, format="PNG", pnginfo=told)
    return file.getvalue()


class Watched:
    """One window that notices every script that a payload would run."""

    def __init__(self, browser: "Browser", url: str) -> None:
        self.dialogs: list[str] = []
        self.url = url
        self.page: Page = browser.new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("dialog", self._dialog)
        self.page.goto(url)
        self.page.locator("#tabs:not(.db-opening)").wait_for()

    def train_view(self, place: dict[str, str]) -> None:
        """Open a view of the Train tab by its address, as a link does."""
        script = "place => { dbPlace.show(place); document.getElementById('follow-address').click(); }"
        self.page.evaluate(script, {"tab": "train"} | place)

    def _dialog(self, dialog: object) -> None:
        self.dialogs.append(str(getattr(dialog, "message", "")))
        dialog.dismiss()  # type: ignore[attr-defined]

    def tab(self, name: str) -> None:
        """Open a tab."""
        self.page.get_by_role("tab", name=name, exact=True).first.click()

    def fill(self, name: str, text: str) -> None:
        """Type into a field, leave it, and give the page time to answer."""
        field = self.page.locator(f"#{name} textarea, #{name} input").first
        field.fill(text)
        field.press("Enter")
        field.blur()
        self.page.wait_for_timeout(60)

    def check(self, what: str) -> None:
        """Assert that nothing ran and that nothing became HTML."""
        self.page.wait_for_timeout(120)
        made = self.page.eval_on_selector_all(MADE_HTML, "all => all.map(one => one.outerHTML)")
        assert (self.dialogs, made) == ([], []), what
        self.page.evaluate("document.querySelectorAll('.toast-close').forEach(one => one.click())")


def test_no_stored_script_runs(browser: "Browser", opened: OpenPage) -> None:
    """S11: 30 payloads x 4 tabs: stored ones shown, then each typed and uploaded; 0 dialogs, 0 pieces of HTML."""
    assert len(set(PAYLOADS)) == 30
    events = RawEvents(opened.url)
    watched = Watched(browser, opened.url)
    page = watched.page
    upload(watched, PAYLOADS)
    watched.check("names of photos")
    upload(watched, PAYLOADS[:1])
    watched.train_view({"view": "new"})
    # Refused, or thirty runs would be loading while the page is watched.
    watched.fill("field-max_train_steps", "0")
    checks = 0
    for number, payload in enumerate(PAYLOADS):
        watched.tab("Upload & Concepts")
        for field in ("identifier", "class-word", "instance-prompt", "class-prompt"):
            watched.fill(field, payload)
        watched.check(f"concepts: {payload}")

        watched.train_view({"view": "new"})
        watched.fill("base", payload)
        page.locator("#start").click()
        watched.check(f"start: {payload}")
        watched.train_view({"run": "run-0"})
        watched.fill("run", f"run-{number}" if number % 2 else payload.replace("/", "\u2215"))
        watched.check(f"train: {payload}")

        watched.tab("Convert")
        watched.fill("convert-model", payload)
        # It does nothing once the page knows that this is no model.
        page.locator("#prepare").dispatch_event("click")
        watched.check(f"convert: {payload}")

        watched.tab("Generate")
        watched.fill("generate-model", payload)
        watched.fill("prompt", payload)
        watched.fill("negative-prompt", payload)
        page.locator("#generate").click()
        watched.check(f"generate: {payload}")
        checks += 4

    page.close()
    fresh = Watched(browser, opened.url)
    look_at_what_is_stored(fresh)
    kept = [json.loads(value) for _, value in events.call("newest_photos", [64])[0].outputs]
    (words,) = [one["told"] for one in kept if isinstance(one, dict) and "told" in one]
    assert PAYLOADS[-1] in words.values()
    control(fresh)
    print(f"S11: {len(PAYLOADS)} payloads x {len(TABS)} tabs typed and stored, {checks} checks, 0 scripts run")


def upload(watched: Watched, payloads: list[str]) -> None:
    """Drop a photo and a script for each payload, named by it, into a new set."""
    page = watched.page
    watched.tab("Upload & Concepts")
    if page.locator("#new-set").is_visible():
        page.locator("#new-set").click()
    page.wait_for_function("document.querySelector('#report').innerText.includes('No photos yet')")
    page.locator("#photos input[type=file]").first.set_input_files(
        [
            {"name": f"{payload}.png", "mimeType": "image/png", "buffer": png(number)}
            for number, payload in enumerate(payloads)
        ]
        + [
            {"name": payload, "mimeType": "image/svg+xml", "buffer": b"<svg onload='alert(1)'/>"}
            for payload in payloads
        ]
    )
    page.wait_for_function(f"document.querySelector('#report').innerText.startsWith('{len(payloads)} photo')")


def look_at_what_is_stored(fresh: Watched) -> None:
    """Open all lists, the set of photos with every name and caption, and every run."""
    for tab, lists in zip(TABS, (("earlier",), (), ("convert-model",), ("generate-model",)), strict=True):
        fresh.tab(tab)
        if tab == TABS[0]:
            fresh.page.locator("#more > button").click()
            fresh.fill("earlier", "photos-all")
            fresh.page.wait_for_function(f"document.querySelector('#report').innerText.startsWith('{len(PAYLOADS)}')")
            fresh.check("names and captions of photos")
        for name in lists:
            fresh.page.locator(f"#{name} input").first.click()
            fresh.check(f"{tab}: list {name}")
            fresh.page.keyboard.press("Escape")
    fresh.train_view({"view": "new"})
    fresh.page.locator("#base input").first.click()
    fresh.check("list base")
    fresh.page.keyboard.press("Escape")
    fresh.train_view({"run": "run-0"})
    fresh.page.locator("#run input").first.click()
    fresh.check("list run")
    fresh.page.keyboard.press("Escape")
    for number in range(len(PAYLOADS)):
        fresh.fill("run", f"run-{number}")
        fresh.page.wait_for_function("document.querySelector('#run-status').innerText.includes('failed')")
        fresh.check(f"run {number}")


def test_an_uploaded_page_is_saved_and_not_run(browser: "Browser", opened: OpenPage) -> None:
    """S11: HTML and SVG that were uploaded run nothing when their own address is opened."""
    watched = Watched(browser, opened.url)
    for name, kind in (("x.html", "text/html"), ("x.svg", "image/svg+xml"), ("x.xhtml", "application/xhtml+xml")):
        script = "<script>alert(1)</script>"
        content = (
            script if name != "x.svg" else f"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'>{script}</svg>"
        )
        stored = watched.page.evaluate(
            "async ([name, kind, content]) => { const form = new FormData();"
            " form.append('files', new File([content], name, {type: kind}));"
            " return await (await fetch('gradio_api/upload', {method: 'POST', body: form})).json(); }",
            [name, kind, content],
        )
        # A download is no page to go to.
        with contextlib.suppress(Exception):
            watched.page.goto(f"{opened.url}gradio_api/file={stored[0]}")
        watched.page.wait_for_timeout(300)
        assert watched.dialogs == [], name
        watched.page.goto(opened.url)
    control(watched)


def control(watched: Watched) -> None:
    """Show that a payload that did become HTML would have been noticed."""
    watched.page.evaluate("text => document.body.insertAdjacentHTML('beforeend', text)", PAYLOADS[0])
    for _ in range(50):
        watched.page.wait_for_timeout(100)
        if watched.dialogs:
            break
    assert watched.dialogs == ["1"]
