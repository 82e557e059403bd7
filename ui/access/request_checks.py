"""The checks before the page: which hosts, origins, routes and uploads are allowed, and who must log in.

Gradio answers to any `Host` name, accepts posts from any web page, keeps the files of aborted uploads, and has a limit
per file but none for a request or for the disk. This middleware runs before it.
"""

import asyncio
import contextlib
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dreambooth.data.archives import MAX_ARCHIVE_BYTES, MAX_ENTRIES
from ui.access.login import Logins, login_page, small_body
from ui.access.sessions import forget_answer
from ui.answers import Message, Receive, Refused, Scope, Send, answer, drained

App = Callable[[Scope, Receive, Send], Awaitable[None]]

MIB = 2**20
MAX_REQUEST_BYTES = MAX_ARCHIVE_BYTES
MAX_KEPT_BYTES = 2048 * MIB
MAX_FILES = MAX_ENTRIES
MAX_CALL_BYTES = MIB
SILENCE_S = 30
UNUSED_AFTER_S = 3600

API = "/gradio_api"
UPLOAD, LOGIN, LOGOUT, FILE = f"{API}/upload", "/login", "/logout", f"{API}/file="
# What the page and its clients use; everything else that Gradio would answer to is not found here.
BEFORE_LOGIN = (
    "/", LOGOUT, "/favicon.ico", "/robots.txt", "/theme.css", f"{API}/theme.css", f"{API}/app_id",
    f"{API}/startup-events", "/manifest.json", "/pwa_icon",
)  # fmt: skip
UNDER_BEFORE_LOGIN = ("/assets/", "/static/", "/svelte/")
AFTER_LOGIN = (
    "/config", f"{API}/info", f"{API}/openapi.json", f"{API}/user", f"{API}/login_check", f"{API}/queue/data",
    f"{API}/queue/status", f"{API}/upload_progress",
)  # fmt: skip
UNDER_AFTER_LOGIN = (f"{API}/heartbeat/", f"{API}/call/")
CALLS = (f"{API}/queue/join", f"{API}/cancel", f"{API}/reset")
UNDER_CALLS = (f"{API}/call/",)
EVENT = re.compile(r"[0-9a-f]{32}")

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
# A file is shown as an image or saved; opened by itself it runs nothing, and browsers do not cache it.
UNKEPT = (b"cache-control", b"private, no-store")
FILE_HEADERS = [(b"content-security-policy", b"default-src 'none'"), UNKEPT]


@dataclass(frozen=True)
class KnownHosts:
    """The names the page answers to: a name, `*.` and the end of a name, or, with `any_address`, every IP address."""

    names: tuple[str, ...] = ("localhost",)
    any_address: bool = False
    framed_by: tuple[str, ...] = ()

    def knows(self, host: str) -> bool:
        """Return whether a `Host` header names this page."""
        name = _name_of(host)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return any(name == own or (own.startswith("*.") and name.endswith(own[1:])) for own in self.names)
        return address.is_loopback or self.any_address or name in self.names

    def is_own(self, origin: str, host: str) -> bool:
        """Return whether an `Origin` header is the page's own: the host asked for, or one known by its full name."""
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.path:
            return False
        return parts.netloc.lower() == host.lower() or _name_of(parts.netloc) in self.names[1:]


def known_hosts(
    host: str, names: Iterable[str] = (), *, share: bool = False, on_space: bool = False, on_colab: bool = False
) -> KnownHosts:
    """Return the names for a page that listens on `host`; `names` are those it has behind a proxy."""
    own = ["localhost", *(name.lower() for name in names)]
    public = not _is_loopback(host)
    if public:
        own += [socket.gethostname().lower()] + ([host.lower()] if not _is_address(host) else [])
    # Names under these suffixes belong to their operators; nobody else can point one at us.
    own += ["*.gradio.live"] * share + ["*.hf.space"] * on_space
    framed_by = ("https://huggingface.co", "https://*.hf.space") if on_space else ()
    framed_by += ("https://colab.research.google.com", "https://*.googleusercontent.com") if on_colab else ()
    return KnownHosts(tuple(own), any_address=public, framed_by=framed_by)


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


# Uploads -------------------------------------------------------------------------------------------------------------


@dataclass
class Uploads:
    """Uploads in Gradio's folder that were not used yet: their size, and which of them are orphans."""

    folder: Path
    max_kept_bytes: int = MAX_KEPT_BYTES
    max_request_bytes: int = MAX_REQUEST_BYTES
    max_files: int = MAX_FILES
    silence_s: float = SILENCE_S
    under_way: dict[object, float] = field(default_factory=dict)
    # Measuring the folder for every piece would be slow: what arrived since is added to the last measurement.
    _measured_bytes: int = field(default=0, init=False)

    def kept_bytes(self, known: Iterable[str]) -> int:
        """Return the size of the uploads: files still arriving, and the `known` complete ones."""
        return sum(map(_size_of, [*self._coming_in(), *map(Path, known)]))

    def has_room(self, known: Iterable[str], came_bytes: int, to_come_bytes: int, *, measure: bool = False) -> bool:
        """Return whether the next piece of an upload, and its declared rest, fits the share of the disk."""
        expected_bytes = self._measured_bytes + came_bytes + to_come_bytes
        if measure or expected_bytes > self.max_kept_bytes:
            self._measured_bytes = self.kept_bytes(known)
        self._measured_bytes += came_bytes
        return self._measured_bytes + to_come_bytes <= self.max_kept_bytes

    def sweep(self, known: set[str]) -> None:
        """Remove what belongs to no current upload, and complete files that nothing used for an hour."""
        begun_s = min(self.under_way.values(), default=time.time() + 1)
        for path in self._coming_in():
            if _changed_s(path) < begun_s:
                path.unlink(missing_ok=True)
        for name in list(known):
            if not Path(name).exists():
                known.discard(name)
            elif _changed_s(Path(name)) < time.time() - UNUSED_AFTER_S:
                Path(name).unlink(missing_ok=True)
                known.discard(name)

    def _coming_in(self) -> list[Path]:
        # Gradio names a complete file after its content; until then it has a temporary name.
        return [path for path in self.folder.glob("tmp*") if path.is_file()]


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _changed_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


# The guard -----------------------------------------------------------------------------------------------------------


class RequestChecks:
    """ASGI middleware before Gradio's own app."""

    def __init__(self, app: App, *, hosts: KnownHosts, uploads: Uploads, logins: Logins) -> None:
        self._app, self._hosts, self._uploads, self._logins = app, hosts, uploads, logins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it with the reason for refusing it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        send = self._with_headers(scope["path"], send)
        try:
            kind = self._checked(scope)
            if kind == "upload":
                await self._upload(scope, receive, send)
            elif kind == "login":
                receive = await small_body(receive)
                async with self._logins.turn(scope):
                    await self._app(scope, receive, self._logins.slowed(send))
            elif scope["path"].rstrip("/") == LOGOUT:
                await self._logout(scope, receive, send)
            elif kind == "call":
                await self._limited(scope, receive, send, _CallBody(receive))
            elif scope["path"] == "/" and not _is_logged_in(scope):
                await answer(send, 200, login_page(scope["app"].get_blocks().auth_message), b"text/html")
            else:
                await self._app(scope, receive, send)
                _forget_read_answer(scope)
        except Refused as refused:
            await answer(send, refused.status, refused.sentence.encode(), b"text/plain")

    def _checked(self, scope: Scope) -> str:
        """Return what kind of request this is; raises Refused if it is not allowed."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._hosts.knows(host):
            raise Refused(403, "This page does not answer to that host name; set DREAMBOOTH_NAMES where the app runs.")
        path = scope["path"] if scope["path"] == "/" else scope["path"].rstrip("/")
        kind = _kind(scope["method"], path)
        origin = headers.get("origin")
        if origin is not None and not self._hosts.is_own(origin, host):
            raise Refused(403, "Requests from other web pages are refused.")
        changes = kind in ("upload", "login", "call") or path == LOGOUT
        if changes and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise Refused(403, "Requests from other web pages are refused.")
        if kind in ("private", "upload", "call") and not _is_logged_in(scope):
            raise Refused(401, "Log in first.")
        # A form on another site can send these without a preflight request.
        sent_as = headers.get("content-type", "").split(";")[0].strip().lower()
        wanted = {"upload": ("multipart/form-data",), "call": ("application/json",)}.get(kind, (sent_as,))
        if sent_as not in wanted:
            raise Refused(415, f"This must be sent as {wanted[0]}.")
        return kind

    def _with_headers(self, path: str, send: Send) -> Send:
        frames = " ".join(("'self'", *self._hosts.framed_by)).encode()
        more = FILE_HEADERS if path.startswith(FILE) else [(b"content-security-policy", b"frame-ancestors " + frames)]
        # What only some may see must not be cached by browsers and proxies.
        if path in ("/", LOGOUT, *AFTER_LOGIN) or path.startswith(UNDER_AFTER_LOGIN):
            more = [*more, UNKEPT]

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in (*HEADERS, *more)}
                kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in own]
                message["headers"] = [*kept, *HEADERS, *more]
            await send(message)

        return sent

    async def _logout(self, scope: Scope, receive: Receive, send: Send) -> None:
        """End only the caller's session; Gradio would end those of everybody with the same password."""
        for token in _tokens(scope):
            scope["app"].tokens.pop(token, None)
        await self._app({**scope, "query_string": b"all_session=false"}, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        known: set[str] = scope["app"].get_blocks().upload_file_set
        uploads, ticket = self._uploads, object()
        uploads.sweep(known)
        body = _UploadBody(receive, uploads, known, scope["headers"])
        uploads.under_way[ticket] = time.time()
        try:
            await self._limited(scope, receive, send, body)
        finally:
            del uploads.under_way[ticket]
            uploads.sweep(known)

    async def _limited(self, scope: Scope, receive: Receive, send: Send, body: "_CallBody | _UploadBody") -> None:
        """Pass the request on until its body breaks a limit; the app's answer after that is not sent."""
        from starlette.requests import ClientDisconnect

        async def unless_refused(message: Message) -> None:
            if body.refused is None:
                await send(message)

        # A visitor who left gets no answer; a body that broke a limit looks to the app as if its sender had left.
        with contextlib.suppress(ClientDisconnect):
            await self._app(scope, body.receive, unless_refused)
        if body.refused is not None:
            await drained(receive)
            raise body.refused


def _kind(method: str, path: str) -> str:
    """Return the kind of the route; raises Refused for routes that the page never uses."""
    if method == "POST":
        if path in (UPLOAD, LOGIN):
            return "upload" if path == UPLOAD else "login"
        if path in CALLS or path.startswith(UNDER_CALLS):
            return "call"
    elif method in ("GET", "HEAD"):
        # Gradio would fetch any URL on request.
        if path.startswith(FILE) and not path[len(FILE) :].lstrip("/").lower().startswith(("http:", "https:")):
            return "private"
        if path in BEFORE_LOGIN or path.startswith(UNDER_BEFORE_LOGIN):
            return "open"
        if path in AFTER_LOGIN or path.startswith(UNDER_AFTER_LOGIN):
            return "private"
    raise Refused(404, "Not found.")


def _is_logged_in(scope: Scope) -> bool:
    gradio = scope["app"]
    return gradio.auth is None or any(gradio.tokens.get(token) for token in _tokens(scope))


def _tokens(scope: Scope) -> list[str | None]:
    """Return the session tokens in the caller's cookies, over https and without."""
    from starlette.requests import cookie_parser

    header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie").decode("latin-1")
    cookies, name = cookie_parser(header), scope["app"].cookie_id
    return [cookies.get(f"access-token-{name}"), cookies.get(f"access-token-unsecure-{name}")]


def _forget_read_answer(scope: Scope) -> None:
    """Drop the answer of a call once a program has read it; the page reads its session's answers elsewhere."""
    event = scope["path"].rstrip("/").rpartition("/")[2]
    if scope["method"] == "GET" and scope["path"].startswith(UNDER_CALLS) and EVENT.fullmatch(event):
        forget_answer(scope["app"].get_blocks(), event)


class _CallBody:
    """The body of a call, read up to its limit."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._num_bytes = receive, 0
        self.refused: Refused | None = None

    async def receive(self) -> Message:
        """Return the next message, or a disconnect once the limit is broken."""
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > MAX_CALL_BYTES:
            self.refused = Refused(413, f"A call may have at most {MAX_CALL_BYTES // MIB} MB.")
            return {"type": "http.disconnect"}
        return message


class _UploadBody:
    """The body of an upload, read up to the limits on its size, its files and the disk they take."""

    def __init__(
        self, receive: Receive, uploads: Uploads, known: Iterable[str], headers: Iterable[tuple[bytes, bytes]]
    ) -> None:
        self._receive, self._uploads, self._known = receive, uploads, known
        given = dict(headers)
        # A body that declares its size is refused before any of it is written.
        self._declared_bytes = int(given.get(b"content-length", b"0") or 0)
        self._mark = b"--" + given.get(b"content-type", b"").partition(b"boundary=")[2].strip(b'" ')
        self._num_bytes = self._num_marks = 0
        self._tail = b""
        self._over = False
        self.refused: Refused | None = None

    async def receive(self) -> Message:
        """Return the next message, or a disconnect once a limit is broken or nothing came for too long."""
        if self._over:
            return await self._receive()
        if self._num_bytes == 0:
            self.refused = self._broken_limit(0)
        if self.refused is not None:
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), self._uploads.silence_s)
        except TimeoutError:
            self.refused = Refused(408, f"No data arrived for {self._uploads.silence_s:g} s.")
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._over = not message.get("more_body", False)
            self._count(message.get("body", b""))
            self.refused = self._broken_limit(len(message.get("body", b"")))
        return {"type": "http.disconnect"} if self.refused else message

    def _count(self, chunk: bytes) -> None:
        self._num_bytes += len(chunk)
        joined = self._tail + chunk
        self._num_marks += joined.count(self._mark)
        # A boundary that is split by the chunk's end is counted with the next chunk; a whole one only once.
        self._tail = b"" if joined.endswith(self._mark) else joined[max(len(joined) - len(self._mark) + 1, 0) :]

    def _broken_limit(self, came_bytes: int) -> Refused | None:
        uploads, declared_bytes = self._uploads, max(self._declared_bytes, self._num_bytes)
        if declared_bytes > uploads.max_request_bytes + MIB:
            return Refused(413, f"One upload may have at most {uploads.max_request_bytes // MIB} MB.")
        if self._num_marks > uploads.max_files + 1:
            return Refused(413, f"One upload may have at most {uploads.max_files} files.")
        to_come_bytes = declared_bytes - self._num_bytes
        if not uploads.has_room(self._known, came_bytes, to_come_bytes, measure=self._num_bytes == 0):
            limit = f"Uploads may take {uploads.max_kept_bytes // MIB} MB of disk in total"
            return Refused(413, f"{limit}: wait until the current ones are processed.")
        return None
