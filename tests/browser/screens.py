"""Make `docs/screens/*.png`: every tab with the bundled subject, idle and at work, light, dark and on a phone.

python -m tests.browser.screens docs/screens

A real training of the starter is photographed at work, with a model saved on the way, and when it was stopped: some
minutes on a processor.
"""

import argparse
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TABS = {"Upload & Concepts": "upload", "Train": "train", "Convert": "convert", "Generate": "generate"}
LOOKS: dict[str, tuple[int, int, str]] = {
    "light": (1200, 1000, "light"), "dark": (1200, 1000, "dark"), "phone": (390, 844, "light"),
}  # fmt: skip
WAIT_MS = 1_800_000
MAX_COLORS = 160
SETTLE_MS = 2500


def open_tab(page: "Page", name: str) -> None:
    """Open a tab, from the overflow menu where it does not fit."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if tab.count() and tab.first.is_visible():
        tab.first.click()
    else:
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()


def visited(browser: "Browser", url: str, look: str) -> "Page":
    """Open the page in a window of this look."""
    width_px, height_px, theme = LOOKS[look]
    page = browser.new_page(viewport={"width": width_px, "height": height_px})
    page.goto(f"{url}?__theme={theme}")
    page.locator("#try-sample").wait_for()
    page.wait_for_timeout(SETTLE_MS)
    return page


def photograph(page: "Page", target: Path) -> None:
    """Photograph what the window shows, in few colors: a page has not more, and the file is small."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(MAX_COLORS, dither=Image.Dither.NONE).save(target, optimize=True)


def tour(browser: "Browser", url: str, folder: Path, state: str) -> None:
    """Photograph every tab in every look."""
    for look in LOOKS:
        page = visited(browser, url, look)
        for name, short in TABS.items():
            open_tab(page, name)
            page.wait_for_timeout(SETTLE_MS)
            photograph(page, folder / f"{short}-{state}-{look}.png")
        page.close()


def make_screens(url: str, folder: Path) -> None:
    """Photograph the page at work on the bundled subject, and idle when that was stopped."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser: Any = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = visited(browser, url, "light")
        page.locator("#try-sample").click()
        page.locator("#run-status", has_text="Training: step").wait_for(timeout=WAIT_MS)
        page.locator("#run-status", has_text=re.compile(r"\d (s|min) left")).wait_for(timeout=WAIT_MS)
        page.locator("#save-now").click()
        page.locator("#samples img").nth(4).wait_for(timeout=WAIT_MS)
        tour(browser, url, folder, "running")
        page.locator("#stop").click()
        page.locator("#run-status .db-chip-stopped").wait_for(timeout=WAIT_MS)
        tour(browser, url, folder, "idle")
        browser.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Photograph every tab.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", help="A page that is open already.")
    arguments = parser.parse_args()
    if arguments.url:
        make_screens(arguments.url, arguments.folder)
        return
    from tests.harness.open_page import open_page

    with tempfile.TemporaryDirectory() as data, open_page(Path(data)) as opened:
        make_screens(opened.url, arguments.folder)


if __name__ == "__main__":
    main()
