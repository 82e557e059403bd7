"""Runs that were ended amid their steps, and what they are made of."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.records.workspace import RunFolder
from dreambooth.training.batches import BatchMaker

FIXTURE = Path(__file__).parents[1] / "fixtures" / "resume"


class Killed(BaseException):
    """Ends a run where it stands."""


@contextlib.contextmanager
def killing_at(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """End trainings of this process, as a kill does, where the batch of this step is asked for."""
    original = BatchMaker.batch

    def batch(self: BatchMaker, at_step: int, at_micro_step: int) -> Any:
        if at_step == step:
            raise Killed
        return original(self, at_step, at_micro_step)

    with monkeypatch.context() as patch:
        patch.setattr(BatchMaker, "batch", batch)
        yield


def short_settings(base: Path) -> dict[str, Any]:
    """Return settings of a run of eight steps with an exact state after every other one, as JSON has them."""
    return {
        "pretrained_model_name_or_path": str(base), "resolution": 32, "train_batch_size": 1, "seed": 7,
        "max_train_steps": 8, "checkpointing_steps": 2, "num_crop_variants": 2, "gauge_interval": 0,
    }  # fmt: skip


def written(path: Path, values: object) -> str:
    """Write values as a JSON file, and return its path."""
    path.write_text(json.dumps(values))
    return str(path)


def fixture_run(name: str, folder: Path) -> RunFolder:
    """Put a run of the version without version numbers together, beside its base and its photos."""
    for shared in ("base", "photos"):
        shutil.copytree(FIXTURE / shared, folder / shared)
    run = RunFolder(folder / name)
    shutil.copytree(FIXTURE / "state", run.checkpoints)
    for file in (FIXTURE / name).iterdir():
        shutil.copy(file, run.checkpoints / "2" if file.name == "manifest.json" else run.records)
    return run
