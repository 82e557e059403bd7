"""Convert one diffusers folder with ours and with other converters, each in a process of its own, by turns.

    python -m benchmarks.conversion MODEL_DIR [--peer NAME=SCRIPT ...] [--rounds 3] [--suffix .ckpt] [--json FILE]

A peer is a script with the seed's arguments: --model_path, --checkpoint_path, --use_safetensors, --half. Ours includes
its check: the file is read again and compared tensor by tensor. Memory is the largest that was
seen: all pages, and those that belong to no file (which is what a small machine has to have).
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measuring import watched

SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Measured:
    """One conversion: who did it, to what, how long it took and what it held in memory, in bytes."""

    who: str
    suffix: str
    half: bool
    seconds: float
    peak_bytes: int
    peak_own_bytes: int
    file_bytes: int
    failed: str = ""


def main() -> None:
    """Measure by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--suffix", choices=SUFFIXES, action="append", help="only this format; both if not given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    converters = {"ours": [sys.executable, "-m", "dreambooth", "convert"]}
    converters |= {name: [sys.executable, script] for name, _, script in (one.partition("=") for one in arguments.peer)}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.rounds):
            for suffix in arguments.suffix or SUFFIXES:
                for half in (True, False):
                    for who, command in converters.items():
                        found.append(measured(who, command, arguments.model_dir, Path(folder), suffix, half))
                        print(found[-1], file=sys.stderr, flush=True)
    print(table(found))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n", "utf-8")


def measured(who: str, command: list[str], model_dir: Path, folder: Path, suffix: str, half: bool) -> Measured:
    """Run one conversion and watch its memory."""
    out = folder / f"model{suffix}"
    out.unlink(missing_ok=True)
    # What the last one wrote must not be written back on this one's time.
    os.sync()
    asked = ["--model_path", str(model_dir), "--checkpoint_path", str(out)]
    asked += ["--half"] * half + ["--use_safetensors"] * (suffix == ".safetensors")
    began_s = time.monotonic()
    done = watched([*command, *asked])
    # A file is there for others when it is on the disk: ours is already, the others' is waited for.
    os.sync()
    seconds = time.monotonic() - began_s
    told = done.output.strip().splitlines()[-1:] if done.status else []
    size = out.stat().st_size if out.exists() else 0
    return Measured(who, suffix, half, seconds, done.peak_bytes, done.peak_own_bytes, size, " ".join(told)[:200])


def table(found: list[Measured]) -> str:
    """Return the medians as Markdown."""
    lines = ["| written | by | seconds | memory | of it not pages of files | size |", "|---|---|---|---|---|---|"]
    for suffix, half, who in sorted({(one.suffix, one.half, one.who) for one in found}, reverse=True):
        same = [one for one in found if (one.suffix, one.half, one.who) == (suffix, half, who)]
        what = f"{suffix} {'fp16' if half else 'as it is'}"
        if same[0].failed:
            lines.append(f"| {what} | {who} | failed: {same[0].failed} | | | |")
            continue
        seconds = [one.seconds for one in same]
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        peak, own = max(one.peak_bytes for one in same) / 1e9, max(one.peak_own_bytes for one in same) / 1e9
        lines.append(
            f"| {what} | {who} | {spread} | {peak:.1f} GB | {own:.2f} GB | {same[0].file_bytes / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
