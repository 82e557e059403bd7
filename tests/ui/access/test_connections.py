"""Connections that only cost: what a thousand of them leave of a training, of the page and of the server's log."""

import contextlib
import logging
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from gradio_client import Client, handle_file

import app
from dreambooth.data.samples import sample_folder
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import Workspace
from tests.harness.jobs_at_work import until
from tests.harness.open_page import OpenPage, free_port, open_page
from ui.access import connections

FILES, HALF_OPEN = 1024, 1200
LONG_RUN = {
    "max_train_steps": 100_000, "save_interval": 100_000, "checkpointing_steps": 0, "n_save_sample": 1,
    "save_infer_steps": 1, "mixed_precision": "no", "use_8bit_adam": False, "num_crop_variants": 1,
    "with_prior_preservation": False,
}  # fmt: skip


@dataclass(frozen=True)
class AppWithFewFiles:
    """The app as a user starts it, in a shell where a process may open 1,024 files."""

    process: subprocess.Popen[bytes]
    url: str
    workspace: Workspace
    output: Path


@pytest.fixture
def served(tmp_path: Path, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AppWithFewFiles]:
    """Start `app.py` under `ulimit -n 1024` and wait until its page answers."""
    workspace, port = Workspace(tmp_path / "data"), free_port()
    shutil.copytree(tiny_base_folder, workspace.models_dir / "tiny")
    monkeypatch.setenv("DREAMBOOTH_HOME", str(workspace.data_dir))
    output, url = tmp_path / "output.txt", f"http://127.0.0.1:{port}/"
    command = f'ulimit -n {FILES}; exec "$0" app.py --port {port}'
    with output.open("wb") as written:
        process = subprocess.Popen(
            ["bash", "-c", command, sys.executable], cwd=Path(app.__file__).parent, stdout=written, stderr=written
        )
    try:
        until(lambda: process.poll() is not None or "The page is open" in output.read_text(), bool, seconds=120)
        yield AppWithFewFiles(process, url, workspace, output)
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process open as many sockets as the attack takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * HALF_OPEN)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def half_a_request(url: str, start: str = "GET /") -> socket.socket:
    """Connect and send the beginning of a request's header."""
    address = httpx.URL(url)
    connection = socket.create_connection((address.host, address.port or 80), timeout=10)
    connection.sendall(f"{start} HTTP/1.1\r\nHost: {address.netloc.decode()}\r\nX-Slow: ".encode())
    return connection


def post_without_body(url: str) -> socket.socket:
    """Connect and send the header of a request whose body never comes."""
    connection = half_a_request(url, "POST /gradio_api/call/list_models")
    connection.sendall(b"x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n")
    return connection


@pytest.mark.slow
@pytest.mark.parametrize("connect", [half_a_request, pytest.param(post_without_body, marks=pytest.mark.reliability)])
def test_a_thousand_half_open_connections_end_no_training(
    served: AppWithFewFiles, many_files: None, connect: Callable[[str], socket.socket]
) -> None:
    """The training goes on, the page answers while they are open and after it, and the log stays as it was."""
    client = Client(served.url, verbose=False)
    photo_set = client.predict([handle_file(str(next(sample_folder().glob("*.png"))))], api_name="/upload_photos")[0]
    name = client.predict(
        photo_set, str(served.workspace.models_dir / "tiny"), "recommended", LONG_RUN, api_name="/start_training"
    )
    run = served.workspace.run(name)
    until(lambda: read_state(run).step, lambda step: step >= 2, seconds=120)
    logged = served.output.stat().st_size

    with contextlib.ExitStack() as attack:
        for _ in range(HALF_OPEN):
            with contextlib.suppress(OSError):
                attack.enter_context(connect(served.url))
        before = read_state(run).step
        until(lambda: read_state(run), lambda state: state.step > before + 5 or state.status != "running", seconds=120)
        assert read_state(run).status == "running"
        # A body that does not come makes room after five seconds, a header at once.
        until(lambda: httpx.get(served.url, timeout=60).status_code, lambda status: status == 200, seconds=20)
    assert httpx.get(served.url, timeout=60).status_code == 200
    before = read_state(run).step
    until(lambda: read_state(run), lambda state: state.step > before + 5 or state.status != "running", seconds=120)
    assert (read_state(run).status, served.process.poll()) == ("running", None)
    grown = served.output.stat().st_size - logged
    assert grown < 10_000, served.output.read_text()[-2000:]
    client.predict(name, api_name="/stop_training")
    until(lambda: read_state(run).status, lambda status: status == "stopped", seconds=120)


# The limits themselves -----------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPage]:
    """Open a page that takes ten connections, and waits a second for headers and two for bodies."""
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 10)
    monkeypatch.setattr(connections, "CHECK_S", 0.1)
    monkeypatch.setattr(connections, "HEADER_S", 1.0)
    monkeypatch.setattr(connections, "BODY_S", 1.0)
    with open_page(tmp_path) as page:
        yield page


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the other side closes."""
    connection.settimeout(30)
    with contextlib.suppress(ConnectionError):
        return b"".join(iter(lambda: connection.recv(4096), b""))
    return b""


def test_a_header_or_body_that_does_not_come_is_not_waited_for(hurried: OpenPage) -> None:
    address = httpx.URL(hurried.url).netloc.decode()
    with half_a_request(hurried.url) as header:
        assert received(header).startswith(b"HTTP/1.1 408")
    for path in ("/config", "/gradio_api/call/list_models", "/no/such/place"):
        with half_a_request(hurried.url) as body:
            body.sendall(b"x\r\nContent-Length: 100\r\n\r\n")
            assert b"HTTP/1.1 " in received(body), path
        with socket.create_connection((httpx.URL(hurried.url).host, httpx.URL(hurried.url).port or 80)) as drip:
            head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
            drip.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
            with contextlib.suppress(OSError):
                for _ in range(100):
                    drip.sendall(b" ")
                    time.sleep(0.1)
                pytest.fail(f"{path} was waited for ten seconds")


def test_the_one_that_waits_longest_makes_room(hurried: OpenPage) -> None:
    """Ten of ten are taken by halves of requests: whoever comes with a whole one is answered at once."""
    with contextlib.ExitStack() as attack:
        slow = [attack.enter_context(half_a_request(hurried.url)) for _ in range(10)]
        assert httpx.get(hurried.url, timeout=20).status_code == 200
        assert received(slow[0]) == b"", "the first of them"
        assert received(slow[-1]).startswith(b"HTTP/1.1 408")


def test_a_body_that_has_stopped_coming_makes_room(hurried: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine uploads that send nothing, and one that sends a byte now and then: the next request takes a silent one's."""
    monkeypatch.setattr(connections, "SILENT_BODY_S", 0.4)
    monkeypatch.setattr(connections, "BODY_S", 60.0)
    with contextlib.ExitStack() as attack:
        slow = attack.enter_context(post_without_body(hurried.url))
        silent = [attack.enter_context(post_without_body(hurried.url)) for _ in range(9)]
        for _ in range(6):
            time.sleep(0.1)
            slow.sendall(b" ")
        assert httpx.get(hurried.url, timeout=20).status_code == 200
        assert received(silent[0]) == b"", "the first of them"
        slow.settimeout(0.2)
        with pytest.raises(TimeoutError):
            slow.recv(1)


def test_when_all_are_being_answered_the_next_is_told_so(hurried: OpenPage) -> None:
    with contextlib.ExitStack() as streams:
        for number in range(10):
            stream = httpx.stream("GET", f"{hurried.url}gradio_api/heartbeat/{number}", timeout=20)
            assert streams.enter_context(stream).status_code == 200
        answer = httpx.get(hurried.url, timeout=20)
        assert (answer.status_code, answer.text) == (503, "Too many connections; try again later.")
    until(lambda: httpx.get(hurried.url, timeout=20).status_code, lambda status: status == 200)


def test_the_log_takes_few_lines_of_a_kind(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test of few lines")
    logger.addFilter(connections.RateLimit())
    for _ in range(1000):
        logger.warning("Invalid HTTP request received.")
    logger.warning("Another thing")
    told = [record.message for record in caplog.records if record.name == logger.name]
    assert told == ["Invalid HTTP request received."] * connections.LOG_LINES + ["Another thing"]


def test_a_small_soft_limit_of_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        allowed = connections.allow_more_files()
        assert allowed == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert allowed > 256
        assert connections.most_connections(allowed) <= allowed // 2
        assert connections.allow_more_files() == allowed, "and is left as it is when it is large enough"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
