"""The login page, and the delay after a wrong answer.

Gradio's own page would reveal the names of runs and models before the login.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from html import escape

from ui.answers import Message, Receive, Refused, Scope, Send

MAX_BODY_BYTES = 16 * 1024
BODY_S = 10.0
FAILED_LOGIN_S = 1.0
# Per address; more concurrent attempts are refused.
MAX_WAITING = 8

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>DreamBooth</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 16px system-ui, sans-serif; max-width: 22rem; margin: 15vh auto; padding: 0 1rem }}
label {{ display: block; margin: .8rem 0 }}
input, button {{ font: inherit; width: 100%; padding: .5rem; box-sizing: border-box }}
</style></head><body>
<h1>DreamBooth</h1>
<p>{note}</p>
<form id="login" method="post" action="login">
<label>User <input name="username" autocomplete="username" required autofocus></label>
<label>Password <input name="password" type="password" autocomplete="current-password" required></label>
<button>Log in</button>
<p id="message" role="alert"></p>
</form>
<script>
const form = document.getElementById("login");
form.addEventListener("submit", async (event) => {{
  event.preventDefault();
  const answer = await fetch("login", {{ method: "POST", body: new FormData(form) }});
  if (answer.ok) location.reload();
  else document.getElementById("message").textContent =
    answer.status === 400 ? "That is not the user and the password." : await answer.text();
}});
</script>
</body></html>
"""


def login_page(note: str | None) -> bytes:
    """Return the page as UTF-8, with a sentence on where to find the password."""
    return _PAGE.format(note=escape(note or "")).encode()


async def small_body(receive: Receive) -> Receive:
    """Read a login form, and return a function that passes it on; raises Refused for a large or a slow one."""
    body = b""
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "The login was interrupted.")
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(413, f"A login may have at most {MAX_BODY_BYTES // 1024} KB.")
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        raise Refused(408, f"The login took longer than {BODY_S:g} s to arrive.") from None
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


@dataclass
class _Turns:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_waiting: int = 0


@dataclass
class Logins:
    """Answers the logins of one address one after the other, one second after each wrong one.

    The address given by a proxy is trusted on a Space, and behind the link's tunnel, whose end is this machine: there
    all visitors come from one address.
    """

    on_space: bool = False
    behind_tunnel: bool = False
    _turns: dict[str, _Turns] = field(default_factory=dict, init=False)

    @contextlib.asynccontextmanager
    async def turn(self, scope: Scope) -> AsyncIterator[None]:
        """Wait until earlier logins of the same address are answered; raises Refused if too many are waiting."""
        address = self.address_of(scope)
        turns = self._turns.setdefault(address, _Turns())
        if turns.num_waiting >= MAX_WAITING:
            raise Refused(429, "Too many logins at once: wait a few seconds, then try again.")
        turns.num_waiting += 1
        try:
            async with turns.lock:
                yield
        finally:
            turns.num_waiting -= 1
            if not turns.num_waiting:
                self._turns.pop(address, None)

    def slowed(self, send: Send) -> Send:
        """Return a send function that delays the answer to a wrong login by a second."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await asyncio.sleep(FAILED_LOGIN_S)
            await send(message)

        return sent

    def address_of(self, scope: Scope) -> str:
        """Return the visitor's address: an IPv4 address, or the network of an IPv6 one, which one visitor has whole."""
        peer = _address((scope.get("client") or ("",))[0])
        is_proxy = self.on_space or (self.behind_tunnel and peer is not None and peer.is_loopback)
        named = _named_by_proxy(scope["headers"]) if is_proxy else None
        address = named or peer
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, 64), strict=False))
        return str(address)


def _named_by_proxy(headers: Iterable[tuple[bytes, bytes]]) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the last public address that proxies noted: a visitor may have invented those before it."""
    noted = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
    found = [_address(text.strip()) for text in reversed(noted.split(","))]
    return next((address for address in found if address is not None and address.is_global), None)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address
