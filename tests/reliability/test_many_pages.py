"""Many eyes on one run, and pages opened when much has happened: R17 and R18 of docs/reliability.md."""

import contextlib
import dataclasses
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.events import PhaseProgress, StatusChanged, StepLoss
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.training.materials import RunContext
from tests.harness.jobs_at_work import until
from tests.harness.server_life import a_whole_app, stub_config

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.reliability, pytest.mark.browser]
NUM_STEPS = 2000
STEP_S = 0.25
WAIT_MS = 90_000
STATUS = re.compile(r"step (\d+) of")


def slow_training(_: TrainingConfig, context: RunContext) -> StatusChanged:
    """Take steps of a quarter second, as long as nobody stops it."""
    for step in range(1, NUM_STEPS + 1):
        if context.controls.stop.wait(STEP_S):
            return StatusChanged("stopped")
        context.report(PhaseProgress("training", step, NUM_STEPS))
        context.report(StepLoss(step, 0.5, 0.5, None, 1e-6))
    return StatusChanged("done")


@contextlib.contextmanager
def an_app(data_dir: Path, photos: Path | None) -> Iterator[tuple[int, str]]:
    """Run the app in a child with the stand-in, and with a run when photos are given."""

    def prepared(jobs: Jobs) -> None:
        if photos is not None:
            jobs.start(dataclasses.replace(stub_config(photos), max_train_steps=NUM_STEPS), "watched")

    with a_whole_app(data_dir, prepared, slow_training) as app:
        yield app


def on_the_train_tab(page: "Page", url: str) -> None:
    page.goto(url)
    page.get_by_role("tab", name="Train", exact=True).click()


def shown_after(browser: "Browser", url: str, words: str) -> float:
    """Open the page and return how many seconds it took to show the run in these words."""
    context = browser.new_context()
    page = context.new_page()
    began_s = time.monotonic()
    page.set_default_timeout(WAIT_MS)
    on_the_train_tab(page, url)
    page.locator("#run-status", has_text=re.compile(words)).wait_for()
    took_s = time.monotonic() - began_s
    context.close()
    return took_s


def test_a_page_opened_at_any_time_shows_all_there_is(browser: "Browser", tmp_path: Path, photos: Path) -> None:
    """R18: mid-run, after the server was killed and started again, after the run has ended; ten times each."""
    took_s: dict[str, list[float]] = {"mid-run": [], "restarted": [], "dead": []}
    with an_app(tmp_path / "data", photos) as (child, url):
        shown_after(browser, url, "step")
        took_s["mid-run"] = [shown_after(browser, url, r"Training: step \d+ of 2000") for _ in range(10)]
        os.kill(child, signal.SIGKILL)
    with an_app(tmp_path / "data", None) as (_, url):
        shown_after(browser, url, "interrupted")
        took_s["restarted"] = [shown_after(browser, url, "Interrupted at step") for _ in range(10)]
    with an_app(tmp_path / "other", photos) as (_, url):
        workspace = Workspace(tmp_path / "other")
        (run,) = workspace.runs()
        until(lambda: read_state(run).step, lambda step: step > 4)
        jobs_stop(url)
        until(lambda: read_state(run).status, lambda status: status == "stopped")
        shown_after(browser, url, "stopped")
        took_s["dead"] = [shown_after(browser, url, r"Stopped after \d+ of 2000") for _ in range(10)]
    for kind, times in took_s.items():
        print(f"R18: {kind}: {sorted(times)[5]:.1f} s in the middle, {max(times):.1f} s at most")
    assert max(max(times) for times in took_s.values()) <= 3


def jobs_stop(url: str) -> None:
    from gradio_client import Client

    Client(url, verbose=False).predict("", api_name="/stop_training")


def test_eight_browsers_and_24_clients_see_the_same_step(browser: "Browser", tmp_path: Path, photos: Path) -> None:
    """R17: a minute of watching, with pages reloaded, closed and opened again."""
    import psutil
    from gradio_client import Client

    problems: list[str] = []
    asked_s: list[float] = []
    ending = threading.Event()
    with an_app(tmp_path / "data", photos) as (child, url):
        (run,) = Workspace(tmp_path / "data").runs()

        def watched(page: "Page") -> None:
            page.get_by_role("tab", name="Train", exact=True).click()
            page.locator("#run-status", has_text=STATUS).wait_for()

        @contextlib.contextmanager
        def breaking_off() -> Iterator[None]:
            """Pass over what Gradio says of the requests that a reload breaks off."""
            told_before = len(problems)
            yield
            broken_off = ("AbortError", "Connection errored out")
            problems[told_before:] = [
                told for told in problems[told_before:] if not any(words in told for words in broken_off)
            ]

        def opened() -> "Page":
            page = browser.new_context().new_page()
            page.set_default_timeout(WAIT_MS)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda told: problems.append(told.text) if told.type == "error" else None)
            page.goto(url)
            watched(page)
            return page

        def ask() -> None:
            client = Client(url, verbose=False)
            while not ending.is_set():
                began_s = time.monotonic()
                client.predict("", api_name="/training_status")
                asked_s.append(time.monotonic() - began_s)
                ending.wait(1)

        askers = [threading.Thread(target=ask, daemon=True) for _ in range(24)]
        for asker in askers:
            asker.start()
        pages = [opened() for _ in range(8)]
        server = psutil.Process(child)
        cpu_s, began_s, num_asked = sum(server.cpu_times()[:2]), time.monotonic(), len(asked_s)
        apart: list[int] = []
        for number in range(12):
            if number % 4 == 1:
                with breaking_off():
                    pages[number % 8].reload()
                    watched(pages[number % 8])
            if number % 4 == 3:
                with breaking_off():
                    pages[0].context.close()
                    pages[0] = opened()
            for page in pages:
                page.wait_for_timeout(500)
                text = page.locator("#run-status").inner_text()
                now = read_state(run).step
                found = STATUS.search(text)
                apart.append(now - int(found[1]) if found else NUM_STEPS)
        spent_s, lasted_s = sum(server.cpu_times()[:2]) - cpu_s, time.monotonic() - began_s
        num_polls = len(asked_s) - num_asked + 8 * lasted_s
        ending.set()
        for asker in askers:
            asker.join()
    slow, late = sorted(asked_s), sorted(lag * STEP_S for lag in apart)
    print(
        f"R17: {len(late)} looks, {late[len(late) // 2]:.1f} s behind in the middle, {late[-1]:.1f} s at most, "
        f"{sum(lag <= 2 for lag in late)} within 2 s; {spent_s / num_polls * 1000:.0f} ms of "
        f"CPU a poll over {lasted_s:.0f} s; an answer in {slow[len(slow) // 2]:.2f} s, {slow[-1]:.2f} s at most; "
        f"{len(problems)} console errors"
    )
    assert problems == []
    assert late[-1] <= 2
