"""How the page is sent to browsers: compressed HTML with our first scripts, and cacheable files.

Gradio sends the page's HTML, which holds all of its components, uncompressed: more than half a megabyte. It has the
browser fetch its scripts and styles one by one: here they are one file.
"""

import asyncio
import gzip
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import brotli
import gradio

from ui.access.bundle import BROTLI_QUALITY, Bundle, bundled
from ui.access.first_scripts import FIRST_SCRIPTS
from ui.answers import Message, Receive, Scope, Send

HASHED = b"public, max-age=31536000, immutable"
# Fonts and similar files have no hash in their names.
UNHASHED = b"public, max-age=86400"
ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
# One for the page, one for its login, and those of a page that was open before.
MAX_PAGES = 4


@dataclass(frozen=True)
class Whole:
    """A page as it is sent: plain, and compressed with gzip and Brotli."""

    plain: bytes
    gzip: bytes
    brotli: bytes


class Delivery:
    """ASGI middleware between the request checks and Gradio's own app."""

    def __init__(self, app: Callable[..., Awaitable[None]], assets: Path = ASSETS) -> None:
        self._app, self._assets = app, assets
        self._pages: dict[bytes, Whole] = {}
        self._bundles: dict[str, Bundle] = {}
        self._making = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the page compressed and its files with cache headers; everything else unchanged."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        elif scope["path"] == "/" and scope["method"] == "GET":
            await self._app(_unpacked(scope), receive, _Packing(scope, send, self._whole).sent)
        elif bundle := self._bundles.get(scope["path"].removeprefix("/assets/")):
            await _send_bundle(scope, send, bundle)
        else:
            kept = _kept_for(scope["path"], scope.get("query_string", b""))
            await self._app(scope, receive, _with_header(send, b"cache-control", kept) if kept else send)

    async def _whole(self, body: bytes) -> Whole:
        """Return the page with our additions: made once for each page, because good compression takes a moment."""
        async with self._making:
            key = hashlib.sha256(body).digest()
            if key not in self._pages:
                whole, bundle = await asyncio.to_thread(_made_whole, body, self._assets)
                for kept in (self._pages, self._bundles):
                    while len(kept) >= MAX_PAGES:
                        kept.pop(next(iter(kept)))  # type: ignore[call-overload]  # the key is of its own dictionary
                self._pages[key] = whole
                if bundle is not None:
                    self._bundles[bundle.name] = bundle
            return self._pages[key]


def _made_whole(body: bytes, assets: Path) -> tuple[Whole, Bundle | None]:
    text, bundle = bundled(body.decode(), assets)
    plain = text.replace("<head>", "<head>" + FIRST_SCRIPTS, 1).encode()
    return Whole(plain, gzip.compress(plain, 6), brotli.compress(plain, quality=BROTLI_QUALITY)), bundle


async def _send_bundle(scope: Scope, send: Send, bundle: Bundle) -> None:
    headers = [(b"content-type", b"text/javascript"), (b"cache-control", HASHED), (b"vary", b"accept-encoding")]
    packed = b"br" in _accepted(scope)
    body = bundle.packed if packed else gzip.compress(bundle.script, 6)
    headers += [(b"content-encoding", b"br" if packed else b"gzip"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _accepted(scope: Scope) -> list[bytes]:
    """Return the content encodings that the browser accepts."""
    values = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept-encoding")
    return [one.partition(b";")[0].strip() for one in values.split(b",")]


def _kept_for(path: str, query: bytes) -> bytes | None:
    if path.startswith("/assets/") or (path.endswith("/theme.css") and query.startswith(b"v=")):
        return HASHED
    return UNHASHED if path.startswith("/static/") else None


def _with_header(send: Send, name: bytes, value: bytes) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] in (200, 206, 304):
            message["headers"] = [*_without(message["headers"], name), (name, value)]
        await send(message)

    return sent


def _unpacked(scope: Scope) -> Scope:
    return {**scope, "headers": list(_without(scope["headers"], b"accept-encoding"))}


def _without(headers: Iterable[tuple[bytes, bytes]], *names: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name.lower() not in names]


class _Packing:
    """Buffers the page's HTML until it is complete, adds the first scripts, and compresses it."""

    def __init__(self, scope: Scope, send: Send, whole: Callable[[bytes], Awaitable[Whole]]) -> None:
        self._accepted, self._send, self._whole = _accepted(scope), send, whole
        self._start: Message | None = None
        self._body: list[bytes] = []

    async def sent(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_page(message):
            self._start = message
        elif self._start is None:
            await self._send(message)
        else:
            self._body.append(message.get("body", b""))
            if not message.get("more_body", False):
                await self._send_whole(self._start)

    async def _send_whole(self, start: Message) -> None:
        whole = await self._whole(b"".join(self._body))
        headers = [*_without(start["headers"], b"content-length"), (b"vary", b"accept-encoding")]
        way, body = next(
            ((way, body) for way, body in ((b"br", whole.brotli), (b"gzip", whole.gzip)) if way in self._accepted),
            (None, whole.plain),
        )
        if way is not None:
            headers.append((b"content-encoding", way))
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})


def _is_page(message: Message) -> bool:
    kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
    packed = any(name.lower() == b"content-encoding" for name, _ in message["headers"])
    return message["status"] == 200 and not packed and any(kind.startswith(b"text/html") for kind in kinds)
