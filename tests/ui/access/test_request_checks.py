"""The guard before the page, over HTTP: who may ask for what, how much may come in, and what is left of it."""

import concurrent.futures
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gradio_client import Client

from dreambooth.data.samples import sample_folder
from tests.harness.open_page import OpenPage, open_page
from ui.access import request_checks as checks
from ui.access.login import Logins
from ui.access.request_checks import KnownHosts, Uploads, known_hosts

USER = ("ann", "correct horse")
EVIL = "https://evil.example"
CALL = {"data": [], "fn_index": 0, "session_hash": "s"}
REFUSED = (401, 403, 404, 405, 415)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page without a password for all tests of this file."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page that asks for a password."""
    with open_page(tmp_path_factory.mktemp("locked"), auth=USER) as page:
        yield page


def routes(page: OpenPage) -> list[tuple[str, str]]:
    """Return method and an example path of every route of the running app, from its own route table."""
    found = set()
    # Recent FastAPI keeps an included router as one entry of the table.
    inner = [getattr(route, "original_router", None) for route in page.app_routes]
    for route in [*page.app_routes, *(route for router in inner if router for route in router.routes)]:
        for method in getattr(route, "methods", None) or ():
            path = str(route.path).replace(":path}", "}")
            while "{" in path:
                start, end = path.index("{"), path.index("}")
                path = f"{path[:start]}x{path[end + 1 :]}"
            found.add((method, path.rstrip("/") or "/"))
    return sorted(found)


# Of the first visit: the sample photos, and what became of them. The uploads of these tests have other names.
PAGE_PICTURES = {"before.webp", "after.webp", *(path.name for path in sample_folder().glob("*.png"))}


def stored(page: OpenPage) -> list[str]:
    """Return every file in the page's own folder but its lock and the pictures that it shows to everybody."""
    own = {"lock"} | PAGE_PICTURES
    return sorted(str(path) for path in page.copies_dir.rglob("*") if path.is_file() and path.name not in own)


def request(page: OpenPage, method: str, path: str, **given: Any) -> int:
    """Return the status of one request."""
    return httpx.request(method, page.url.rstrip("/") + path, timeout=30, **given).status_code


# Names and origins ---------------------------------------------------------------------------------------------------


def test_the_page_answers_to_its_own_names_only() -> None:
    home = known_hosts("127.0.0.1")
    assert all(map(home.knows, ("localhost", "localhost:7860", "127.0.0.1:1", "[::1]:7860", "LOCALHOST")))
    assert not any(
        map(
            home.knows,
            ("", "evil.example", "192.168.1.5", "localhost.evil.example", "a.gradio.live", "a.hf.space", "["),
        )
    )
    assert known_hosts("127.0.0.1", share=True).knows("abc.gradio.live")
    assert not known_hosts("127.0.0.1", share=True).knows("gradio.live.evil.example")
    assert not known_hosts("127.0.0.1", share=True).knows("evilgradio.live")
    space = known_hosts("0.0.0.0", ["ann-studio.hf.space"], on_space=True)
    assert all(map(space.knows, ("ann-studio.hf.space", "10.0.0.7:7860", socket.gethostname())))
    assert not space.knows("evil.example")
    assert known_hosts("0.0.0.0", ["studio.example"]).knows("studio.example:443")


def test_an_origin_is_its_own_only_when_it_is_the_host_asked_for() -> None:
    hosts = KnownHosts(("localhost", "studio.example"), any_address=True)
    assert hosts.is_own("http://127.0.0.1:7860", "127.0.0.1:7860")
    assert hosts.is_own("https://studio.example", "127.0.0.1:7860")
    wrong = ("null", EVIL, "http://localhost:3000", "http://localhost", "file://", "", "http://127.0.0.1:7861")
    assert not any(hosts.is_own(origin, "127.0.0.1:7860") for origin in wrong)


def test_posts_of_other_web_pages_change_nothing(opened: OpenPage) -> None:
    """S7: evil Origin, null, wrong Host, a cross-site fetch, text/plain, a form, no Content-Type, on every POST."""
    posts = [path for method, path in routes(opened) if method == "POST"]
    assert len(posts) >= 15
    assert {checks.UPLOAD, checks.LOGIN, "/gradio_api/queue/join"} <= set(posts)
    body = json.dumps(CALL).encode()
    as_json, upload = {"content-type": "application/json"}, {"files": ("x.png", b"x")}
    before, statuses = stored(opened), []
    for path in posts:
        sent: dict[str, Any] = {"files": upload} if path == checks.UPLOAD else {"content": body, "headers": as_json}
        for foreign in (
            {"origin": EVIL}, {"origin": "null"}, {"host": "evil.example"}, {"sec-fetch-site": "cross-site"},
            {"origin": "http://localhost:1"}, {"host": "evil.example", "origin": "http://evil.example"},
        ):  # fmt: skip
            given = sent | {"headers": sent.get("headers", {}) | foreign}
            statuses.append((request(opened, "POST", path, **given), path, foreign))
        if path != checks.LOGIN:
            for kind in ({"content-type": "text/plain"}, {}, {"content-type": "application/x-www-form-urlencoded"}):
                statuses.append((request(opened, "POST", path, content=body, headers=kind), path, kind))
    accepted = [one for one in statuses if one[0] not in (403, 404, 415)]
    assert accepted == []
    assert stored(opened) == before
    print(f"S7: {len(statuses)} requests on {len(posts)} POST routes refused")


def test_other_web_pages_read_nothing(opened: OpenPage) -> None:
    """S7: with a foreign Origin or Host not even a GET is answered."""
    for foreign in ({"origin": EVIL}, {"origin": "null"}, {"host": "evil.example"}):
        for path in ("/", "/config", "/gradio_api/info", "/logout"):
            assert request(opened, "GET", path, headers=foreign) == 403
    answer = httpx.get(opened.url)
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_itself_and_programs_pass(opened: OpenPage) -> None:
    own = {"origin": opened.url.rstrip("/"), "sec-fetch-site": "same-origin"}
    assert request(opened, "POST", checks.UPLOAD, files={"files": ("a.txt", b"a")}, headers=own) == 200
    assert request(opened, "GET", "/", headers=own) == 200
    assert Client(opened.url, verbose=False).predict(api_name="/list_models")
    host = urlsplit(opened.url)
    assert request(opened, "GET", "/", headers={"host": f"localhost:{host.port}"}) == 200


# Logging in ----------------------------------------------------------------------------------------------------------

PUBLIC = {
    "/", "/assets/x", "/static/x", "/svelte/x", "/favicon.ico", "/robots.txt", "/theme.css", "/gradio_api/theme.css",
    "/gradio_api/app_id", "/gradio_api/startup-events", "/logout", "/login", "/manifest.json", "/pwa_icon",
}  # fmt: skip


def test_without_a_login_nothing_but_the_door_is_shown(locked: OpenPage) -> None:
    """S8: every route of the route table, without a cookie and with a wrong one; the public ones are frozen here."""
    table = routes(locked)
    assert len(table) >= 60
    passed = set()
    for method, path in table:
        if (method, path) == ("POST", checks.LOGIN):
            continue
        for cookie in ({}, {"cookie": "access-token-unsecure-x=forged"}):
            given: dict[str, Any] = {"headers": {"content-type": "application/json", **cookie}}
            status = request(locked, method, path, **given, **({"json": CALL} if method == "POST" else {}))
            if status not in (401, 403, 404):
                passed.add(path)
    assert passed <= PUBLIC
    print(f"S8: {2 * (len(table) - 1)} requests on {len(table)} routes; let through: {sorted(passed)}")


def test_the_login_page_tells_nothing_of_the_app(locked: OpenPage) -> None:
    page = httpx.get(locked.url).text
    assert "Password" in page
    for told in (str(locked.workspace.data_dir), "tiny", "upload_photos", "starter"):
        assert told not in page


def test_failed_logins_take_a_second_each_one_after_the_other(
    locked: OpenPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt(password: str) -> int:
        return request(locked, "POST", "/login", data={"username": USER[0], "password": password})

    with monkeypatch.context() as patch:
        # Longer than a right one takes on the busiest machine, and than the request waits.
        patch.setattr("ui.access.login.FAILED_LOGIN_S", 600.0)
        assert attempt(USER[1]) == 200
    begun_s = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(attempt, ("a", "b", "c"))) == [400, 400, 400]
    assert time.monotonic() - begun_s >= 3.0


def test_a_login_that_does_not_come_holds_up_nobody(locked: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a form is waited for outside of any lock, and not for ever."""
    monkeypatch.setattr("ui.access.login.BODY_S", 3.0)
    address = urlsplit(locked.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as slow:
        head = f"POST /login HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100\r\n"
        slow.sendall(f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\nuser".encode())
        begun_s = time.monotonic()
        answer = httpx.post(locked.url + "login", data={"username": USER[0], "password": USER[1]}, timeout=60)
        took_s = time.monotonic() - begun_s
        assert answer.status_code == 200
        told = slow.recv(4096)
        assert told.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begun_s > took_s, "the right login was answered first"


def test_a_login_form_has_a_limit(locked: OpenPage) -> None:
    answer = httpx.post(locked.url + "login", data={"username": "a", "password": "b" * 20_000})
    assert (answer.status_code, answer.text) == (413, "A login may have at most 16 KB.")


def test_wrong_logins_delay_nobody_at_another_address(locked: OpenPage) -> None:
    """Sixty at once from one address: some wait their turn, the rest is told to; a right one elsewhere does not."""

    def attempt(password: str, source: str) -> int:
        transport = httpx.HTTPTransport(local_address=source)
        with httpx.Client(base_url=locked.url, transport=transport, timeout=60) as visitor:
            return visitor.post("/login", data={"username": USER[0], "password": password}).status_code

    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        wrong = [pool.submit(attempt, "wrong", "127.0.0.1") for _ in range(60)]
        while not any(one.done() for one in wrong):
            time.sleep(0.01)
        assert attempt(USER[1], "127.0.0.2") == 200
        num_waiting = sum(not one.done() for one in wrong)
        statuses = [one.result() for one in wrong]
    assert num_waiting > 0, "it was answered while the others waited"
    assert set(statuses) == {400, 429}
    assert statuses.count(400) >= 8


def scope_of(peer: str, *forwarded: str) -> dict[str, Any]:
    """Return what the server knows of a request: the address it came from, and those that proxies noted."""
    headers = [(b"x-forwarded-for", noted.encode()) for noted in forwarded]
    return {"client": (peer, 50_000), "headers": headers}


def test_an_address_that_a_proxy_names_counts_where_there_is_a_proxy() -> None:
    at_home, space, tunnel = Logins(), Logins(on_space=True), Logins(behind_tunnel=True)
    assert at_home.address_of(scope_of("127.0.0.1", "8.8.8.8")) == "127.0.0.1"
    assert space.address_of(scope_of("10.1.2.3", "1.1.1.1, 8.8.8.8, 10.0.0.1")) == "8.8.8.8", "not what came first"
    assert space.address_of(scope_of("10.1.2.3", "1.1.1.1", "8.8.8.8")) == "8.8.8.8"
    assert space.address_of(scope_of("10.1.2.3", "nonsense")) == "10.1.2.3"
    assert tunnel.address_of(scope_of("127.0.0.1", "8.8.8.8")) == "8.8.8.8"
    assert tunnel.address_of(scope_of("192.168.1.5", "8.8.8.8")) == "192.168.1.5", "who comes past the tunnel"
    assert at_home.address_of(scope_of("2001:db8::1")) == at_home.address_of(scope_of("2001:db8::2:3"))
    assert at_home.address_of(scope_of("::ffff:127.0.0.1")) == "127.0.0.1"


def test_logging_out_ends_the_own_session_alone(locked: OpenPage) -> None:
    login = {"username": USER[0], "password": USER[1]}
    with httpx.Client(base_url=locked.url) as ann, httpx.Client(base_url=locked.url) as bob:
        assert ann.post("/login", data=login).status_code == bob.post("/login", data=login).status_code == 200
        cookies = dict(ann.cookies)
        assert ann.get("/logout").status_code in (302, 307)
        assert bob.get("/config").status_code == 200
        assert ann.get("/config", headers={"cookie": "; ".join(map("=".join, cookies.items()))}).status_code == 401


def test_what_only_some_may_see_is_kept_by_no_cache(locked: OpenPage, opened: OpenPage) -> None:
    for path in ("/", "/config", "/gradio_api/info"):
        assert httpx.get(opened.url.rstrip("/") + path).headers["cache-control"] == "private, no-store"
    assert httpx.get(locked.url).headers["cache-control"] == "private, no-store"


def test_who_logs_in_has_the_whole_page(locked: OpenPage) -> None:
    client = Client(locked.url, auth=USER, verbose=False)
    assert client.predict(api_name="/list_models")
    with httpx.Client(base_url=locked.url) as visitor:
        assert visitor.post("/login", data={"username": USER[0], "password": USER[1]}).status_code == 200
        assert "upload_photos" in visitor.get("/").text
        assert visitor.get("/config").status_code == 200
        assert visitor.get("/monitoring/summary").status_code == 404


# Uploads -------------------------------------------------------------------------------------------------------------


def aborted_upload(page: OpenPage, num_bytes: int = 300_000) -> None:
    """Send the beginning of an upload and hang up."""
    address = urlsplit(page.url)
    head = (
        f"POST {checks.UPLOAD} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {10 * num_bytes}\r\n"
        "Content-Type: multipart/form-data; boundary=xx\r\n\r\n"
        '--xx\r\nContent-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\n'
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(head.encode() + b"x" * num_bytes)
        time.sleep(0.02)


def test_aborted_uploads_leave_no_files(opened: OpenPage) -> None:
    """R19: 200 uploads broken off midway leave no file, and what came whole beside them stays."""
    whole = httpx.post(opened.url + checks.UPLOAD[1:], files={"files": ("whole.txt", b"whole")}).json()
    before = stored(opened)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: aborted_upload(opened), range(200)))
    begun_s = time.monotonic()
    while stored(opened) != before and time.monotonic() - begun_s < 60:
        time.sleep(0.2)
    assert stored(opened) == before
    assert Path(whole[0]).read_bytes() == b"whole"
    print(f"R19: 200 aborted uploads, 0 orphans {time.monotonic() - begun_s:.1f} s after the last")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenPage]:
    """Open a page with small limits: 2 MB a request, 8 files, 4 MB in all, a second of silence."""
    made = Uploads
    monkeypatch.setattr(
        checks,
        "Uploads",
        lambda folder: made(folder, 4 * checks.MIB, 2 * checks.MIB, max_files=8, silence_s=1.0),
    )
    with open_page(tmp_path) as page:
        yield page


def upload(page: OpenPage, *files: bytes, chunked: bool = False) -> tuple[int, str]:
    """Upload files in one request, their size told beforehand or not; returns status and text."""
    parts = [("files", (f"{number}.bin", content)) for number, content in enumerate(files)]
    request = httpx.Request("POST", page.url + checks.UPLOAD[1:], files=parts)
    body, headers = request.read(), {"content-type": request.headers["content-type"]}
    content = (body[start : start + 65536] for start in range(0, len(body), 65536)) if chunked else body
    answer = httpx.post(page.url + checks.UPLOAD[1:], content=content, headers=headers, timeout=60)
    return answer.status_code, answer.text


def num_bytes(page: OpenPage) -> int:
    """Return the size of all that lies in the page's folder."""
    total_bytes = 0
    for path in stored(page):
        # Files come and go while others are measured.
        with contextlib.suppress(FileNotFoundError):
            total_bytes += Path(path).stat().st_size
    return total_bytes


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_over_a_limit_is_refused_by_its_name(small: OpenPage, chunked: bool) -> None:
    """S12: too large, too many files, too much in all; nothing of it stays, and the next small one is taken."""
    status, sentence = upload(small, b"x" * (4 * checks.MIB), chunked=chunked)
    assert (status, sentence) == (413, "One upload may have at most 2 MB.")
    status, sentence = upload(small, *[b"x"] * 9, chunked=chunked)
    assert (status, sentence) == (413, "One upload may have at most 8 files.")
    assert num_bytes(small) == 0
    assert upload(small, *[bytes([number]) for number in range(8)], chunked=chunked)[0] == 200
    assert upload(small, b"a" * (2 * checks.MIB), chunked=chunked)[0] == 200
    # Without its size told an upload is measured as it comes: the 8 bytes too many may pass.
    assert upload(small, b"b" * (2 * checks.MIB), chunked=chunked)[0] in ((200, 413) if chunked else (413,))
    status, sentence = upload(small, b"c" * (2 * checks.MIB), chunked=chunked)
    assert (status, sentence.partition(":")[0]) == (413, "Uploads may take 4 MB of disk in total")
    assert num_bytes(small) <= 4 * checks.MIB + 2**16


def test_the_limits_as_shipped(opened: OpenPage) -> None:
    """S12: 501 files, and a request that announces more than 1 GB, are refused by one sentence; nothing is kept."""
    before = stored(opened)
    assert upload(opened, *[b"x"] * 501) == (413, "One upload may have at most 500 files.")
    address = urlsplit(opened.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        head = f"POST {checks.UPLOAD} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {2 * 1024**3}\r\n"
        connection.sendall(f"{head}Content-Type: multipart/form-data; boundary=xx\r\n\r\n--xx\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 413")
    assert answer.endswith(b"One upload may have at most 1024 MB.")
    assert stored(opened) == before


def test_the_disk_share_as_shipped_holds_against_many_at_once(opened: OpenPage) -> None:
    """S12: with 2 GB lying there less 20 MB, eight uploads of 40 MB that do not tell their size take at most those."""
    coming_in = opened.copies_dir / "tmp-coming-in"
    with coming_in.open("wb") as file:
        # No byte of it is really written. Its date is that of an upload still under way.
        file.truncate(checks.MAX_KEPT_BYTES - 20 * checks.MIB)
    os.utime(coming_in, (time.time() + 3600, time.time() + 3600))
    before_bytes, peak_bytes, ended = num_bytes(opened), 0, threading.Event()

    def measure() -> None:
        nonlocal peak_bytes
        while not ended.wait(0.005):
            peak_bytes = max(peak_bytes, num_bytes(opened))

    measuring = threading.Thread(target=measure)
    measuring.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            told = list(
                pool.map(lambda number: upload(opened, bytes([number]) * 40 * checks.MIB, chunked=True), range(8))
            )
    finally:
        ended.set()
        measuring.join()
        coming_in.unlink()
    assert {status for status, _ in told} == {413}
    assert {sentence.partition(":")[0] for _, sentence in told} == {"Uploads may take 2048 MB of disk in total"}
    assert before_bytes < peak_bytes <= checks.MAX_KEPT_BYTES + 64 * checks.MIB
    print(f"S12: peak {(peak_bytes - checks.MAX_KEPT_BYTES) / checks.MIB:+.1f} MB of the share")


def test_an_upload_that_falls_silent_is_ended(small: OpenPage) -> None:
    address = urlsplit(small.url)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        connection.sendall(
            f"POST {checks.UPLOAD} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 5000\r\n"
            "Content-Type: multipart/form-data; boundary=xx\r\n\r\n--xx\r\n"
            'Content-Disposition: form-data; name="files"; filename="a.bin"\r\n\r\nabc'.encode()
        )
        assert b"408" in connection.recv(4096)
    assert stored(small) == []


def test_whole_uploads_that_nothing_took_up_go_after_an_hour(tmp_path: Path) -> None:
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 3700, time.time() - 3700))
    known = {str(old), str(new), str(tmp_path / "gone.png")}
    Uploads(tmp_path).sweep(known)
    assert known == {str(new)}
    assert not old.exists()


def test_files_of_an_upload_under_way_are_not_swept(tmp_path: Path) -> None:
    (tmp_path / "tmp1").touch()
    uploads = Uploads(tmp_path)
    uploads.under_way["one"] = time.time() - 1
    uploads.sweep(set())
    assert (tmp_path / "tmp1").exists()
    uploads.under_way.clear()
    uploads.sweep(set())
    assert not (tmp_path / "tmp1").exists()


def test_a_call_has_a_limit(opened: OpenPage) -> None:
    """S12: a call's body of more than 1 MB is refused by one sentence."""
    answer = httpx.post(opened.url + "gradio_api/call/list_models", json={"data": ["x" * 2 * checks.MIB]}, timeout=30)
    assert (answer.status_code, answer.text) == (413, "A call may have at most 1 MB.")
