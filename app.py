"""Start the page: `python app.py [--host --port --share --auth]`."""

import argparse
import errno
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth.errors import ConfigError, DreamBoothError, FieldProblem
from dreambooth.settings import Settings, load_settings

MAX_FILE_SIZE = "1gb"
MAX_WAITING_EVENTS = 32


@dataclass(frozen=True)
class Door:
    """Where the page is opened and who may come in."""

    host: str
    port: int
    share: bool
    auth: tuple[str, str] | None
    made_password: bool


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description="The page: teach Stable Diffusion a subject from a few photos.")
    parser.add_argument("--host", help="Address to listen on (default 127.0.0.1: this machine only).")
    parser.add_argument("--port", type=int, help="Port (default 7860).")
    parser.add_argument("--share", action="store_true", help="Open a public link for up to a week, behind a password.")
    parser.add_argument(
        "--auth", action="store_true", help="Ask for a password: DREAMBOOTH_AUTH, else one is made and printed."
    )
    return parser.parse_args(argv)


def door(arguments: argparse.Namespace, settings: Settings) -> Door:
    """Return how the page is opened; raises ConfigError for a public address without a password."""
    host = arguments.host or settings.host
    # A notebook's page can only be seen through a link.
    share = arguments.share or settings.on_colab
    auth = None if settings.auth is None else (settings.auth[0], settings.auth[1].reveal())
    made = auth is None and (arguments.auth or share)
    if made:
        auth = ("dreambooth", secrets.token_urlsafe(9))
    if auth is None and not is_local(host) and not settings.on_space:
        message = f"{host} can be reached from other machines: add --auth, so that a password is asked for."
        raise ConfigError([FieldProblem("host", message)])
    return Door(host, arguments.port or settings.port, share, auth, made)


def is_local(host: str) -> bool:
    """Return whether only this machine can reach that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_port(host: str, port: int) -> None:
    """Raise DreamBoothError when that address cannot be listened on, before anything is built for it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As servers do: a port whose last connections are still fading counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(os.name != "nt"))
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            why = "That port is taken by another program." if taken else f"{error.strerror or error}."
            raise DreamBoothError(
                f"The page cannot be opened at {host}:{port}.", why, "Choose another one with --port."
            ) from error


def launch_arguments(opened: Door, exports_dir: Path, runs_dir: Path) -> dict[str, Any]:
    """Return what the one launch call is given; nothing is counted, kept in browsers or served that need not be."""
    from ui.theme import CSS, theme

    return {
        "server_name": opened.host,
        "server_port": opened.port,
        "share": opened.share,
        "auth": opened.auth,
        "auth_message": "The password was printed where the app was started." if opened.made_password else None,
        "allowed_paths": [str(exports_dir)],
        "blocked_paths": [str(runs_dir)],
        "max_file_size": MAX_FILE_SIZE,
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "show_error": True,
        "footer_links": ["api", "settings"],
        "theme": theme(),
        "css": CSS,
        "prevent_thread_lock": True,
        "quiet": True,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Open the page and keep it until told to end; a run that trains is then stopped and saved."""
    arguments = parse_arguments(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        return serve(arguments, load_settings())
    except DreamBoothError as error:
        print("\n".join(part for part in (f"error: {error.what}", error.why, error.todo) if part), file=sys.stderr)
        return 1


def serve(arguments: argparse.Namespace, settings: Settings) -> int:
    """Build the page, launch it, and wait."""
    opened = door(arguments, settings)
    check_port(opened.host, opened.port)
    from dreambooth.jobs import Jobs
    from dreambooth.models.manager import ModelManager
    from dreambooth.workspace import Workspace
    from ui.build import build_page

    workspace = Workspace(settings.data_dir)
    jobs = Jobs(workspace, ModelManager(), settings.token.reveal() if settings.token else None)
    ending = _ending()
    with tempfile.TemporaryDirectory(prefix="dreambooth-page-") as copies_dir:
        page = build_page(jobs, workspace, settings, Path(copies_dir))
        page.queue(max_size=MAX_WAITING_EVENTS)
        _, url, link = page.launch(**launch_arguments(opened, workspace.exports_dir, workspace.runs_dir))
        print(f"\n  The page is open at {url}" + (f"\n  and at {link}" if link else ""))
        if opened.made_password and opened.auth:
            print(f"  User {opened.auth[0]}, password {opened.auth[1]}")
        print(f"  Files are kept in {settings.data_dir}.")
        print("  Ctrl-C ends the app; a running training is saved first.\n", flush=True)
        # A timeout, because on Windows a wait without one cannot be interrupted.
        while not ending.wait(1.0):
            pass
        if jobs.active():
            print("Stopping the run that trains and saving it. Once more to leave at once.", flush=True)
        jobs.close()
        page.close(verbose=False)
    return 0


def _ending() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set; the second time they end the process at once."""
    ending = threading.Event()

    def end(number: int, frame: object) -> None:
        ending.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    return ending


if __name__ == "__main__":
    sys.exit(main())
