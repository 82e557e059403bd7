"""How the page reaches browsers: its HTML packed, with what runs first, and its files kept as long as they may be.

Gradio sends the page's HTML, which holds all of its components, as it is: more than half a megabyte.
"""

import asyncio
import gzip
from collections.abc import Awaitable, Callable, Iterable

from ui.access.first_scripts import FIRST_SCRIPTS
from ui.answers import Message, Receive, Scope, Send

HASHED = b"public, max-age=31536000, immutable"
# Fonts and the like have no hash in their names.
UNHASHED = b"public, max-age=86400"


class Delivery:
    """ASGI middleware between the request checks and Gradio's own app."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the page packed and its files with how long they may be kept; everything else as it is."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        elif scope["path"] == "/" and scope["method"] == "GET":
            await self._app(_unpacked(scope), receive, _Packing(scope, send).sent)
        else:
            kept = _kept_for(scope["path"], scope.get("query_string", b""))
            await self._app(scope, receive, _with_header(send, b"cache-control", kept) if kept else send)


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
    """Holds back the page's HTML until it is whole, adds what has to run first, and packs it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        accepted = b",".join(value for name, value in scope["headers"] if name.lower() == b"accept-encoding")
        self._packs, self._send = b"gzip" in accepted, send
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
        body = b"".join(self._body).replace(b"<head>", b"<head>" + FIRST_SCRIPTS.encode(), 1)
        headers = [*_without(start["headers"], b"content-length"), (b"vary", b"accept-encoding")]
        if self._packs:
            body = await asyncio.to_thread(gzip.compress, body, 6)
            headers.append((b"content-encoding", b"gzip"))
        await self._send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})


def _is_page(message: Message) -> bool:
    kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
    packed = any(name.lower() == b"content-encoding" for name, _ in message["headers"])
    return message["status"] == 200 and not packed and any(kind.startswith(b"text/html") for kind in kinds)
