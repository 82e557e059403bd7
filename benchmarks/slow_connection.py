"""How long the page takes until it can be used over a slow connection, beside a bare Gradio page, by turns in one run.

    python -m benchmarks.slow_connection [--rounds 3] [--browser /usr/bin/chromium]

Chromium is throttled as its "slow 3G" is: two seconds of latency for each request, 50 kB/s. Cold is a browser's first
visit, cached its second. Needs Playwright.
"""

import argparse
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.measuring import heading, keep
from benchmarks.startup import BARE, TIMEOUT_S, table

SLOW_3G = {"offline": False, "latency": 2000, "downloadThroughput": 50 * 1024, "uploadThroughput": 50 * 1024}
# What shows that a page can be used: the bare one's field, and our tabs once they take clicks.
USABLE = {"bare": "textarea", "ours": "#tabs:not(.db-opening)"}


def main() -> None:
    """Measure by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    app = Path(__file__).resolve().parent.parent / "app.py"
    commands = {"bare": [sys.executable, "-c", BARE, "PORT"], "ours": [sys.executable, str(app), "--port", "PORT"]}
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {name: stack.enter_context(server(command, home)) for name, command in commands.items()}
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=arguments.browser, args=["--no-sandbox"])
        for _ in range(arguments.rounds):
            contexts = {name: browser.new_context() for name in urls}
            for when in ("cold", "cached"):
                for name, url in urls.items():
                    seconds, num_requests, num_bytes = usable(contexts[name], url, USABLE[name])
                    found.setdefault(f"{name}, {when}", []).append(seconds)
                    print(
                        name, when, f"{seconds:.1f} s, {num_requests} requests, {num_bytes / 1000:.0f} kB", flush=True
                    )
    print(heading(), table(found), sep="\n\n")
    keep("slow_connection", found)


@contextlib.contextmanager
def server(command: list[str], home: Path) -> Iterator[str]:
    """Yield the address of a server once it answers, and end it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"DREAMBOOTH_HOME": str(home), "GRADIO_ANALYTICS_ENABLED": "False"}
    process = subprocess.Popen(
        [part.replace("PORT", str(port)) for part in command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url, end_s = f"http://127.0.0.1:{port}/", time.monotonic() + TIMEOUT_S
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=30).read()
                break
            except (urllib.error.URLError, ConnectionError):
                if time.monotonic() > end_s:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def usable(context: Any, url: str, selector: str) -> tuple[float, int, int]:
    """Open the page throttled; return the seconds until it can be used, its requests until then, and their bytes."""
    page = context.new_page()
    client = context.new_cdp_session(page)
    client.send("Network.enable")
    client.send("Network.emulateNetworkConditions", SLOW_3G)
    asked: set[str] = set()
    received: list[int] = []
    client.on(
        "Network.requestWillBeSent",
        lambda event: asked.add(event["requestId"]) if event["request"]["url"].startswith("http") else None,
    )
    client.on("Network.loadingFinished", lambda event: received.append(int(event["encodedDataLength"])))
    began_s = time.perf_counter()
    page.goto(url, wait_until="commit", timeout=TIMEOUT_S * 1000)
    page.wait_for_selector(selector, timeout=TIMEOUT_S * 1000)
    seconds = time.perf_counter() - began_s
    page.close()
    return seconds, len(asked), sum(received)


if __name__ == "__main__":
    main()
