"""Start the page: `python app.py [--host --port --share --auth]`."""

import argparse
import contextlib
import errno
import ipaddress
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.commands.parser import Parser
from dreambooth.durable import held_lock, is_locked
from dreambooth.entry_point import calling_on_signals, run_program
from dreambooth.environment import Settings, bypassing_proxies, keep_to_itself, load_settings
from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem, quoted
from dreambooth.records.drive import ready_drive, restore_photos
from dreambooth.records.workspace import Workspace, held_data_folder

MAX_FILE_SIZE = "1gb"
MAX_WAITING_EVENTS = 32
# Guesses take a second each per address, and an attacker may have many.
MIN_PASSWORD_CHARS = 8
ICON = Path(__file__).parent / "ui" / "icon.svg"


@dataclass(frozen=True)
class PageAccess:
    """Where the page is served and who may open it."""

    host: str
    port: int
    share: bool
    auth: tuple[str, str] | None
    made_password: bool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = Parser(
        prog="python app.py", description="The page: train Stable Diffusion on a subject from a few photos."
    )
    parser.add_argument("--host", help="Address to listen on (default 127.0.0.1: this machine only).")
    parser.add_argument("--port", type=int, help="Port (default 7860).")
    parser.add_argument(
        "--share", action="store_true", help="Open a public link, protected by a password, for up to a week."
    )
    parser.add_argument(
        "--auth",
        action="store_true",
        help="Require a password: the one in DREAMBOOTH_AUTH, or a generated one, which is printed.",
    )
    return parser.parse_args(argv)


def page_access(arguments: argparse.Namespace, settings: Settings) -> PageAccess:
    """Return how the page is opened; raises ConfigError for a public address without a password."""
    host = (arguments.host or settings.host).strip("[]")
    # A notebook's page can only be seen through a link.
    share = arguments.share or settings.on_colab
    auth = None if settings.auth is None else (settings.auth[0], settings.auth[1].reveal())
    problems = []
    if arguments.port is not None and not 1 <= arguments.port <= 65535:
        problems.append(FieldProblem("port", f"must be a number from 1 to 65535, not {arguments.port}."))
    made = auth is None and (arguments.auth or share)
    if made:
        auth = ("dreambooth", secrets.token_urlsafe(9))
    if auth is None and not is_local(host) and not settings.on_space:
        message = f"{host} can be reached from other machines: add --auth to require a password."
        problems.append(FieldProblem("host", message))
    if auth is not None and len(auth[1]) < MIN_PASSWORD_CHARS:
        short = f"is shorter than {MIN_PASSWORD_CHARS} characters"
        if share or settings.on_space or settings.names or not is_local(host):
            message = f"The password {short}, and others can reach this page: choose a longer one."
            problems.append(FieldProblem("DREAMBOOTH_AUTH", message))
        else:
            print(f"Note: The password in DREAMBOOTH_AUTH {short}.", file=sys.stderr)
    if problems:
        raise ConfigError(problems)
    return PageAccess(host, arguments.port or settings.port, share, auth, made)


def is_own(access: PageAccess, settings: Settings) -> bool:
    """Return whether only this machine's user can open the page; with a login, others are expected."""
    others = access.auth is not None or access.share or settings.on_space or settings.on_colab or settings.names
    return is_local(access.host) and not others


def is_local(host: str) -> bool:
    """Return whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def private_folder(workspace: Workspace) -> Iterator[Path]:
    """Yield a folder that only this process uses for uploads and copies; folders of killed processes are removed."""
    room = workspace.room("page")
    for old in room.iterdir():
        if old.is_dir() and not is_locked(old / "lock"):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=room))
    try:
        with held_lock(folder / "lock"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_port(host: str, port: int) -> None:
    """Raise DreamBoothError if that address cannot be listened on, before anything is built for it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: a port whose last connections are still closing counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(os.name != "nt"))
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "That port is taken by another program." if taken else f"{error.strerror or error}."
            # A low port needs privileges; other errors mean that the address is wrong.
            argument = "--port" if taken or error.errno == errno.EACCES else "--host"
            raise DreamBoothError(
                f"The page cannot be opened at {host}:{port}.", why, f"Choose another one with {argument}."
            ) from error


def launch_arguments(access: PageAccess, workspace: Workspace, settings: Settings, copies_dir: Path) -> dict[str, Any]:
    """Return the arguments of the one launch call; nothing is counted, stored in browsers or served unnecessarily."""
    import gradio as gr
    from starlette.middleware import Middleware

    from ui.access.connection import Resent
    from ui.access.delivery import Delivery
    from ui.access.login import Logins
    from ui.access.request_checks import RequestChecks, Uploads, known_hosts
    from ui.access.sessions import MAX_SESSIONS
    from ui.concepts.welcome import WELCOME_CSS
    from ui.theme import CSS, theme

    hosts = known_hosts(
        access.host, settings.names, share=access.share, on_space=settings.on_space, on_colab=settings.on_colab
    )
    logins = Logins(on_space=settings.on_space, behind_tunnel=access.share)
    rooms = ("runs", "datasets", "class_images", "models", "pictures")
    return {
        # An IPv6 address becomes part of a URL.
        "server_name": f"[{access.host}]" if ":" in access.host else access.host,
        "server_port": access.port,
        "share": access.share,
        "auth": access.auth,
        "auth_message": "The password was printed where the app was started." if access.made_password else None,
        "allowed_paths": [str(workspace.exports_dir)],
        "blocked_paths": [str(workspace.data_dir / room) for room in rooms],
        "max_file_size": MAX_FILE_SIZE,
        "app_kwargs": {
            "middleware": [
                Middleware(RequestChecks, hosts=hosts, uploads=Uploads(copies_dir), logins=logins),
                Middleware(Resent),
                Middleware(Delivery),
            ],
        },
        "strict_cors": True,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "num_workers": 0,
        "state_session_capacity": MAX_SESSIONS,
        # On its own machine the page can be installed as an app; a temporary link cannot.
        "pwa": is_local(access.host) and not (access.share or settings.on_space or settings.on_colab),
        "favicon_path": str(ICON),
        # What Gradio says to screen readers, and has no English text of.
        "i18n": gr.I18n(en={"common.complete": "Done"}),
        # Handlers' errors are shown anyway; Gradio's own problems are not.
        "show_error": False,
        "footer_links": ["api", "settings"],
        "theme": theme(),
        "css": CSS + WELCOME_CSS,
        "prevent_thread_lock": True,
        "quiet": True,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Open the page and serve it until told to end; a run that is training is then stopped and saved."""

    def run() -> int:
        arguments = parse_arguments(argv)
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        return serve(arguments, load_settings())

    return run_program(run)


def serve(arguments: argparse.Namespace, settings: Settings) -> int:
    """Build the page, launch it, and wait."""
    access = page_access(arguments, settings)
    workspace = Workspace(settings.data_dir, ready_drive(settings.drive_dir))
    # First of all: that a server is running says more than that its port is taken.
    with held_data_folder(workspace):
        restore_photos(workspace)
        check_port(access.host, access.port)
        return _serve_page(access, workspace, settings)


def _serve_page(access: PageAccess, workspace: Workspace, settings: Settings) -> int:
    from dreambooth.models.manager import ModelManager
    from dreambooth.runs.jobs import Jobs

    ending = threading.Event()
    with calling_on_signals(ending.set), private_folder(workspace) as copies_dir:
        keep_to_itself(copies_dir)
        # When imported, Gradio creates a client for files of other hosts, which the page never requests.
        with bypassing_proxies(["*"]):
            from ui.access.space import training_refusal
            from ui.build import build_page

        refusal = training_refusal(settings.space_id, has_login=access.auth is not None, zero_gpu=settings.zero_gpu)
        jobs = Jobs(workspace, ModelManager(), settings.hub_token)
        page = build_page(jobs, workspace, settings, copies_dir, refusal, takes_folders=is_own(access, settings))
        page.queue(max_size=MAX_WAITING_EVENTS)
        url, link = _launched(page, access, launch_arguments(access, workspace, settings, copies_dir))
        print("\n  The page is open at " + "\n  and at ".join(_addresses(access, settings, url, link)))
        if access.made_password and access.auth:
            print(f"  User {access.auth[0]}, password {access.auth[1]}")
        if refusal is not None:
            print(f"  {refusal}")
        kept_too = f", finished work in {workspace.drive_dir} too" if workspace.drive_dir else ""
        print(f"  Files are kept in {settings.data_dir}{kept_too}.")
        print("  Press Ctrl-C to stop the app; a running training is saved first.\n", flush=True)
        # A timeout, because on Windows a wait without one cannot be interrupted.
        while not ending.wait(1.0):
            pass
        if jobs.active():
            print("Stopping and saving the training. Press Ctrl-C again to quit at once.", flush=True)
        jobs.close()
        page.close(verbose=False)
    return 0


def _launched(page: Any, access: PageAccess, arguments: dict[str, Any]) -> tuple[str, str | None]:
    """Launch the page and return its own address and its public one.

    Gradio asks the page itself whether it is there: no proxy can know. For a public link it asks others too.
    """
    from httpx import HTTPError, InvalidURL

    own = ["localhost", "127.0.0.1", "::1", access.host]
    try:
        with bypassing_proxies(own if access.share else ["*"]):
            _, url, link = page.launch(**arguments)
    except (HTTPError, InvalidURL, ImportError, ValueError) as error:
        page.close(verbose=False)
        raise DreamBoothError(
            f"The page at {access.host}:{access.port} does not answer this machine itself.", quoted(error),
            "Look at the proxies of the environment, such as ALL_PROXY, or choose another --host.",
        ) from None  # fmt: skip
    return url, link


def _addresses(access: PageAccess, settings: Settings, url: str, link: str | None) -> list[str]:
    """Return where the page can be opened; raises DreamBoothError for a notebook's without a public link."""
    if not settings.on_colab:
        shown = f"http://[::1]:{access.port}/" if access.host == "::" else url
        return [shown, *([link] if link else [])]
    if link is None:
        raise DreamBoothError(
            "No public link could be made.", "A notebook's page can be opened through one only.",
            "Run this again later, or use the cells that need no page.",
        )  # fmt: skip
    return [link]


if __name__ == "__main__":
    sys.exit(main())
