"""What all tests share: a home of their own, a tiny base, and when those that need a GPU or a browser run."""

import gc
import importlib.util
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.harness.trained import Run

# Before torch is imported, for this process and those it starts: thread counts change sums, and two cores serve all.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Without it cuBLAS may add up in another order each time, and no two runs on a card are the same.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

UNSHARED = {"test_kills", "test_resume", "test_trainer", "test_updates", "test_saving", "test_disk", "test_readme"}


@pytest.fixture(scope="module", autouse=True)
def old_objects_aside() -> None:
    """Let the collector pass over what is there already: libraries' million objects cost it half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test, and each process it starts, an empty data folder and no token; nothing of the user's counts."""
    home = tmp_path_factory.mktemp("home")
    for name in (
        "HF_TOKEN",
        "DREAMBOOTH_AUTH",
        "DREAMBOOTH_HOST",
        "DREAMBOOTH_PORT",
        "SPACE_ID",
        "SPACES_ZERO_GPU",
        "ACCELERATOR",
        "COLAB_RELEASE_TAG",
        "DREAMBOOTH_DRIVE",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DREAMBOOTH_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a base with random weights, 32 px, in SD 1.5's topology; not to be written to."""
    from tests.harness.tiny import tiny_base

    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Start the system's Chromium, one for all: Playwright runs once in a process."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with three different photos, 48 px."""
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        gradient = Image.linear_gradient("L").resize((48, 48)).rotate(90 * number)
        channels = [gradient, gradient.rotate(180), Image.new("L", (48, 48), 80 * number)]
        Image.merge("RGB", channels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def make(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> "Callable[..., Run]":
    """Return what prepares a run on the tiny base, each in a folder of its own, with these changes to its settings."""
    from tests.harness.trained import Run, quick_settings

    numbers = itertools.count(1)

    def made(**changes: Any) -> Run:
        run = Run(quick_settings(tiny_base_folder, photos, **changes), tmp_path / str(next(numbers)))
        run.prepare()
        return run

    return made


@pytest.fixture
def plain_kernels() -> Iterator[None]:
    """Leave out oneDNN: in bf16 and at the tiny base's 8 channels it gives NaN now and then (torch 2.13, AVX-512)."""
    import torch

    with torch.backends.mkldnn.flags(enabled=False):
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes, have one do a file, whose tests share what was made for them, and one all browser tests.

    Two browsers at once would be slower than one after the other, and miss what they wait for. The long files whose
    tests share nothing are not kept together: xdist hands out the largest groups first, so that these tests come last
    and no process waits for another's last file. `xdist_group` cannot say it: with pytest 9.2, pytest-xdist 3.8 writes
    the group where nobody reads it, and each test becomes a group of its own.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return "browser" if file.startswith("tests/browser/") else nodeid if Path(file).stem in UNSHARED else file

    return ByFile(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the time limit off the long tiers."""
    for item in items:
        if any(map(item.get_closest_marker, ("full_size", "reliability", "gpu"))):
            item.add_marker(pytest.mark.timeout(0))


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
