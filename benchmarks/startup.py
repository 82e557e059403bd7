"""How long it takes until something is there, as ratios to the least that it could take, by turns in one run.

    python -m benchmarks.startup [--rounds 5]

The page against a bare Gradio page, each from the start of its process to its first answer; `--help` against a process
that imports the command line's argument parser and builds it.
"""

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from benchmarks.measuring import heading, keep

BARE = """
import sys, gradio
with gradio.Blocks() as page:
    gradio.Textbox()
page.launch(server_port=int(sys.argv[1]), server_name="127.0.0.1", quiet=True)
"""
PARSER = "from dreambooth.commands.cli import build_parser; build_parser()"
TIMEOUT_S = 300


def main() -> None:
    """Measure by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        pages = {
            "a bare Gradio page answers": [sys.executable, "-c", BARE, "PORT"],
            "our page answers": [sys.executable, str(root / "app.py"), "--port", "PORT"],
        }
        commands = {
            "the parser is imported and built": [sys.executable, "-c", PARSER],
            "--help is printed": [sys.executable, "-m", "dreambooth", "--help"],
            "train --help is printed": [sys.executable, "-m", "dreambooth", "train", "--help"],
        }
        for _ in range(arguments.rounds):
            for what, command in pages.items():
                found.setdefault(what, []).append(seconds_to_answer(command, Path(name)))
            for what, command in commands.items():
                found.setdefault(what, []).append(seconds_to_end(command))
            print({what: round(seconds[-1], 2) for what, seconds in found.items()}, file=sys.stderr, flush=True)
    print(heading(), table(found), sep="\n\n")
    keep("startup", found)


def seconds_to_answer(command: list[str], home: Path) -> float:
    """Return how long a server takes from the start of its process to its first answer; it is then ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"DREAMBOOTH_HOME": str(home), "GRADIO_ANALYTICS_ENABLED": "False"}
    began_s = time.perf_counter()
    server = subprocess.Popen(
        [part.replace("PORT", str(port)) for part in command],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while time.perf_counter() - began_s < TIMEOUT_S:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30).read()
                return time.perf_counter() - began_s
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.02)
        raise RuntimeError(f"no answer from {command}")
    finally:
        server.terminate()
        server.wait()


def seconds_to_end(command: list[str]) -> float:
    """Return how long a command takes."""
    began_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def table(found: dict[str, list[float]]) -> str:
    """Return medians as Markdown, and each as a ratio to the first of its kind."""
    first = list(found)[0], list(found)[2]
    lines = ["| | seconds | least to most | ratio |", "|---|---|---|---|"]
    for number, (what, seconds) in enumerate(found.items()):
        middle = statistics.median(seconds)
        ratio = middle / statistics.median(found[first[0] if number < 2 else first[1]])
        lines.append(f"| {what} | {middle:.2f} | {min(seconds):.2f} to {max(seconds):.2f} | {ratio:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
