"""R6 on a real small disk: a run whose disk fills up at every possible size of it pauses, and resumes exactly.

Needs the right to mount a tmpfs: root, also of a user namespace (`unshare -Urm`).
"""

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.forecast import disk
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import resume, train
from dreambooth.training import preparation
from tests.harness.children import assert_same_run, exit_status, in_child, outcome

pytestmark = pytest.mark.reliability
NUM_SIZES = 40
ROOM_BYTES = 64 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty disk of its own; `resized` sets its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def resized(folder: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", folder], check=True)


def used_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def on_the_small_disk(work: Callable[[], Any], *, is_refused_when_short: bool = False) -> int | None:
    """Return the exit status of work that is let begin in spite of R7, which refuses beforehand what will not fit.

    The disk has no room for the reserve of 1 GiB, which is left out.
    """

    def start() -> None:
        disk.RESERVE_BYTES = 0
        if not is_refused_when_short:
            preparation.refuse_short_disk = lambda need, folder, *, is_resumed: None
        work()

    return exit_status(in_child(start))


def paused_exactly(settings: TrainingConfig, small_disk: Path, name: str) -> RunFolder:
    """Train on the small disk, and return the run; a full disk must have paused it, unless it could not even begin."""
    on_the_small_disk(partial(train, replace(settings, output_dir=str(small_disk / name / "run"))))
    return RunFolder(small_disk / name / "run")


def test_a_disk_of_any_size_too_small_pauses_the_run_which_resumes_exactly(
    small_disk: Path, tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """R6: 40 sizes between an empty run's and a whole one's."""
    values: dict[str, Any] = {
        "pretrained_model_name_or_path": str(tiny_base_folder), "resolution": 32, "max_train_steps": 6, "seed": 3,
        "concepts": (Concept("photo of zwx dog", str(photos)),), "learning_rate": 1e-3, "num_crop_variants": 1,
        "save_infer_steps": 2, "log_interval": 1, "save_interval": 2, "checkpointing_steps": 1,
        "checkpoints_total_limit": 1, "train_text_encoder": True, "save_precision": "fp32",
        "save_sample_prompt": "photo of zwx dog", "n_save_sample": 1,
    }  # fmt: skip
    settings = TrainingConfig(**values).checked()
    assert exit_status(in_child(partial(train, replace(settings, output_dir=str(tmp_path / "whole" / "run"))))) == 0
    wanted, whole_bytes = outcome(tmp_path / "whole" / "run"), used_bytes(tmp_path / "whole")
    paused = with_state = 0
    for number in range(NUM_SIZES):
        size_bytes = round(whole_bytes * (0.05 + 0.93 * number / NUM_SIZES)) + (1 << 20)
        resized(small_disk, size_bytes)
        run = paused_exactly(settings, small_disk, str(number))
        states = run.checkpoint_steps()
        status = read_state(run).status
        resized(small_disk, ROOM_BYTES)
        if status == "done":
            continue
        assert status == "paused", f"{size_bytes} bytes: {status}"
        paused, with_state = paused + 1, with_state + bool(states)
        assert on_the_small_disk(partial(resume, run.path), is_refused_when_short=True) == 0
        assert_same_run(run.path, wanted, f"{size_bytes} bytes")
        subprocess.run(["rm", "-r", run.path], check=True)
    print(f"R6: {paused} of {NUM_SIZES} sizes paused the run, {with_state} with a state; all resumed bit for bit")
    assert paused >= NUM_SIZES // 2
    assert with_state > 0
