"""Answers sent before Gradio sees a request, and what is still arriving meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that Gradio does not see: the status of its answer, and the sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


async def answer(send: Send, status: int, body: bytes, kind: bytes) -> None:
    """Send a complete answer of this content type, in UTF-8, and have the connection closed."""
    headers = [(b"content-type", kind + b"; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


async def drained(receive: Receive) -> None:
    """Read and discard what is still arriving: a sender that is cut off never reads the answer."""
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        try:
            message = await asyncio.wait_for(receive(), 1.0)
        except TimeoutError:
            return
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
