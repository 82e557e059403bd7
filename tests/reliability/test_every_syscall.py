"""A save that is killed, or refused by the disk, at each system call that changes the disk."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.training.checkpoint import newest_checkpoint, restore, write_checkpoint
from dreambooth.workspace import RunFolder, sweep_unfinished
from tests.reliability.save_states import SURROUNDINGS, learner

pytestmark = pytest.mark.reliability
ROOT = Path(__file__).parents[2]
CALLS = "fsync,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,ftruncate"


def under_strace(run: Path, fault: str, first: int, last: int) -> int:
    """Save states `first` to `last` in a process with a fault injected, and return its exit status."""
    command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:{fault}"]
    script = [sys.executable, "-m", "tests.reliability.save_states", str(run), str(first), str(last)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "HOME": str(run)}
    done = subprocess.run([*command, *script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert "saving" in done.stdout, done.stderr
    return done.returncode


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("fault", ["signal=SIGKILL", "error=ENOSPC", "error=EIO"])
def test_a_save_that_ends_at_any_system_call_loses_no_valid_state(tmp_path: Path, fault: str) -> None:
    """R2 and R6: the state of step 1 is whole; a process saves steps 2 and 3 and has a fault at its k-th call."""
    points = 0
    for number in range(1, 200):
        run = RunFolder(tmp_path / str(number))
        write_checkpoint(run, 1, learner(1), SURROUNDINGS, 1)
        status = under_strace(run.path, f"{fault}:when={number}", 2, 3)
        told: list[str] = []
        sweep_unfinished(run.path)
        found = newest_checkpoint(run, told.append)
        assert told == [], f"fault {number}"
        assert found is not None, f"fault {number}"
        again = learner(0)
        restore(found, again)
        assert all(bool((parameter == found.step).all()) for parameter in again.parameters), f"fault {number}"
        assert not [entry for entry in run.checkpoints.iterdir() if entry.name.startswith(".")], f"fault {number}"
        if status == 0 and found.step == 3 and "SIGKILL" in fault:
            break
        points += 1
        if "error" in fault and points == 60:
            break
    print(f"{fault}: {points} points, no valid state lost")
    assert points >= 20
