"""A page that is really open, for the tests that go through HTTP or a browser."""

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

import app
from dreambooth.environment import Secret, Settings
from dreambooth.errors import DreamBoothError
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import Training
from tests.harness.tiny import tiny_base
from ui.boundary import Page
from ui.build import build_page

# Settings of a run of a few seconds, as a program sends them.
SHORT = {
    "max_train_steps": 4, "save_interval": 2, "num_class_images": 2, "n_save_sample": 1, "save_infer_steps": 1,
    "mixed_precision": "no", "use_8bit_adam": False, "num_crop_variants": 1,
}  # fmt: skip


@dataclass(frozen=True)
class OpenPage:
    """Where a page is open, and where its files are."""

    url: str
    workspace: Workspace
    base: Path
    copies_dir: Path
    app_routes: list[Any]
    blocks: Page


def free_port() -> int:
    """Return a port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def open_page(
    folder: Path,
    *,
    token: str | None = None,
    auth: tuple[str, str] | None = None,
    training_refusal: DreamBoothError | None = None,
    takes_folders: bool = False,
    train: Training | None = None,
) -> Iterator[OpenPage]:
    """Open the page as the app does, over a data folder of its own with a tiny base in it."""
    workspace = Workspace(folder / "data")
    settings = Settings(workspace.data_dir, token=None if token is None else Secret(token))
    base = tiny_base(workspace.models_dir / "tiny")
    jobs = Jobs(workspace, ModelManager("cpu"), token, train=train)
    with app.private_folder(workspace) as copies_dir, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(copies_dir))
        patch.setenv("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000000")
        patch.setattr("tempfile.tempdir", str(copies_dir))
        page = build_page(jobs, workspace, settings, copies_dir, training_refusal, takes_folders=takes_folders)
        access = app.PageAccess("127.0.0.1", free_port(), share=False, auth=auth, made_password=False)
        _, url, _ = page.launch(**app.launch_arguments(access, workspace, settings, copies_dir))
        try:
            yield OpenPage(url, workspace, base, copies_dir, page.server_app.routes, page)
        finally:
            jobs.close()
            page.close(verbose=False)


def finished(client: Client, run: str) -> dict[str, Any]:
    """Wait for a run to end and return its status."""
    deadline_s = time.monotonic() + 150
    while time.monotonic() < deadline_s:
        status: dict[str, Any] = client.predict(run, api_name="/training_status")
        if status["status"] in ("done", "failed", "stopped"):
            return status
        time.sleep(0.5)
    raise AssertionError(f"the run did not end: {status}")
