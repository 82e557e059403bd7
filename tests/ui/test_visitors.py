"""Who is let in, what they are told, what is kept of a visit, and what "delete my photos" leaves."""

import base64
import contextlib
import io
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image, ImageChops, ImageStat

import app
from dreambooth.data.focus import focused, proposed_focus
from dreambooth.data.photos import read_photo
from dreambooth.environment import Secret, Settings
from dreambooth.formats.photo_files import mask_name
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from tests.harness.open_page import OpenPage, free_port, open_page
from tests.harness.raw_events import RawEvents
from ui.access.request_checks import MIB
from ui.access.space import is_public, training_refusal
from ui.boundary import Page
from ui.build import ONE_HOUSEHOLD, build_page

# Every event that begins a run.
BEGINNING = {
    "start_training": ["a-set", "starter", "recommended", {}],
    "try_sample": [],
    "sample_button": [],
    "start_shown_settings": None,
    "resume_shown_run": ["a-run"],
    "retry_shown_run": ["a-run"],
    "delete_shown_run": ["a-run"],
    "resume_training": ["a-run"],
    "retry_with_less_memory": ["a-run"],
    "delete_run": ["a-run", True],
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page as a public Space without a login does: it may be looked at, and trains for nobody."""
    refusal = training_refusal("ann/studio", has_login=False, hub="http://127.0.0.1:1")
    with open_page(tmp_path_factory.mktemp("page"), training_refusal=refusal) as page:
        yield page


# On a Space ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub(status: int) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Answer every question with one status, and keep the headers of who asked."""
    asked: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "public"), [(200, True), (401, False), (403, False), (404, False), (429, True), (500, True)]
)
def test_the_hub_is_asked_without_a_token_whether_a_space_is_public(
    status: int, public: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    with hub(status) as (url, asked):
        assert is_public("ann/studio", url) == public
    assert asked[0]["path"] == "/api/spaces/ann/studio"
    assert "authorization" not in asked[0]
    assert "cookie" not in asked[0]


def test_an_unanswered_question_counts_as_public() -> None:
    refusal = training_refusal("ann/studio", has_login=False, hub=f"http://127.0.0.1:{free_port()}")
    assert refusal is not None
    assert "DREAMBOOTH_AUTH" in refusal.todo
    assert training_refusal("ann/studio", has_login=True, hub="http://127.0.0.1:1") is None
    assert training_refusal("", has_login=False) is None


def test_a_public_space_trains_for_nobody_and_says_what_to_do(opened: OpenPage) -> None:
    events = RawEvents(opened.url)
    for name, given in BEGINNING.items():
        answer = events.call(name, events.defaults(name) if given is None else given)[0]
        told = answer.error + answer.as_html
        assert "Training is off: anyone can open this Space." in told, name
        assert "DREAMBOOTH_AUTH" in told, name
    assert list(opened.workspace.runs_dir.iterdir()) == []
    config = httpx.get(f"{opened.url}config").text
    assert "Training is off: anyone can open this Space." in config


# Who is let in -------------------------------------------------------------------------------------------------------


def served(monkeypatch: pytest.MonkeyPatch, settings: Settings, *words: str) -> dict[str, Any]:
    """Start the app with a launch that only keeps what it was given; returns that, with the queue's limits."""
    given: dict[str, Any] = {}

    def launch(page: Page, **arguments: Any) -> tuple[None, str, str | None]:
        given.update(arguments, page=page)
        return None, "http://127.0.0.1:7860", "https://abc.gradio.live" if arguments["share"] else None

    @contextlib.contextmanager
    def ended_at_once(stop: Callable[[], None]) -> Iterator[None]:
        stop()
        yield

    monkeypatch.setattr(Page, "launch", launch)
    monkeypatch.setattr(Page, "queue", lambda page, **arguments: given.update(queue=arguments))
    monkeypatch.setattr(app, "keep_to_itself", lambda folder: None)
    monkeypatch.setattr(app, "calling_on_signals", ended_at_once)
    words = (*words, "--port", str(free_port()))
    assert app.serve(app.parse_arguments(words), settings) == 0
    return given


def test_sharing_without_a_password_makes_and_prints_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = served(monkeypatch, Settings(tmp_path), "--share")
    user, password = given["auth"]
    assert given["share"]
    assert len(password) >= 12
    assert f"User {user}, password {password}" in capsys.readouterr().out
    assert served(monkeypatch, Settings(tmp_path), "--share")["auth"] != given["auth"]

    own = served(monkeypatch, Settings(tmp_path, auth=("ann", Secret("s3cret-words"))), "--share")
    assert own["auth"] == ("ann", "s3cret-words")
    assert "s3cret-words" not in capsys.readouterr().out.partition("password")[2]


def test_what_launch_does_not_say_is_pinned_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = served(monkeypatch, Settings(tmp_path))
    assert given["queue"] == {"max_size": 32}
    page = given["page"]
    assert page.delete_cache == (3600, 86400)
    assert page.analytics_enabled is False
    assert given["server_name"] == "127.0.0.1"
    assert given["auth"] is None
    assert given["share"] is False


def test_the_page_says_that_all_see_all(opened: OpenPage) -> None:
    assert ONE_HOUSEHOLD == "Anyone who can open this page can see all runs, photos and pictures."
    assert ONE_HOUSEHOLD in httpx.get(f"{opened.url}config").text


# What is kept of a visit ---------------------------------------------------------------------------------------------


def test_nothing_of_a_visit_is_kept_in_browsers_or_told_to_anyone(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    page = build_page(Jobs(workspace, ModelManager("cpu"), None), workspace, Settings(tmp_path), tmp_path / "page")
    kinds = {one["type"] for one in page.get_config_file()["components"]}
    assert "browserstate" not in kinds
    assert "loginbutton" not in kinds
    sources = {path.name: path.read_text("utf-8") for path in Path(app.__file__).parent.joinpath("ui").rglob("*.py")}
    kept = ("localStorage", "sessionStorage", "indexedDB", "document.cookie")
    places = {(name, word) for name, source in sources.items() for word in kept if word in source}
    # The edits of the training form, for as long as the window is open; and a random number by which Generate knows
    # which pictures this browser asked for.
    assert places == {("draft.py", "sessionStorage"), ("handlers.py", "localStorage")}


def test_telemetry_is_off_in_the_page_and_on_the_command_line(tmp_path: Path) -> None:
    programs = {
        "page": "app.keep_to_itself(Path(sys.argv[1]))\nimport gradio.analytics\n"
        "assert not gradio.analytics.analytics_enabled()",
        "command line": "import dreambooth.commands.cli",
    }
    for place, more in programs.items():
        program = (
            "import sys\nfrom pathlib import Path\nimport app\nfrom dreambooth.environment import load_settings\n"
            f"load_settings()\n{more}\nfrom huggingface_hub import constants\n"
            "assert constants.HF_HUB_DISABLE_TELEMETRY\n"
            "from huggingface_hub.utils import build_hf_headers\n"
            "print(build_hf_headers(library_name='diffusers', user_agent='a/b')['user-agent'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)], cwd=Path(app.__file__).parent, capture_output=True,
            text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, (place, done.stderr)
        assert "torch" not in done.stdout, place


# Photos --------------------------------------------------------------------------------------------------------------


def photo(path: Path, number: int) -> Path:
    """Write a photo with its camera and place in it; large enough that its bytes are its own."""
    noise = Image.effect_noise((300, 200), 60 + number)
    picture = Image.merge("RGB", [noise, noise.rotate(180), Image.linear_gradient("L").resize((300, 200))])
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    picture.save(path, exif=exif)
    return path


def everything(page: OpenPage) -> dict[Path, bytes]:
    """Return all files of the data folder (the page's own folder, temporary files and uploads lie in it)."""
    found = {}
    for path in page.workspace.data_dir.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                found[path] = path.read_bytes()
    return found


def copies(page: OpenPage, originals: list[bytes], pictures: list[Image.Image]) -> set[Path]:
    """Return the files that hold the bytes of an original, or that show one of the pictures whatever their format."""
    found = set()
    for path, content in everything(page).items():
        if any(original[len(original) // 2 :][:1000] in content for original in originals):
            found.add(path)
        with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as opened_picture:
            square = opened_picture.convert("RGB").resize((16, 16))
            for picture in pictures:
                difference = ImageStat.Stat(ImageChops.difference(square, picture.resize((16, 16)))).mean
                if max(difference) < 8:
                    found.add(path)
    return found


@pytest.mark.slow
def white(page: OpenPage, photo_set: str, name: str) -> str:
    """Return a mask of a whole photo of a set, in base64."""
    content = io.BytesIO()
    with Image.open(page.workspace.datasets_dir / photo_set / name) as image:
        Image.new("L", image.size, 255).save(content, format="PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_delete_my_photos_removes_every_copy(tmp_path: Path) -> None:
    """Originals, re-encoded copies, views at two sizes, the removed photo, Gradio's cache: none is left anywhere."""
    taken = [photo(tmp_path / f"me-{number}.{kind}", number) for number, kind in enumerate(("jpg", "png", "jpg"))]
    originals = [path.read_bytes() for path in taken]
    upright = [read_photo(path).image.convert("RGB") for path in taken]
    pictures = [*upright, *(focused(image, 32, proposed_focus(image)) for image in upright)]
    with open_page(tmp_path / "page") as page:
        client = Client(page.url, verbose=False, download_files=str(tmp_path / "browser"))
        events = RawEvents(page.url)
        photo_set = client.predict([handle_file(str(path)) for path in taken], api_name="/upload_photos")[0]
        # What came in is gone already, with camera and place; the copies have neither.
        held = everything(page)
        assert not any(original in content for original in originals for content in held.values())
        assert not any(b"SecretCamera" in content for content in held.values())
        kept = [path.read_bytes() for path in sorted((page.workspace.datasets_dir / photo_set).glob("me-*"))]
        assert len(kept) == 3
        for size in (32, 64):
            events.call("photo_views", [photo_set, None, size])
            events.call("earlier_photos", [photo_set, size])
        photo_name = client.predict(photo_set, 64, api_name="/check_photos")[0]["photo"]
        events.call("photo_views", [photo_set, photo_name, 32])  # with the whole photo for its editor
        client.predict(photo_set, photo_name, "photo of my-own-caption", api_name="/set_caption")
        client.predict(photo_set, photo_name, white(page, photo_set, photo_name), api_name="/set_mask")
        events.call("mask_opened", [photo_set, photo_name])
        mask = (page.workspace.datasets_dir / photo_set / mask_name(photo_name)).read_bytes()
        run = client.predict(
            photo_set, str(page.base), "recommended",
            {"max_train_steps": 2, "mixed_precision": "no", "use_8bit_adam": False, "n_save_sample": 1,
             "save_infer_steps": 1, "with_prior_preservation": False, "save_interval": 1, "num_crop_variants": 1},
            api_name="/start_training",
        )  # fmt: skip
        while client.predict(run, api_name="/training_status")["status"] not in ("failed", "done"):
            time.sleep(0.1)
        assert client.predict(run, api_name="/training_status")["status"] == "done"
        assert len(copies(page, kept, pictures)) >= 9
        told = events.call("delete_shown_photos", [photo_set])[0]
        assert "Your photos and all copies of them were deleted." in told.as_html
        assert copies(page, [*originals, *kept], pictures) == set()
        assert not (page.workspace.datasets_dir / photo_set).exists()
        in_photos = [
            content for path, content in everything(page).items() if page.workspace.runs_dir not in path.parents
        ]
        assert not any(words in content for content in in_photos for words in (b"my-own-caption", mask))
        assert not [path for path in everything(page) if path.stem == Path(photo_name).stem]
        # Runs and what they made stay.
        assert client.predict(api_name="/list_runs")[0]["run"] == run
    assert copies(page, [*originals, *kept], pictures) == set()


def test_a_photo_of_31_mb_is_refused_by_its_limit_and_not_kept(tmp_path: Path) -> None:
    """S12: one message that names the limit; the upload is gone, and the disk never held more than the file."""
    large = tmp_path / "large.jpg"
    photo(large, 1)
    with large.open("ab") as file:
        file.write(bytes(31 * MIB))
    with open_page(tmp_path / "page") as page:
        free_bytes = shutil.disk_usage(tmp_path).free
        client = Client(page.url, verbose=False)
        photo_set, report, *_ = client.predict([handle_file(str(large))], api_name="/upload_photos")
        assert photo_set == ""
        assert report.count("30 MB") == 1
        assert sum(len(content) for path, content in everything(page).items() if "large" in path.name) == 0
        assert max(len(content) for path, content in everything(page).items() if page.copies_dir in path.parents) < MIB
        assert free_bytes - shutil.disk_usage(tmp_path).free < 64 * MIB
