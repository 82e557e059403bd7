"""What browsers are sent and may keep; and calls that are sent again after a cut, which are done once."""

import asyncio
import gzip
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import brotli
import pytest

from ui.access.bundle import bundled
from ui.access.connection import JOIN, Resent
from ui.access.delivery import ASSETS, HASHED, Delivery

Header = tuple[bytes, bytes]
PAGE = b"<!doctype html><html lang='en'><head><title>x</title></head><body>" + b"component " * 5000 + b"</body></html>"


def asked(
    app: Any, path: str, headers: Sequence[Header] = (), method: str = "GET", query: bytes = b""
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Ask an ASGI app, and return status, headers and body."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": list(headers), "query_string": query}
    # In a thread of its own: Playwright keeps an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(app(scope, receive, send))).result()
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


def answering(body: bytes, kind: bytes, status: int = 200) -> Any:
    """Return an app that answers everything with this, in two pieces, and counts how often."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        app.asked.append(dict(scope["headers"]))  # type: ignore[attr-defined]
        headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body[:10], "more_body": True})
        await send({"type": "http.response.body", "body": body[10:]})

    app.asked = []  # type: ignore[attr-defined]
    return app


def test_the_page_is_packed_and_begins_with_our_scripts() -> None:
    app = answering(PAGE, b"text/html; charset=utf-8")
    status, headers, body = asked(Delivery(app), "/", [(b"accept-encoding", b"gzip, deflate;q=0.5")])
    assert status == 200
    assert headers[b"content-encoding"] == b"gzip"
    assert int(headers[b"content-length"]) == len(body) < len(PAGE) / 10
    text = gzip.decompress(body)
    _, headers, body = asked(Delivery(app), "/", [(b"accept-encoding", b"gzip, br;q=0.9")])
    assert headers[b"content-encoding"] == b"br"
    assert brotli.decompress(body) == text
    assert text.startswith(b"<!doctype html><html lang='en'><head><script>")
    assert text.endswith(PAGE[40:])
    _, headers, plain = asked(Delivery(app), "/")
    assert b"content-encoding" not in headers
    assert plain == text
    assert asked(Delivery(answering(b"Not here.", b"text/plain", 404)), "/")[2] == b"Not here."


def gradio_page(*components: dict[str, Any]) -> str:
    """Return the page of the installed Gradio, with these components."""
    config = json.dumps({"components": list(components), "theme_hash": "8bf5"})
    template = (ASSETS.parent / "index.html").read_text("utf-8")
    return template.replace("{{ config | toorjson }}", config)


def component(kind: str, *, visible: bool = True) -> dict[str, Any]:
    return {"type": kind, "props": {"visible": visible}}


def test_a_page_comes_with_the_scripts_of_what_it_shows_in_one_file() -> None:
    page = gradio_page(component("textbox"), component("gallery", visible=False))
    whole, bundle = bundled(page, ASSETS)
    assert bundle is not None
    assert whole.index('rel="preload"') < whole.index(f'<script src="./assets/{bundle.name}">')
    assert 'crossorigin src="./assets/' not in whole
    _, with_gallery = bundled(gradio_page(component("textbox"), component("gallery")), ASSETS)
    assert with_gallery is not None
    assert b'"hls-' not in bundle.script
    assert len(with_gallery.packed) > len(bundle.packed) + 100_000
    assert brotli.decompress(bundle.packed) == bundle.script
    app = Delivery(answering(page.encode(), b"text/html"))
    sent = brotli.decompress(asked(app, "/", [(b"accept-encoding", b"br")])[2]).decode()
    assert f"./assets/{bundle.name}" in sent
    _, headers, body = asked(app, f"/assets/{bundle.name}", [(b"accept-encoding", b"br")])
    assert headers[b"cache-control"] == HASHED
    assert body == bundle.packed
    _, headers, body = asked(app, f"/assets/{bundle.name}")
    assert gzip.decompress(body) == bundle.script


def test_a_page_that_is_laid_out_otherwise_is_left_alone() -> None:
    assert bundled(PAGE.decode(), ASSETS) == (PAGE.decode(), None)
    gone = gradio_page(component("textbox")).replace("./assets/index-", "./assets/other-")
    assert bundled(gone, ASSETS) == (gone, None)


@pytest.mark.parametrize(
    ("path", "query", "kept"),
    [
        ("/assets/index-DphvyggB.js", b"", HASHED), ("/theme.css", b"v=8bf5", HASHED),
        ("/theme.css", b"", None), ("/static/fonts/x.woff2", b"", b"public, max-age=86400"),
        ("/gradio_api/queue/data", b"session_hash=x", None), ("/config", b"", None),
    ],
)  # fmt: skip
def test_what_a_browser_may_keep(path: str, query: bytes, kept: bytes | None) -> None:
    assert asked(Delivery(answering(b"x" * 20, b"text/plain")), path, query=query)[1].get(b"cache-control") == kept
    missing = asked(Delivery(answering(b"x" * 20, b"text/plain", 404)), path, query=query)
    assert b"cache-control" not in missing[1]


def test_a_call_that_is_sent_again_is_done_once() -> None:
    app = answering(b'{"event_id": "a1"}', b"application/json")
    once, number = Resent(app), [(b"x-dreambooth-call", b"0123456789abcdef01234567")]
    first = asked(once, JOIN, number, "POST")
    assert asked(once, JOIN, number, "POST") == first
    assert len(app.asked) == 1
    asked(once, JOIN, [(b"x-dreambooth-call", b"fedcba9876543210fedcba98")], "POST")
    asked(once, JOIN, [(b"x-dreambooth-call", b"no number")], "POST")
    asked(once, JOIN, [], "POST")
    assert len(app.asked) == 4
    refusing = answering(b"Too many connections.", b"text/plain", 503)
    again = Resent(refusing)
    for _ in range(2):
        assert asked(again, JOIN, number, "POST")[0] == 503
    assert len(refusing.asked) == 2, "what was refused may be tried again"
