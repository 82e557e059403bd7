"""A stand-in of the Hub's API that takes uploads, for huggingface_hub's own client: accounts, repositories, commits."""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKENS = {"hf_of_ann_and_may_write": ("ann", True), "hf_of_ann_and_may_read": ("ann", False)}
LICENCES = ("apache-2.0", "mit", "creativeml-openrail-m", "openrail++", "other")


@dataclass
class Repository:
    """What the Hub keeps of a repository: its files, who sees it, and how many commits it had."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    commits: int = 1
    # Answered to whoever commits, in place of the commit, and what is said to it.
    refuse_with: int = 0
    refusal: str = "The stand-in was told to refuse"
    is_gated: bool = False

    @property
    def sha(self) -> str:
        """Return the name of its last commit."""
        return f"{self.commits:040x}"


class HubStandIn:
    """The Hub with its accounts and repositories, over HTTP on this machine."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.renamed: dict[str, str] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        # Answered to whoever puts a large file there.
        self.storage_status = 200
        # Done whenever a large file came.
        self.on_stored: Callable[[], None] = lambda: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self, "GET")

            def do_HEAD(self) -> None:
                hub.answer(self, "HEAD")

            def do_POST(self) -> None:
                hub.answer(self, "POST")

            def do_PUT(self) -> None:
                hub.answer(self, "PUT")

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    # One request ----------------------------------------------------------------------------------------------------

    def answer(self, request: BaseHTTPRequestHandler, method: str) -> None:
        """Answer one request as the Hub does."""
        path = unquote(urlsplit(request.path).path)
        self.requests.append(f"{method} {path}")
        body = read_body(request)
        account = TOKENS.get(request.headers.get("Authorization", "").removeprefix("Bearer "))
        if path.startswith("/stored/"):
            if self.storage_status == 200:
                self.stored[path.removeprefix("/stored/")] = body
                self.on_stored()
            return send(request, self.storage_status)
        if "Authorization" in request.headers and account is None:
            return send(request, 401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        if path == "/api/whoami-v2":
            role = {"accessToken": {"role": "write" if account and account[1] else "read"}}
            return send(request, 200, {"name": account[0], "type": "user", "auth": role} if account else {})
        if path == "/api/validate-yaml":
            return validate_card(request, json.loads(body)["content"])
        if path == "/api/repos/create":
            return self.create(request, json.loads(body), account)
        return self.of_repository(request, path, body, account)

    def create(self, request: BaseHTTPRequestHandler, asked: dict[str, Any], account: tuple[str, bool] | None) -> None:
        """Make a repository in the account's own namespace."""
        owner = asked.get("organization") or (account[0] if account else "")
        if account is None or not account[1] or owner != account[0]:
            return send(request, 403, {"error": "You don't have the rights to create a model under this namespace"})
        full_id = f"{owner}/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.repositories[full_id] = Repository({".gitattributes": b"*.safetensors filter=lfs"}, private)
        return send(request, 200, {"url": f"{self.address}/{full_id}", "name": full_id})

    def of_repository(
        self, request: BaseHTTPRequestHandler, path: str, body: bytes, account: tuple[str, bool] | None
    ) -> None:
        """Answer what is asked of one repository; one that cannot be seen is not there."""
        parts = path.removeprefix("/api/models/").strip("/").split("/")
        full_id = "/".join(parts[:2]).removesuffix(".git")
        if full_id in self.renamed:
            return send(request, 307, headers={"Location": path.replace(full_id, self.renamed[full_id])})
        found = self.repositories.get(full_id)
        if found is not None and found.is_gated:
            return send(request, 403, headers={"X-Error-Code": "GatedRepo"})
        if found is None or (found.private and (account is None or account[0] != full_id.split("/")[0])):
            return send(
                request, 404, headers={"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        writes = path.endswith(".git/info/lfs/objects/batch") or "/preupload/" in path or "/commit/" in path
        if writes and (account is None or not account[1] or account[0] != full_id.split("/")[0]):
            return send(request, 403, {"error": "Forbidden: pass a token with write access"})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self.batch(request, full_id, json.loads(body))
        if path.endswith(".git/info/lfs/objects/verify"):
            return send(request, 200 if json.loads(body)["oid"] in self.stored else 404)
        if "/preupload/" in path:
            return send(request, 200, {"files": [upload_mode(one, found) for one in json.loads(body)["files"]]})
        if "/commit/" in path:
            return self.commit(request, full_id, body)
        if "/tree/" in path:
            return send(request, 200, [entry(name, data) for name, data in sorted(found.files.items())])
        if path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in sorted(found.files)]
            return send(request, 200, {"id": full_id, "sha": found.sha, "private": found.private, "siblings": siblings})
        return self.resolve(request, found, "/".join(path.strip("/").split("/")[4:]))

    def batch(self, request: BaseHTTPRequestHandler, full_id: str, asked: dict[str, Any]) -> None:
        """Say where each large file is to be put, of those that are not there yet."""
        verify = {"href": f"{self.address}/{full_id}.git/info/lfs/objects/verify"}
        objects = [
            one
            if one["oid"] in self.stored
            else one | {"actions": {"upload": {"href": f"{self.address}/stored/{one['oid']}"}, "verify": verify}}
            for one in asked["objects"]
        ]
        send(request, 200, {"transfer": "basic", "objects": objects})

    def commit(self, request: BaseHTTPRequestHandler, full_id: str, body: bytes) -> None:
        """Carry out all operations, or none."""
        repository = self.repositories[full_id]
        if repository.refuse_with:
            return send(request, repository.refuse_with, {"error": repository.refusal})
        files = dict(repository.files)
        for operation in (json.loads(line) for line in body.splitlines()):
            value = operation["value"]
            if operation["key"] == "header" and value.get("parentCommit", repository.sha) != repository.sha:
                return send(request, 412, {"error": "A commit has happened since. Please refresh and try again."})
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                data = self.stored[value["oid"]]
                assert hashlib.sha256(data).hexdigest() == value["oid"]
                assert len(data) == value["size"]
                files[value["path"]] = data
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        repository.files, repository.commits = files, repository.commits + 1
        url = f"{self.address}/{full_id}/commit/{repository.sha}"
        return send(request, 200, {"commitUrl": url, "commitOid": repository.sha})

    def resolve(self, request: BaseHTTPRequestHandler, repository: Repository, name: str) -> None:
        """Send a file."""
        data = repository.files.get(name)
        if data is None:
            return send(request, 404, headers={"X-Error-Code": "EntryNotFound"})
        etag = hashlib.sha256(data).hexdigest()
        return send(request, 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha})


def validate_card(request: BaseHTTPRequestHandler, card: str) -> None:
    """Refuse a page whose front matter is no YAML, or has a licence that is none of the Hub's."""
    try:
        matter = yaml.safe_load(card.split("---")[1])
        errors = [] if matter["license"] in LICENCES else ['"license" must be one of those there are']
    except yaml.YAMLError as error:
        errors = [str(error)]
    send(request, 400 if errors else 200, {"errors": [{"message": one} for one in errors], "warnings": []})


def is_large(name: str) -> bool:
    """Return whether a file is sent apart, as weights and pictures are, or in the commit."""
    return name.endswith((".safetensors", ".png"))


def upload_mode(asked: dict[str, Any], found: Repository) -> dict[str, Any]:
    """Return how a file is to be sent, and the name of the content that is there."""
    name = asked["path"]
    mode = {"path": name, "uploadMode": "lfs" if is_large(name) else "regular", "shouldIgnore": False}
    return mode | ({"oid": oid(name, found.files[name])} if name in found.files else {})


def oid(name: str, data: bytes) -> str:
    """Return the name that git gives this content."""
    if is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entry(name: str, data: bytes) -> dict[str, Any]:
    """Return how a listing tells of a file."""
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha256(data).hexdigest()}


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """Return what came with a request, in one piece or in chunks."""
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    pieces = []
    while size := int(request.rfile.readline().strip(), 16):
        pieces.append(request.rfile.read(size))
        request.rfile.readline()
    request.rfile.readline()
    return b"".join(pieces)


def send(
    request: BaseHTTPRequestHandler, status: int, content: object = b"", headers: dict[str, str] | None = None
) -> None:
    """Send an answer, JSON unless it is bytes."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    request.send_response(status)
    kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
    for name, value in ({"Content-Type": kind, "Content-Length": str(len(body))} | (headers or {})).items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        # A client that has gone takes no answer.
        with contextlib.suppress(OSError):
            request.wfile.write(body)


@contextlib.contextmanager
def hub_stand_in() -> Iterator[HubStandIn]:
    """Run a Hub in a thread."""
    hub = HubStandIn()
    thread = threading.Thread(target=hub.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
