"""A browser window on the page, as a user has it."""

import re
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

TABS = ("Upload & Concepts", "Train", "Convert", "Generate")
WAIT_MS = 90_000


class Visit:
    """One browser window on the page, which keeps what went wrong in it."""

    def __init__(
        self, browser: "Browser", url: str, *, width_px: int = 1200, dark: bool = False, place: str = ""
    ) -> None:
        self.problems: list[str] = []
        self.elsewhere: list[str] = []
        self.context: BrowserContext = browser.new_context(viewport={"width": width_px, "height": 900})
        self.context.set_default_timeout(WAIT_MS)
        self.page: Page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda told: self.problems.append(told.text) if told.type == "error" else None)
        host = urlsplit(url).netloc
        self.page.on(
            "request",
            lambda asked: self.elsewhere.append(asked.url) if urlsplit(asked.url).netloc not in ("", host) else None,
        )
        self.page.goto(f"{url}?__theme={'dark' if dark else 'light'}{'&' if place else ''}{place}")
        self.opened()

    def opened(self) -> None:
        """Wait until the page has its first answers, and lets itself be used."""
        self.page.locator("#tabs:not(.db-opening)").wait_for()

    def tab(self, name: str) -> None:
        """Open a tab, from the overflow menu where it does not fit."""
        tab = self.page.get_by_role("tab", name=name, exact=True)
        if tab.count() and tab.first.is_visible():
            tab.first.click()
        else:
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()

    def train_tab(self) -> None:
        """Open the Train tab at whichever of its views was open last."""
        self.tab("Train")
        self.page.locator("#run-view, #runs-view, #new-view").locator("visible=true").first.wait_for()

    def new_training(self) -> None:
        """Open the form for a new training."""
        self.train_tab()
        if not self.page.locator("#new-view").is_visible():
            self.page.locator("a[data-place]:visible", has_text="New training").click()
        self.page.locator("#start").wait_for()

    def run(self, name: str = "") -> None:
        """Open the view of a run, by its link in the list; without a name the newest."""
        self.train_tab()
        if not self.page.locator("#runs-view").is_visible():
            self.page.locator("a[data-place]:visible", has_text="All runs").click()
        named = self.page.locator("#runs-list a", has_text=name) if name else self.page.locator("#runs-list a")
        named.first.click()
        self.page.locator("#run-view").wait_for()

    def new_set(self) -> None:
        """Have no photos in the first tab; the button for that is there only where there are some."""
        if self.page.locator("#new-set").is_visible():
            self.page.locator("#new-set").click()
        self.until("report", "No photos yet")

    def unfold(self, name: str) -> None:
        """Open an accordion and leave its fields the moment in which Gradio still sets their first values.

        Up to 40 ms after a field has appeared its value is set once more: what a script types meanwhile is lost.
        """
        self.page.locator(f"#{name} > button").click()
        self.page.wait_for_timeout(300)

    def fill(self, name: str, value: str) -> None:
        """Type into a setting's field and leave it."""
        field = self.page.locator(f"#{name} textarea, #{name} input").first
        field.fill(value)
        field.blur()

    def value(self, name: str) -> str:
        """Return what a field shows."""
        return self.page.locator(f"#{name} textarea, #{name} input").first.input_value()

    def until(self, name: str, pattern: str) -> str:
        """Wait until an element's text matches, and return the text."""
        deadline_s = time.monotonic() + WAIT_MS / 1000
        text = ""
        while time.monotonic() < deadline_s:
            text = self.page.locator(f"#{name}").inner_text()
            if re.search(pattern, text):
                return text
            self.page.wait_for_timeout(200)
        raise AssertionError(f"#{name} never showed {pattern!r}; at last: {text!r}")

    def reload(self) -> None:
        """Load the page anew; requests that this cuts off are no problem."""
        before = list(self.problems)
        self.page.reload()
        self.opened()
        cut_off = ("AbortError", "Connection errored out")
        new = self.problems[len(before) :]
        self.problems = before + [problem for problem in new if not any(words in problem for words in cut_off)]

    def close(self) -> None:
        """Close the window; nothing may have gone wrong in it, nor been asked of another host."""
        self.context.close()
        assert self.problems == []
        assert self.elsewhere == []
