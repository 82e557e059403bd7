"""A benchmark as independent units: each writes one file, any number of processes share them, and what is there stays.

A unit is a list of words, and its result a small file in `benchmarks/results/units`, so that hours of them can be
spread over days and machines; photos, runs and logs stay in `--work`. Its process is the benchmark's own with
`--unit WORD ...`; a killed one leaves no file, and the same command goes on with what is missing.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measuring import RESULTS

Unit = tuple[str, ...]


def add_unit_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Add what every benchmark of units takes."""
    parser.add_argument("--work", type=Path, default=Path("outputs") / name, help="Where photos, runs and logs are.")
    parser.add_argument("--units", type=Path, default=RESULTS / "units" / name, help="Where results of units are kept.")
    parser.add_argument("--workers", type=int, default=1, help="Units at a time, each in a process of its own.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cpu", help="Where all of them compute.")
    parser.add_argument("--threads", type=int, default=0, help="Of each worker; left out, its share of the cores.")
    parser.add_argument("--minutes", type=float, default=1e6, help="Begin no further unit after this time.")
    parser.add_argument("--unit", nargs="+", metavar="WORD", help="One unit, in this process.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there too.")


def unit_path(folder: Path, unit: Sequence[str]) -> Path:
    """Return the file of a unit's result in the folder of results."""
    return folder / ("-".join(unit).replace(" ", "-") + ".json")


def run_missing(module: str, units: Sequence[Unit], arguments: argparse.Namespace, extra: Sequence[str] = ()) -> int:
    """Run the units that have no result, `workers` at a time, and return how many are still missing."""
    missing = [unit for unit in units if not unit_path(arguments.units, unit).exists()]
    waiting, lock = list(missing), threading.Lock()
    print(f"{len(units) - len(missing)} of {len(units)} units are there; {arguments.workers} at a time.", flush=True)
    threads = arguments.threads or max((os.cpu_count() or 1) // arguments.workers, 1)
    # An empty list of devices is how CUDA is hidden from a process.
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"} | hidden
    end_s = time.monotonic() + 60 * arguments.minutes

    def work() -> None:
        while time.monotonic() < end_s:
            with lock:
                if not waiting:
                    return
                unit = waiting.pop(0)
            begun_s = time.monotonic()
            log = unit_path(arguments.work, unit).with_suffix(".log")
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("w") as output:
                command = [sys.executable, "-m", module, *extra, "--work", str(arguments.work)]
                command += ["--units", str(arguments.units), "--unit", *unit]
                done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
            how = "done" if done.returncode == 0 else f"FAILED, see {log}"
            print(f"{' '.join(unit)}: {how} in {time.monotonic() - begun_s:.0f} s", flush=True)

    workers = [threading.Thread(target=work) for _ in range(arguments.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(not unit_path(arguments.units, unit).exists() for unit in units)
