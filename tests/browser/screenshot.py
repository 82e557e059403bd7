"""Make `docs/page.png`: the bundled subject trained on the starter, as the page shows it.

python -m tests.browser.screenshot docs/page.png [--url URL of a page that is open already]
"""

import argparse
import shutil
import tempfile
from pathlib import Path

WIDTH_PX, HEIGHT_PX = 1200, 1000
WAIT_MS = 1_800_000


def photograph(url: str, target: Path) -> None:
    """Start the sample if no run is there, wait for its end, and photograph the Train tab."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
        page.goto(url)
        page.locator("#try-sample").wait_for()
        page.wait_for_timeout(3000)
        page.get_by_role("tab", name="Train").click()
        if page.locator("#runs-list a").count():
            page.locator("#runs-list a").first.click()
        else:
            page.get_by_role("tab", name="Upload & Concepts").click()
            page.locator("#try-sample").click()
        page.locator("#run-status .db-chip-done").wait_for(timeout=WAIT_MS)
        page.wait_for_timeout(3000)
        page.screenshot(path=target)
        browser.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Photograph the page.")
    parser.add_argument("target", type=Path)
    parser.add_argument("--url")
    arguments = parser.parse_args()
    if arguments.url:
        photograph(arguments.url, arguments.target)
        return
    from tests.harness.open_page import open_page

    with tempfile.TemporaryDirectory() as folder, open_page(Path(folder)) as opened:
        photograph(opened.url, arguments.target)


if __name__ == "__main__":
    main()
