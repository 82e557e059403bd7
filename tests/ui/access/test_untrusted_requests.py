"""Hostile texts, names, paths and numbers through every door of the page: nothing leaves, runs or is fetched."""

import ast
import http.client
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file

import dreambooth
from dreambooth.config.fields import describe
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.data.samples import sample_folder
from tests.harness.open_page import OpenPage, open_page
from tests.harness.raw_events import RawEvents
from tests.harness.touched import touched

ROOT = Path(dreambooth.__file__).resolve().parent.parent
CANARY = "canary-7f3a9b-must-not-leave"
USUAL: list[Any] = [4, 24, 7.5, "", "", "", "DDIM", "after training", 1, 1]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page for all tests of this file, with a canary outside of its data folder and one inside a run."""
    folder = tmp_path_factory.mktemp("doors")
    with open_page(folder) as page:
        (folder / "secret.txt").write_text(CANARY)
        hidden = page.workspace.runs_dir / "a-run" / ".run"
        hidden.mkdir(parents=True)
        (hidden / "state.json").write_text(json.dumps({"status": CANARY}))
        yield page


@pytest.fixture(scope="module")
def photo_set(opened: OpenPage) -> str:
    """Upload the bundled subject and return its photo set's name."""
    files = [handle_file(str(path)) for path in sorted(sample_folder().glob("*.png"))]
    return str(Client(opened.url, verbose=False).predict(files, api_name="/upload_photos")[0])


def canaries(page: OpenPage) -> list[Path]:
    """Return the files that must not be given out."""
    return [page.workspace.data_dir.parent / "secret.txt", page.workspace.runs_dir / "a-run" / ".run" / "state.json"]


def spellings(path: Path) -> list[str]:
    """Return about a hundred ways to ask for one file."""
    plain = str(path)
    climbs = [up * deep + plain.lstrip("/") for up in ("../", "..\\", "....//", "..;/", ".%2e/") for deep in (1, 4, 9)]
    ways = [
        plain, "/" + plain, "//" + plain, "./" + plain, "file://" + plain, "file:" + plain, "FILE://localhost" + plain,
        plain + "\0", plain + "%00.png", plain + "?x", plain + "#x", plain + "/", plain + "/.", plain.upper(),
        plain.replace("/", "//"), plain.replace("/", "/./"), plain.replace("/", "\\"), "~" + plain, " " + plain,
        plain + " ", "/proc/self/root" + plain, "/proc/self/cwd/../" + plain, "/dev/fd/../../" + plain,
        str(path.parent) + "/x/../" + path.name, plain.replace("e", "%65"), "\\\\?\\" + plain, "C:" + plain, *climbs,
    ]  # fmt: skip
    quoted = [urllib.parse.quote(way, safe="") for way in ways]
    return [*ways, *quoted, *(urllib.parse.quote(way, safe="") for way in quoted[:20])]


def raw_get(page: OpenPage, path: str) -> bytes:
    """Return the answer to a GET of exactly this path, which no library tidies up first."""
    address = urllib.parse.urlsplit(page.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    connection._validate_path = lambda url: None  # type: ignore[attr-defined]
    sent = urllib.parse.quote(path, safe="/%?#=&;:\\~.@")
    connection.request("GET", sent)
    try:
        return connection.getresponse().read()
    finally:
        connection.close()


def test_no_spelling_of_a_path_gets_a_file_out(opened: OpenPage) -> None:
    """S5: 200 spellings of two canary files on each route that serves files."""
    tried = 0
    asked = [spelling for canary in canaries(opened) for spelling in spellings(canary)]
    assert len(asked) >= 200
    for prefix in ("/gradio_api/file=", "/gradio_api/file/", "/assets/", "/static/", "/svelte/"):
        for spelling in asked:
            assert CANARY.encode() not in raw_get(opened, prefix + spelling), (prefix, spelling)
            tried += 1
    print(f"S5: {tried} GETs, {len(asked)} spellings, 0 bytes of a canary")


def test_an_exported_file_is_still_served(opened: OpenPage) -> None:
    export = opened.workspace.exports_dir / "model.safetensors"
    export.write_bytes(b"weights")
    assert raw_get(opened, f"/gradio_api/file={export}") == b"weights"
    for room in ("runs", "datasets", "models", "pictures", "class_images"):
        private = opened.workspace.room(room) / "x.png"
        private.write_bytes(b"x")
        assert httpx.get(f"{opened.url}gradio_api/file={private}").status_code == 403


def test_uploaded_names_stay_inside(opened: OpenPage) -> None:
    """S5: hostile names of uploads end in the page's own folder, and are served as files to save, never as pages."""
    names = [
        "../../x", "/etc/x", "..\\..\\x", "a/../../b", "%2e%2e%2fx", "x\0.png", "CON", "-rf", ".bashrc", "a" * 300,
        "x.html", "x.svg", "x\u202egnp.exe", "$(touch x)", "<img src=x onerror=alert(1)>.png", "a\nb", "...", "~/x",
    ]  # fmt: skip
    outside = {
        path for path in opened.workspace.data_dir.parent.rglob("*") if not path.is_relative_to(opened.copies_dir)
    }
    for name in names:
        quoted = name.replace('"', "%22").replace("\n", "%0A")
        body = (
            f'--xx\r\nContent-Disposition: form-data; name="files"; filename="{quoted}"\r\n\r\n'
            "<script>alert(1)</script>\r\n--xx--\r\n"
        )
        answer = httpx.post(
            opened.url + "gradio_api/upload", content=body.encode(),
            headers={"content-type": "multipart/form-data; boundary=xx"},
        )  # fmt: skip
        if answer.status_code == 200:
            for path in answer.json():
                assert Path(path).resolve().is_relative_to(opened.copies_dir.resolve())
                served = httpx.get(f"{opened.url}gradio_api/file={urllib.parse.quote(path)}")
                if served.status_code == 200:
                    kind = served.headers["content-type"]
                    assert kind == "image/png" or served.headers["content-disposition"].startswith("attachment")
                    assert served.headers["content-security-policy"] == "default-src 'none'"
                    assert served.headers["cache-control"] == "private, no-store"
    now = {path for path in opened.workspace.data_dir.parent.rglob("*") if not path.is_relative_to(opened.copies_dir)}
    assert now == outside


# Every event ---------------------------------------------------------------------------------------------------------

XSS = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "<svg onload=alert(1)>",
    "\"><img src=x onerror=alert(1)>",
    "'><svg/onload=alert(1)>", "<iframe src=javascript:alert(1)>", "</pre><script>alert(1)</script>",
    "<a href=javascript:alert(1)>x</a>",
]  # fmt: skip


def commands(folder: Path) -> list[str]:
    """Return texts that would touch a file if anything handed them to a shell or ran them."""
    touch = f"touch {folder}/ran"
    plain = f"open('{folder}/ran','w')"
    return [
        f"$({touch})", f"`{touch}`", f"; {touch}", f"| {touch}", f"& {touch} &", f"x\n{touch}\n", f"'; {touch}; '",
        f'"; {touch}; "', f"|| {touch}", f"&& {touch}", f"<({touch})", f"${{IFS}}{touch}", f"--output_dir={folder}/ran",
        f"-o {folder}/ran", f"{{{{ {plain} }}}}", f"${{{plain}}}", f"__import__('os').system('{touch}')",
        f"eval({plain})", f"!{touch}", f"%0a{touch}", f"x.png;{touch}", f"$(cat /etc/passwd > {folder}/ran)",
        f"> {folder}/ran", f">> {folder}/ran", f"@{folder}/ran", f"file://{folder}/ran", f"{folder}/ran",
        f"../../../../../../../../..{folder}/ran", f"<% {plain} %>", f"#{{{plain}}}", f"%s%s%n{touch}",
        f"\\`{touch}\\`",
        f"a\0{touch}", f"\u202e{touch}", f"-e {touch}", f"$(({touch}))", f"{{__class__}}{touch}", f"~{touch}",
        f"*{touch}*", f"?{touch}[a]",
    ]  # fmt: skip


@pytest.mark.slow
def test_every_event_takes_hostile_texts(opened: OpenPage, tmp_path: Path) -> None:
    """S5, S10, S11: paths, commands and markup in every text and file of every event, private ones included."""
    every_kind_of_path = [spelling for canary in canaries(opened) for spelling in spellings(canary)[::12]]
    hostile_texts_are_harmless(opened, tmp_path, [*every_kind_of_path, *commands(tmp_path / "commands"), *XSS])


@pytest.mark.reliability
def test_every_event_takes_every_spelling_of_a_path(opened: OpenPage, tmp_path: Path) -> None:
    """S5, longer: all 200 spellings, as text, as run, model and photo set, and as a forged file, in every event."""
    hostile_texts_are_harmless(
        opened, tmp_path, [spelling for canary in canaries(opened) for spelling in spellings(canary)]
    )


def hostile_texts_are_harmless(opened: OpenPage, tmp_path: Path, hostile: list[str]) -> None:
    """Send each text to each event: no canary comes back, nothing runs, nothing is written outside of the data."""
    events = RawEvents(opened.url)
    assert len(events.names) >= 20
    ran = tmp_path / "commands"
    ran.mkdir()
    # The data folder's own folders come with the first use of each.
    for own in ("runs_dir", "datasets_dir", "class_images_dir", "pictures_dir", "exports_dir", "models_dir"):
        assert getattr(opened.workspace, own).is_dir()
    before = tree(opened)
    with touched() as seen:
        answers = events.fire(hostile)
    assert len(answers) == len(hostile) * len(events.events)
    for answer in answers:
        shown = answer.as_html
        assert CANARY not in json.dumps(answer.outputs) + answer.error, (answer.event, answer.sent)
        if answer.sent in XSS:
            assert answer.sent not in shown, (answer.event, answer.sent)
        assert "Traceback" not in shown
    assert list(ran.iterdir()) == []
    assert tree(opened) - before == set()
    assert seen.outside(opened.workspace.data_dir) == set()
    assert {port for _, port in seen.hosts} <= {urllib.parse.urlsplit(opened.url).port}
    print(f"S5/S10/S11: {len(answers)} calls of {len(events.events)} events with {len(hostile)} texts")


def tree(page: OpenPage) -> set[Path]:
    """Return all there is outside of the page's own folder."""
    everything = page.workspace.data_dir.parent.rglob("*")
    return {path for path in everything if not path.is_relative_to(page.copies_dir)}


@pytest.mark.slow
def test_a_file_named_as_a_model_is_not_quoted(opened: OpenPage, photo_set: str) -> None:
    """S5: a canary named as model, base, VAE or tokenizer ends in a sentence that holds nothing of it."""
    events, client = RawEvents(opened.url), Client(opened.url, verbose=False)
    paths = [spelling for canary in canaries(opened) for spelling in (str(canary), f"//{canary}", f"{canary}/")]
    told = [*events.call("generate", *[[path, "a dog", "", *USUAL] for path in paths])]
    told += events.call("convert", *[[path, ".safetensors", True] for path in paths])
    told += events.call("model_chosen", *[[path, ""] for path in paths])
    short = {"max_train_steps": 1, "mixed_precision": "no"}
    begun = [
        [photo_set, paths[0], "recommended", short],
        [photo_set, str(opened.base), "recommended", short | {"pretrained_vae_name_or_path": paths[0]}],
        [photo_set, str(opened.base), "recommended", short | {"tokenizer_name": str(canaries(opened)[0].parent)}],
    ]
    for answer in events.call("start_training", *begun):
        told.append(answer)
        run = json.loads(answer.outputs[0][1]) if answer.outputs else None
        while run and client.predict(run, api_name="/training_status")["status"] not in ("failed", "done", "stopped"):
            time.sleep(0.1)
    # With a record of settings the folder of the second canary is a run, which the page lists and shows.
    canaries(opened)[1].with_name("config.json").write_text("{}")
    runs = [run["run"] for run in client.predict(api_name="/list_runs")]
    assert "a-run" in runs
    told += events.call("look", *[[run, None, ""] for run in runs])
    assert len(told) > 3 * len(paths)
    for answer in told:
        assert CANARY not in json.dumps(answer.outputs) + answer.error, (answer.event, answer.sent)
    for log in opened.workspace.runs_dir.glob("*/.run/*"):
        if log.is_file() and log not in canaries(opened):
            assert CANARY not in log.read_text("utf-8", "replace"), log


def test_no_shell_is_ever_started() -> None:
    """S10: no call with shell=True, no os.system or os.popen, no eval or exec in the code."""
    found = []
    for path in [*ROOT.glob("dreambooth/**/*.py"), *ROOT.glob("ui/**/*.py"), ROOT / "app.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                found.append(f"{path}:{node.value.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("os.system", "os.popen", "eval", "exec"):
                found.append(f"{path}:{node.lineno}")
    assert found == []


@pytest.fixture
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """Listen on a port of this machine and keep what arrives."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    heard.append(connection.recv(1000))

        thread = threading.Thread(target=listen)
        thread.start()
        yield int(server.getsockname()[1]), heard
        ended.set()
        thread.join()


@pytest.mark.slow
def test_no_address_is_fetched_for_anyone(opened: OpenPage, listener: tuple[int, list[bytes]], photo_set: str) -> None:
    """S6: 30 internal addresses in every text of every event, as files, as a base, and on the file route."""
    port, heard = listener
    hosts = (
        "127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433", "0x7f000001",
        "017700000001", "127.0.0.1.nip.io", "user@127.0.0.1", "127.0.0.2", "LOCALHOST", "127.000.000.001", "[::]",
    )  # fmt: skip
    urls = [f"{scheme}://{host}:{port}/x.safetensors" for scheme in ("http", "https") for host in hosts]
    assert len(urls) == 30
    events, client = RawEvents(opened.url), Client(opened.url, verbose=False)
    # As a base it is only looked up where a run begins or pictures are made.
    rest = [[url, "a dog", "", 1, 1, 1.0, "", "", ""] for url in urls[:4]]
    with touched() as seen:
        answers = [*events.fire([*urls, "http://example.com/x.png"]), *events.call("generate", *rest)]
        for url in urls:
            for route in ("file=", "proxy=", "file=/", "stream/x/x/x/"):
                raw_get(opened, f"/gradio_api/{route}{url}")
        for field in ("pretrained_model_name_or_path", "pretrained_vae_name_or_path", "tokenizer_name"):
            begin = [photo_set, str(opened.base), "recommended", {"max_train_steps": 1, "mixed_precision": "no"}]
            if field == "pretrained_model_name_or_path":
                begin[1] = urls[0]
            else:
                begin[3][field] = urls[0]
            told = events.call("start_training", begin)[0]
            if told.error:
                continue
            run = json.loads(told.outputs[0][1])
            while client.predict(run, api_name="/training_status")["status"] not in ("failed", "done", "stopped"):
                time.sleep(0.1)
    assert heard == []
    # Nor to anybody else: not even a name is looked up.
    assert {asked for asked in seen.hosts if asked[1] != urllib.parse.urlsplit(opened.url).port} == set()
    print(f"S6: {len(answers) + 4 * len(urls) + 3} requests with {len(urls)} addresses, 0 connections")


# Limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_and_texts_out_of_range_are_refused_by_name(opened: OpenPage, photo_set: str) -> None:
    """S12: NaN, negative, huge, mistyped and overlong values in every field of a run and of a picture."""
    client, events = Client(opened.url, verbose=False), RawEvents(opened.url)
    before = client.predict(api_name="/list_runs")
    begun: list[tuple[str, list[Any]]] = []
    for info in describe(TrainingConfig):
        if info.name in ("output_dir", "logging_dir", "pretrained_model_name_or_path"):
            continue
        wrong: list[Any] = ["x" * 10_000, {"a": 1}, [1]]
        if info.type in (int, float):
            wrong += [-1, 1e308, 10**30, "NaN", "12; rm"]
        begun += [(info.name, [photo_set, str(opened.base), "recommended", {info.name: value}]) for value in wrong]
    for (name, _), answer in zip(begun, events.call("start_training", *[given for _, given in begun]), strict=True):
        assert name in answer.error, (name, answer)
    pictures: list[tuple[str, list[Any]]] = [("prompt: has 10000 characters", ["starter", "x" * 10_000, "", *USUAL])]
    for number, name in enumerate(
        ("num_images_per_prompt", "num_inference_steps", "guidance_scale", "height", "width", "seed")
    ):
        for value in (-1, 1e308, 10**30) if number < 3 else ("-1", "1e308", "9" * 40, "NaN"):
            given = [*USUAL[:number], value, *USUAL[number + 1 :]]
            pictures.append((name, ["starter", "a dog", "", *given]))
    for (name, _), answer in zip(pictures, events.call("generate", *[given for _, given in pictures]), strict=True):
        assert name in answer.error, (name, answer)
    assert client.predict(api_name="/list_runs") == before
    assert {info.name for info in describe(GenerationConfig)} >= {"prompt", "seed"}
    print(f"S12: {len(begun) + len(pictures)} values refused by the field's name")


def test_what_is_said_of_hostile_names_is_escaped(opened: OpenPage) -> None:
    """S11: a refused photo's name stands escaped in the report, and in an error's message."""
    name = "<img src=x onerror=alert(1)>"
    events = RawEvents(opened.url)
    answer = events.call("start_training", [name, "starter", "recommended", {name: 1}])[0]
    assert name not in answer.error
    assert escape(name, quote=False) in answer.error
