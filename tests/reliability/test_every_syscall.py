"""A save that is killed, or refused by the disk, at each system call that changes the disk."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.durable import sweep_unfinished
from dreambooth.records.workspace import RunFolder
from dreambooth.training.checkpoint import newest_checkpoint, restore, write_checkpoint
from tests.reliability.save_states import IDENTITY, learner

pytestmark = pytest.mark.reliability
ROOT = Path(__file__).parents[2]
CALLS = ("fsync", "rename", "mkdir", "unlinkat", "rmdir", "write")


def under_strace(run: Path, call: str, fault: str, first: int, last: int) -> bool:
    """Save states `first` to `last` in a process with a fault at one of its system calls; False when it came to none.

    strace counts the calls of each name by themselves.
    """
    trace = run.parent / "trace"
    command = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
    script = [sys.executable, "-m", "tests.reliability.save_states", str(run), str(first), str(last)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HOME": str(run)}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    return done.returncode < 0 or "INJECTED" in trace.read_text() or "killed by" in trace.read_text()


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=ENOSPC", "error=EIO"])
def test_a_save_that_ends_at_any_system_call_loses_no_valid_state(tmp_path: Path, fault: str) -> None:
    """R2 and R6: the state of step 1 is whole; a process saves steps 2 and 3 and has a fault at its k-th call.

    Calls that open files are left out: loading the libraries makes thousands of them.
    """
    points = {}
    for call in CALLS:
        for number in range(1, 100):
            run = RunFolder(tmp_path / call / str(number) / "run")
            write_checkpoint(run, 1, learner(1), IDENTITY, 1)
            if not under_strace(run.path, call, f"{fault}:when={number}", 2, 3):
                break
            points[call] = number
            where = f"{fault} at {call} {number}"
            told: list[str] = []
            sweep_unfinished(run.path)
            found = newest_checkpoint(run, told.append)
            assert told == [], where
            assert found is not None, where
            again = learner(0)
            restore(found, again)
            assert all(bool((parameter == found.step).all()) for parameter in again.parameters), where
            assert not [entry for entry in run.checkpoints.iterdir() if entry.name.startswith(".")], where
    print(f"{fault}: {sum(points.values())} points {points}, no valid state lost")
    assert sum(points.values()) >= 25
    assert {"fsync", "rename", "write"} <= points.keys()
