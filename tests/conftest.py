"""What all tests share: a home of their own, and when those that need a GPU or a browser run."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test, and each process it starts, an empty data folder and no token; nothing of the user's counts."""
    home = tmp_path_factory.mktemp("home")
    for name in ("HF_TOKEN", "DREAMBOOTH_AUTH", "DREAMBOOTH_HOST", "DREAMBOOTH_PORT", "SPACE_ID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DREAMBOOTH_HOME", str(home))
    return home


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip GPU tests without a GPU, and browser tests without a browser unless this is CI, where that is a failure."""
    if item.get_closest_marker("gpu") and not _has_cuda():
        pytest.skip("no CUDA device here")
    if item.get_closest_marker("browser") and (missing := _missing_browser()):
        if os.environ.get("CI"):
            pytest.fail(f"browser tests must run in CI: {missing}", pytrace=False)
        pytest.skip(missing)


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _missing_browser() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is missing: pip install -r requirements-dev.txt"
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        return "no browser is found: apt-get install chromium"
    return ""
