"""Pictures as files and the line they are made in: comparing, history, waiting for a training, cancelling."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth import compare
from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError, DreamBoothError
from dreambooth.export.archive import zip_pictures
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import model_name
from dreambooth.pictures.painter import OnNotice, folder_of, history
from dreambooth.pictures.queue import MAX_WAITING, Order
from dreambooth.pictures.settings_text import read_recipe, text_of_picture
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import start_records
from tests.harness.jobs_at_work import Stub, finished, until
from tests.harness.tiny import tiny_base

QUICK = {"num_images_per_prompt": 2, "num_inference_steps": 1, "seed": 5}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with a run of two steps, which is not to be changed."""
    workspace = Workspace(tmp_path_factory.mktemp("studio"))
    run = workspace.run("dog")
    base = tiny_base(workspace.models_dir / "tiny", seed=3)
    photos = Concept("photo of zwx dog", str(workspace.datasets_dir))
    start_records(TrainingConfig(pretrained_model_name_or_path=str(base), concepts=(photos,)), run)
    for step in (2, 4):
        tiny_base(run.step_folder(step), seed=step)
    return workspace.data_dir


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def jobs(studio: Path, stub: Stub) -> Iterator[Jobs]:
    jobs = Jobs(Workspace(studio), ModelManager("cpu"), train=stub)
    yield jobs
    jobs.close()


@pytest.fixture
def training(jobs: Jobs, studio: Path, stub: Stub) -> Iterator[tuple[Stub, str]]:
    """Yield a run that trains until it is told to go on, and its name."""
    concept = Concept("photo of zwx dog", str(studio / "datasets"))
    name = jobs.start(TrainingConfig(concepts=(concept,), pretrained_model_name_or_path="starter"), "busy")
    until(lambda: stub.order, len)
    yield stub, name
    stub.go_on.set()
    finished(jobs, name)


# Comparing -----------------------------------------------------------------------------------------------------------


def test_comparing_makes_the_same_seeds_of_each_step_and_a_grid(studio: Path, tmp_path: Path) -> None:
    run = studio / "runs" / "dog"
    told: list[tuple[int, int]] = []
    request = GenerationConfig(prompt="photo of zwx dog\nzwx dog on the beach", **QUICK)  # type: ignore[arg-type]
    *files, grid = compare(run, request, tmp_path, steps=[4, 0, 2], on_step=lambda *step: told.append(step))
    recipes = [read_recipe(text_of_picture(path)) for path in files]
    assert [recipe.model for recipe in recipes] == ["tiny"] * 4 + ["dog/2"] * 4 + ["dog/4"] * 4
    assert [recipe.request.seed for recipe in recipes] == [5, 6] * 6
    assert [recipe.request.prompt for recipe in recipes[:4]] == ["photo of zwx dog"] * 2 + ["zwx dog on the beach"] * 2
    assert told == [(done, 12) for done in range(1, 13)]
    assert grid.name.endswith("-grid.png")
    with Image.open(grid) as image:
        assert image.width > 4 * 32
        assert image.height > 3 * 32
    assert history(tmp_path)[0] == grid
    assert history(tmp_path)[1:] == files


def test_what_cannot_be_compared_is_told(studio: Path, tmp_path: Path) -> None:
    run = studio / "runs" / "dog"
    request = GenerationConfig(prompt="a dog", **QUICK)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps: 3: dog has 2, 4"):
        compare(run, request, tmp_path, steps=[2, 3])
    lines = "\n".join(["a dog"] * 32)
    with pytest.raises(ConfigError, match="make 4096 pictures"):
        compare(run, GenerationConfig(prompt=lines, num_images_per_prompt=64), tmp_path, steps=[2, 4])
    with pytest.raises(ConfigError, match="prompt: is empty"):
        compare(run, GenerationConfig(), tmp_path)
    with pytest.raises(ConfigError, match="has none yet"):
        compare(tmp_path, request, tmp_path)


def test_the_command_line_compares(studio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--prompt",
        "a (big:1.2) dog\\na cat",
        "--num_images_per_prompt",
        "1",
        "--num_inference_steps",
        "1",
        "--seed",
        "1",
    ]
    assert main(["compare", str(studio / "runs" / "dog"), *words, "--output_dir", str(tmp_path / "made")]) == 0
    captured = capsys.readouterr()
    printed = captured.out.split()
    assert captured.err.count('"(big:1.2)" has no special meaning here') == 1, "once for both steps"
    assert len(printed) == 5
    assert printed[-1].endswith("-grid.png")
    assert all(Path(path).is_file() for path in printed)


# History -------------------------------------------------------------------------------------------------------------


def test_the_history_is_what_lies_there_the_newest_first(tmp_path: Path) -> None:
    names = [f"20260101-100000-7-{number}.png" for number in (0, 10, 2)]
    names += ["20260102-090000-1-0.png", "20260102-090000-1-grid.png"]
    for folder in ("dog", "cat"):
        (tmp_path / folder).mkdir()
    for name in [*names, "own.png", ".20260101-100000-7-0.png"]:
        (tmp_path / "dog" / name).write_bytes(b"x")
    (tmp_path / "cat" / "20260103-100000-1-0.png").write_bytes(b"x")
    expected = [names[4], names[3], names[0], names[2], names[1]]
    assert [path.name for path in history(tmp_path / "dog")] == expected
    assert [path.name for path in history(tmp_path, everything=True)] == ["20260103-100000-1-0.png", *expected]
    assert history(tmp_path / "none") == []
    archive = zip_pictures(history(tmp_path, everything=True), tmp_path / "all.zip")
    import zipfile

    with zipfile.ZipFile(archive) as opened:
        assert sorted(opened.namelist())[0] == "cat/20260103-100000-1-0.png"
        assert len(opened.namelist()) == 6


@pytest.mark.parametrize(
    ("model", "name", "folder"),
    [("/data/runs/dog/400", "dog/400", "dog"), ("starter", "starter", "starter"), ("ann/sd-1.5", "sd-1.5", "sd-1.5"),
     ("..", "..", "-"), ("/data/models/.odd", ".odd", "odd")],
)  # fmt: skip
def test_a_models_pictures_lie_in_a_folder_of_its_name(tmp_path: Path, model: str, name: str, folder: str) -> None:
    workspace = Workspace(tmp_path)
    assert model_name(model) == name
    found = folder_of(model, workspace)
    assert found.parent == workspace.pictures_dir
    assert found.name == (folder if model != ".." else "model")


# The line ------------------------------------------------------------------------------------------------------------


class Work:
    """Makes two pictures, each when it is told to go on."""

    def __init__(self) -> None:
        self.go_on, self.begun = threading.Semaphore(0), threading.Event()

    def __call__(
        self, on_step: Callable[[int, int], None], should_stop: Callable[[], bool], notice: OnNotice
    ) -> Iterator[Path]:
        self.begun.set()
        for number in range(2):
            while not self.go_on.acquire(timeout=0.02):
                if should_stop():
                    return
            on_step(number + 1, 2)
            yield Path(f"{number}.png")


def ended(order: Order) -> str:
    return str(until(lambda: order.state, lambda state: state in ("done", "cancelled", "failed"), 20))


def test_requests_are_made_one_after_the_other_and_told_as_they_go(jobs: Jobs) -> None:
    line, first, second = jobs.pictures, Work(), Work()
    one, two = line.add("one", 2, first), line.add("two", 2, second)
    assert first.begun.wait(10)
    assert line.shown() == (one, 1)
    assert (one.state, two.state, second.begun.is_set()) == ("making", "waiting", False)
    first.go_on.release()
    followed = line.follow(one)
    assert next(followed) == Path("0.png")
    assert one.share == 0.5
    assert one.seconds_left is not None
    first.go_on.release()
    assert list(followed) == [Path("1.png")]
    assert ended(one) == "done"
    second.go_on.release(2)
    assert ended(two) == "done"
    assert line.shown() == (two, 0)
    one.owner = "a browser"
    assert line.shown("a browser") == (one, 0)
    assert line.shown("another") == (None, 0)


def test_cancelling_ends_what_is_made_and_what_waits(jobs: Jobs) -> None:
    line, work = jobs.pictures, Work()
    one, two = line.add("one", 2, work), line.add("two", 2, Work())
    work.go_on.release()
    until(lambda: one.files, len)
    assert line.cancel() == 2
    assert (ended(one), one.files, ended(two)) == ("cancelled", [Path("0.png")], "cancelled")
    assert line.cancel() == 0
    three = line.add("three", 2, Work())
    followed = line.follow(three)
    until(lambda: three.state, lambda state: state == "making")
    line.add("four", 2, work)
    work.go_on.release(2)
    threading.Timer(0.2, line.cancel, [three]).start()
    assert list(followed) == []
    assert ended(three) == "cancelled"


def test_what_ends_a_request_is_told_and_the_next_is_made(jobs: Jobs, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> Any:
        def work(on_step: object, should_stop: object, notice: object) -> Iterator[Path]:
            yield Path("0.png")
            raise error

        return work

    no_memory = type("OutOfMemoryError", (RuntimeError,), {})("tried 2 GiB")
    for error, told in ((DreamBoothError("No such base.", "", ""), "No such base"), (no_memory, "out of memory"),
                        (ZeroDivisionError("oh"), "unexpected ZeroDivisionError")):  # fmt: skip
        order = jobs.pictures.add("x", 2, fail(error))
        assert ended(order) == "failed"
        assert order.error is not None
        assert told in order.error.what
        with pytest.raises(DreamBoothError, match=told):
            list(jobs.pictures.follow(order))
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_the_line_has_an_end(jobs: Jobs) -> None:
    for _ in range(MAX_WAITING):
        jobs.pictures.add("x", 2, Work())
    with pytest.raises(DreamBoothError, match="requests for pictures are queued"):
        jobs.pictures.add("x", 2, Work())
    assert jobs.pictures.cancel() == MAX_WAITING


def test_pictures_asked_for_after_a_training_begin_by_themselves(jobs: Jobs, training: tuple[Stub, str]) -> None:
    stub, name = training
    second = jobs.start(jobs.view(name).config or TrainingConfig(), "next")
    request = GenerationConfig(prompt="photo of zwx dog", **QUICK)  # type: ignore[arg-type]
    order = jobs.order(str(jobs.view("dog").path / "4"), request, "after training")
    time.sleep(0.3)
    assert (order.state, order.after) == ("waiting", name)
    stub.go_on.set()
    assert finished(jobs, name).status == "done"
    assert ended(order) == "done"
    assert len(order.files) == 2
    assert finished(jobs, second).status == "done"
    # The next run in line began only when they were made.
    assert stub.order == [name, second]


def test_a_request_that_pauses_a_training_asks_it_to_lend_the_device(jobs: Jobs, training: tuple[Stub, str]) -> None:
    lend = jobs._queue[0].controls.lend
    work = Work()
    order = jobs.pictures.add("now", 2, work)
    assert work.begun.wait(10)
    assert lend.is_set()
    work.go_on.release(2)
    assert ended(order) == "done"
    assert not lend.is_set()


def test_pictures_that_wait_for_the_device_can_be_cancelled(jobs: Jobs, training: tuple[Stub, str]) -> None:
    """A training that prepares its first step lends nothing for minutes."""
    order = jobs.order("starter", GenerationConfig(prompt="a dog"), "pause training")
    until(lambda: order.state, lambda state: state == "making")
    assert jobs.pictures.cancel() == 1
    assert ended(order) == "cancelled"
    assert order.error is None


def test_a_closed_line_takes_nothing_more(jobs: Jobs) -> None:
    work = Work()
    order = jobs.pictures.add("x", 2, work)
    assert work.begun.wait(10)
    jobs.close()
    assert order.state == "cancelled"
    with pytest.raises(DreamBoothError):
        jobs.pictures.add("x", 2, work)
