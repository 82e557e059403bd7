"""What every table says of where its figures come from, and processes whose memory is watched."""

import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

POLL_S = 0.02
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Watched:
    """A finished process: its status, time, largest memory (all pages; those of no file), and what it printed."""

    status: int
    seconds: float
    peak_bytes: int
    peak_own_bytes: int
    output: str


def watched(command: Sequence[str], environment: dict[str, str] | None = None, leave_bytes: int = 0) -> Watched:
    """Run a command to its end and watch its memory; it is killed where the machine has less than `leave_bytes`."""
    began_s = time.monotonic()
    peak = own = 0
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output, stderr=output, env=os.environ | (environment or {}))
        while child.poll() is None:
            all_bytes, own_bytes = memory_of(child.pid)
            peak, own = max(peak, all_bytes), max(own, own_bytes)
            if psutil.virtual_memory().available < leave_bytes:
                child.kill()
            time.sleep(POLL_S)
        output.seek(0)
        return Watched(child.returncode, time.monotonic() - began_s, peak, own, output.read())


def memory_of(pid: int) -> tuple[int, int]:
    """Return the resident bytes of a process and all that it started, and those of them that are no pages of files.

    Pages of files that several of them have are counted for each.
    """
    told = [status_of(one) for one in _family(pid)]
    return sum(one.get("VmRSS", 0) for one in told), sum(one.get("RssAnon", 0) for one in told)


def _family(pid: int) -> list[int]:
    """Return a process and all that it, or what it started, started; what ends meanwhile is left out."""
    found = [pid]
    for one in found:
        for thread in Path(f"/proc/{one}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += map(int, thread.read_text().split())
    return found


def status_of(pid: int) -> dict[str, int]:
    """Return the sizes that Linux keeps of a process, in bytes; nothing when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith(" kB"))
    return {name: 1024 * int(value.split()[0]) for name, value in pairs}


def told(output: str, marker: str) -> dict[str, Any]:
    """Return the JSON object of the last line that begins with this marker; raises RuntimeError without one."""
    lines = [line for line in output.splitlines() if line.startswith(marker)]
    if not lines:
        raise RuntimeError(f"no line {marker!r} in:\n{output[-2000:]}")
    values: dict[str, Any] = json.loads(lines[-1][len(marker) :])
    return values


def random_pictures(folder: Path, count: int, side_px: int) -> Path:
    """Fill a new folder with pictures of coloured clouds, and return it."""
    import numpy
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        values = numpy.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype="uint8")
        picture = Image.fromarray(values).resize((side_px, side_px), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")
    return folder


def circumstances() -> dict[str, str]:
    """Return machine, versions, date and command of this run."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), platform.processor()
    )
    packages = ("torch", "diffusers", "transformers", "accelerate", "bitsandbytes", "gradio")
    words = [f"benchmarks.{Path(sys.argv[0]).stem}", *map(_without_folders, sys.argv[1:])]
    return {
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores, {psutil.virtual_memory().total / 2**30:.0f} GiB",
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]
        ),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": " ".join(["python -m", *words]),
    }


def _without_folders(argument: str) -> str:
    """Return an argument with the names of its files alone: where they lie here says nothing to anybody."""
    name, equals, value = argument.rpartition("=")
    return name + equals + (Path(value).name if os.path.isabs(value) else value)


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def keep(name: str, values: Any) -> None:
    """Write a benchmark's figures with their circumstances into `benchmarks/results`."""
    text = json.dumps({"circumstances": circumstances(), "found": values}, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")


def heading() -> str:
    """Return the circumstances as the lines above a table."""
    about = circumstances()
    return f"`{about['command']}`, {about['date']}; {about['machine']}; {about['versions']}."
