"""What the browser does without a network: clicks are sent when it is back, and the page says so.

Gradio drops a click that cannot be sent at once, and then reloads the page. So requests that could not be sent are
retried for a minute. One whose answer was lost would be done twice: each has a number, and the server answers a number
it knows with the earlier answer.
"""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from ui.answers import Message, Receive, Scope, Send

CALL_HEADER = b"x-dreambooth-call"
NUMBER = re.compile(rb"[0-9a-f]{16,40}")
JOIN = "/gradio_api/queue/join"
KEPT_S, MAX_KEPT = 180.0, 200
MAX_ANSWER_BYTES = 4096

RECONNECT = """(() => {
  const send = window.fetch, waits = new Set();
  const say = () => {
    let bar = document.getElementById('connection-lost');
    if (!waits.size) { bar?.remove(); return; }
    if (bar) return;
    bar = Object.assign(document.createElement('div'), {id: 'connection-lost', role: 'status'});
    bar.textContent = 'No connection to the app. What you press now is sent when it is back.';
    document.body.append(bar);
  };
  const number = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), byte =>
    byte.toString(16).padStart(2, '0')).join('');
  window.fetch = async (asked, options = {}) => {
    const address = new URL(asked?.url ?? asked, location.href), join = address.pathname.endsWith('/queue/join');
    const isOurs = address.origin === location.origin;
    const again = join || address.pathname.endsWith('/queue/data');
    if (!isOurs || !again) return send(asked, options);
    if (join) {
      options = {...options, headers: new Headers(options.headers)};
      options.headers.set('X-Dreambooth-Call', number());
    }
    const ends = Date.now() + 60000, wait = {};
    for (;;) {
      try {
        const answer = await send(asked, options);
        waits.delete(wait); say();
        return answer;
      } catch (error) {
        if (error?.name === 'AbortError' || Date.now() > ends) { waits.delete(wait); say(); throw error; }
        waits.add(wait); say();
        await new Promise(go => setTimeout(go, 700));
      }
    }
  };
})();"""


class Resent:
    """ASGI middleware that answers a retried call with the answer to the first."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app
        self._known: dict[bytes, tuple[float, asyncio.Future[list[Message]]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call through once for each number; everything else unchanged."""
        number = _number_of(scope)
        if number is None:
            await self._app(scope, receive, send)
            return
        known = self._known.get(number)
        if known is not None and (messages := await asyncio.shield(known[1])):
            for message in messages:
                await send(dict(message))
            return
        self._forget_old()
        answer: asyncio.Future[list[Message]] = asyncio.get_running_loop().create_future()
        self._known[number] = (time.monotonic(), answer)
        await self._first(scope, receive, send, number, answer)

    async def _first(
        self, scope: Scope, receive: Receive, send: Send, number: bytes, answer: "asyncio.Future[list[Message]]"
    ) -> None:
        messages: list[Message] = []

        async def sent(message: Message) -> None:
            messages.append(dict(message))
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._keep(number, messages, answer)
            await send(message)

        try:
            await self._app(scope, receive, sent)
        finally:
            if not answer.done():
                self._keep(number, [], answer)

    def _keep(self, number: bytes, messages: list[Message], answer: "asyncio.Future[list[Message]]") -> None:
        size = sum(len(message.get("body", b"")) for message in messages)
        is_kept = bool(messages) and messages[0]["status"] == 200 and size <= MAX_ANSWER_BYTES
        if not is_kept:  # what was refused, or never answered, may be tried again
            self._known.pop(number, None)
        answer.set_result(messages if is_kept else [])

    def _forget_old(self) -> None:
        oldest_s = time.monotonic() - KEPT_S
        for number, (began_s, _) in list(self._known.items()):
            if began_s < oldest_s or len(self._known) >= MAX_KEPT:
                self._known.pop(number, None)


def _number_of(scope: Scope) -> bytes | None:
    if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] != JOIN:
        return None
    numbers = [value for name, value in scope["headers"] if name.lower() == CALL_HEADER]
    return numbers[0] if numbers and NUMBER.fullmatch(numbers[0]) else None
