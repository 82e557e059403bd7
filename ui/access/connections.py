"""Limits on the number of connections, and on how long each may keep the server waiting.

Gradio starts uvicorn without limits: a thousand visitors who each send half a header use up the files that this process
may open, and a training in the same process can then write nothing. Gradio accepts no custom server, so its class is
replaced while it launches.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Any

import h11
from gradio import http_server
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

# Open files allowed: most systems permit more than a shell's default of 1,024.
WANTED_FILES = 8192
MAX_CONNECTIONS = 1000
# This many are accepted at once, before the first of them can be counted.
BACKLOG = 128
CHECK_S = 2.0
HEADER_S = 20.0
# A body gets this much time, plus what it would take at this pace.
BODY_S = 30.0
BODY_BYTES_PER_S = 2048
# A body that stopped arriving for this long makes room for others if there is none.
SILENT_BODY_S = 5.0
# For a visitor who reads nothing of an answer: a paused download may rest for a while.
UNREAD_S = 300.0
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 38\r\n\r\n"
    b"Too many connections; try again later."
)
TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
LOG_INTERVAL_S, LOG_LINES = 60.0, 5


def allow_more_files() -> int:
    """Raise the number of files that this process may have open as far as is useful, and return it."""
    try:
        import resource
    except ImportError:  # Windows, whose sockets do not count among its files
        return WANTED_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_FILES if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # a system may allow less than it says
        return soft
    return wanted


def most_connections(num_files: int) -> int:
    """Return how many connections leave enough open files to trainings, uploads and downloads."""
    return max(min(MAX_CONNECTIONS, num_files // 2), 8)


@contextlib.contextmanager
def bounded_server() -> Iterator[None]:
    """Have servers that Gradio launches in this block apply the limits of this module."""
    allowed = most_connections(allow_more_files())

    class BoundedServer(http_server.Server):
        def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
            config.http, config.ws, config.backlog = BoundedProtocol, "none", BACKLOG
            config.limit_concurrency = allowed
            # A proxy's address for the visitor is trusted only where the login decides so.
            config.proxy_headers = False
            super().__init__(config, *args, **kwargs)

    for name in ("asyncio", "uvicorn.error"):
        logger = logging.getLogger(name)
        if not any(isinstance(one, RateLimit) for one in logger.filters):
            logger.addFilter(RateLimit())
    original = http_server.Server
    http_server.Server = BoundedServer  # type: ignore[misc]
    try:
        yield
    finally:
        http_server.Server = original  # type: ignore[misc]


class BoundedProtocol(H11Protocol):
    """One connection: closed if its request does not arrive, if its answer is not read, and if it is one too many.

    `limit_concurrency` is the maximum that may be open. At the maximum, the one that has waited longest for a request
    makes room, else one whose body has stopped arriving; if all of them are being answered, the new one is refused.
    """

    _check: asyncio.TimerHandle | None = None
    _began_s = 0.0  # when the request that is coming in, or the wait for it, began
    _paused_s = 0.0  # how long the app did not read meanwhile
    _body_bytes, _heard_s = 0, 0.0
    _unread_bytes, _unread_since_s = 0, 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it if there are too many."""
        limit, self.limit_concurrency = self.limit_concurrency, None
        self._began_s = self._heard_s = time.monotonic()
        if limit is not None and len(self.connections) >= limit and not self._makes_room():
            self.transport, self.flow = transport, None  # type: ignore[assignment]
            transport.write(UNAVAILABLE)
            transport.close()
            return
        super().connection_made(transport)
        self._check = self.loop.call_later(CHECK_S, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._check is not None:
            self._check.cancel()
        if self.flow is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take received data, and record how much of a body it was."""
        if self.flow is None:
            return
        self._heard_s = time.monotonic()
        if self.conn.their_state is h11.SEND_BODY:
            self._body_bytes += len(data)
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Start waiting for the next request."""
        self._began_s, self._paused_s, self._body_bytes = time.monotonic(), 0.0, 0
        super().on_response_complete()

    def is_waiting(self) -> bool:
        """Return whether no complete header of an unanswered request has arrived."""
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def is_silent(self) -> bool:
        """Return whether the body of a request has stopped arriving, though the app would take more of it."""
        is_late = time.monotonic() - self._heard_s > SILENT_BODY_S
        return is_late and self.conn.their_state is h11.SEND_BODY and not self.flow.read_paused

    def _makes_room(self) -> bool:
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        waiting = [one for one in others if one.is_waiting()] or [one for one in others if one.is_silent()]
        if not waiting:
            return False
        oldest = min(waiting, key=lambda one: one._began_s)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def _check_progress(self) -> None:
        """Close the connection if its sender, or its reader, has taken too long."""
        now_s = time.monotonic()
        if self.flow.read_paused:
            self._paused_s += CHECK_S
        waited_s = now_s - self._began_s - self._paused_s
        if self.is_waiting() and waited_s > HEADER_S:
            # A browser may keep a connection ready without sending anything: it is closed without an answer.
            self._end(TIMED_OUT if self.conn.trailing_data[0] else b"")
        elif self.conn.their_state is h11.SEND_BODY and waited_s > self._body_time_s():
            self._end(b"" if self.cycle.response_started else TIMED_OUT)
        elif self._is_unread(now_s):
            self._end(b"")
        else:
            self._check = self.loop.call_later(CHECK_S, self._check_progress)

    def _body_time_s(self) -> float:
        """Return how long the arriving request may take; what arrives after its answer is useless."""
        if self.cycle.response_complete:
            return HEADER_S
        return HEADER_S + BODY_S + self._body_bytes / BODY_BYTES_PER_S

    def _is_unread(self, now_s: float) -> bool:
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes != self._unread_bytes or not unread_bytes:
            self._unread_bytes, self._unread_since_s = unread_bytes, now_s
        return unread_bytes > 0 and now_s - self._unread_since_s > UNREAD_S

    def _end(self, answer: bytes) -> None:
        if answer:
            self.transport.write(answer)
            self.transport.close()
        else:
            self.transport.abort()


class RateLimit(logging.Filter):
    """Passes few messages of a kind per minute: what any visitor can cause must not fill a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether this one is written."""
        error = record.exc_info[1] if record.exc_info else None
        now_s, kind = time.monotonic(), f"{type(error).__name__} {record.msg}"[:60]
        recent = [then_s for then_s in self._passed.get(kind, []) if now_s - then_s < LOG_INTERVAL_S]
        if len(self._passed) > 100:
            self._passed.clear()
        if len(recent) >= LOG_LINES:
            return False
        self._passed[kind] = [*recent, now_s]
        return True
