"""A page that is really open, for the tests that go through HTTP or a browser."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import app
from dreambooth.jobs import Jobs
from dreambooth.models.manager import ModelManager
from dreambooth.settings import Settings
from dreambooth.workspace import Workspace
from tests.tiny import tiny_base
from ui.build import build_page


@dataclass(frozen=True)
class OpenPage:
    """Where a page is open, and where its files are."""

    url: str
    workspace: Workspace
    base: Path


def free_port() -> int:
    """Return a port nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def open_page(folder: Path) -> Iterator[OpenPage]:
    """Open the page as the app does, over a data folder of its own with a tiny base in it."""
    workspace = Workspace(folder / "data")
    base = tiny_base(workspace.models_dir / "tiny")
    jobs = Jobs(workspace, ModelManager("cpu"), None)
    page = build_page(jobs, workspace, Settings(workspace.data_dir), folder / "copies")
    door = app.Door("127.0.0.1", free_port(), share=False, auth=None, made_password=False)
    _, url, _ = page.launch(**app.launch_arguments(door, workspace.exports_dir, workspace.runs_dir))
    try:
        yield OpenPage(url, workspace, base)
    finally:
        jobs.close()
        page.close(verbose=False)
