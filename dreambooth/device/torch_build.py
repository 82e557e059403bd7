"""Which build of torch is installed, and the line that installs the one for this machine's card; torch is not imported.

PyPI has CUDA builds for Linux only: on Windows `pip install torch` installs a CPU build, card or not.
"""

import functools
import importlib.util
import os
import re
import shlex
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


@functools.cache
def is_cpu_build() -> bool:
    """Return whether the installed torch is a CPU build, according to its own `version.py`; False without it."""
    spec = importlib.util.find_spec("torch")
    source = None if spec is None or spec.origin is None else Path(spec.origin).with_name("version.py")
    if source is None or not source.is_file():
        return False
    found = dict(re.findall(r"^(cuda|hip)\b[^=\n]*=\s*(\S+)", source.read_text("utf-8"), re.MULTILINE))
    return found.get("cuda") == "None" and found.get("hip", "None") == "None"


def install_line() -> str:
    """Return the line, for PowerShell and for POSIX shells, that replaces torch by the build for this driver.

    uv asks the NVIDIA driver and uses PyTorch's index for it. Without --reinstall-package a CPU build of the same
    version counts as installed.
    """
    python = _as_typed(Path(sys.executable))
    constraints = _as_typed(PROJECT / "constraints.txt")
    install = "-m uv pip install --torch-backend=auto --reinstall-package torch torch -c"
    return f"{python} -m pip install -q uv; {python} {install} {constraints}"


def _as_typed(path: Path) -> str:
    """Return a path as typed in a shell here: relative if it is below the current folder, quoted if necessary."""
    here = Path.cwd()
    shown = str(path.relative_to(here) if path.is_relative_to(here) else path)
    if os.name != "nt":
        return shlex.quote(shown)
    return shown if " " not in shown else f"& '{shown}'" if path.suffix == ".exe" else f"'{shown}'"
