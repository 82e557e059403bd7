"""A Hub of one repository on this machine, which can be made to stop in the middle of a file."""

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE_BYTES = 1_000


class LocalHub:
    """Serves a folder as `somebody/tiny`; `hold_after_bytes` makes it send no more once that many went out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hold_after_bytes: int | None = None
        self.held = threading.Event()
        self.sent_bytes = 0
        self.asked_paths: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, with_body=False)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        """Answer one request as the Hub does."""
        path = unquote(urlsplit(request.path).path)
        self.asked_paths.append(path)
        if self.refused(request, path):
            return
        names = sorted(str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file())
        if path.startswith("/api/models/somebody/tiny/tree/"):
            body = json.dumps([self.entry(name) for name in names]).encode()
            self.send(request, body, {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/api/models/somebody/tiny"):
            files = [{"rfilename": name} for name in names]
            body = json.dumps({"id": "somebody/tiny", "sha": COMMIT, "siblings": files, "private": False}).encode()
            self.send(request, body, {"Content-Type": "application/json"}, with_body)
        elif path.startswith("/somebody/tiny/resolve/") and (name := path.split("/", 5)[5]) in names:
            body = (self.folder / name).read_bytes()
            etag = hashlib.sha256(body).hexdigest()
            self.send(request, body, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, with_body)
        else:
            self.refuse(request, 404, {"X-Error-Code": "EntryNotFound"})

    def refused(self, request: BaseHTTPRequestHandler, path: str) -> bool:
        """Answer what the Hub refuses, as it does: an unknown token, a gated model, and one that is not there."""
        if request.headers.get("Authorization") == "Bearer hf_unknown":
            self.refuse(request, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif "/somebody/gated" in path:
            self.refuse(request, 403, {"X-Error-Code": "GatedRepo"})
        elif "/somebody/tiny" not in path:
            # One answer for what is missing and for what is private.
            self.refuse(request, 401, {"X-Error-Code": "RepoNotFound"})
        else:
            return False
        return True

    def refuse(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        """Send a refusal without a body."""
        request.send_response(status)
        for name, value in (headers | {"Content-Length": "0"}).items():
            request.send_header(name, value)
        request.end_headers()

    def entry(self, name: str) -> dict[str, Any]:
        """Return how a listing tells of a file."""
        body = (self.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha256(body).hexdigest()}

    def send(self, request: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        """Send a body, the part of it that a `Range` asks for."""
        wanted, status = request.headers.get("Range"), 200
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body, status = body[start:], 206
        request.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            request.send_header(name, value)
        request.end_headers()
        for start in range(0, len(body) if with_body else 0, PIECE_BYTES):
            if self.hold_after_bytes is not None and self.sent_bytes >= self.hold_after_bytes:
                self.held.set()
                # The client dies meanwhile; what it asked for is of no use to anyone.
                request.close_connection = True
                threading.Event().wait(30)
                return
            # A client that was killed has closed its end.
            with contextlib.suppress(OSError):
                request.wfile.write(body[start : start + PIECE_BYTES])
                request.wfile.flush()
            self.sent_bytes += len(body[start : start + PIECE_BYTES])


@contextlib.contextmanager
def local_hub(folder: Path) -> Iterator[LocalHub]:
    """Run the Hub of this folder in a thread."""
    hub = LocalHub(folder)
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


def environment_of(address: str, cache: Path, *, offline: bool = False) -> dict[str, str]:
    """Return the environment of a process that asks this Hub, with a cache of its own."""
    return os.environ | {
        "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
