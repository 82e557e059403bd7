"""Pictures in the middle of a training: it pauses, gives the device away, and becomes what it would have become."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import held_lock
from dreambooth.events import Controls, Event, PhaseProgress, StatusChanged
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import RunLog, read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import start_records, train
from tests.harness.jobs_at_work import finished, until
from tests.harness.trained import quick_settings

REQUEST = GenerationConfig(prompt="photo of zwx dog", num_images_per_prompt=2, num_inference_steps=2, seed=3)


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path) -> TrainingConfig:
    return quick_settings(
        tiny_base_folder, photos, use_ema=True, train_text_encoder=True, seed=11, save_precision="fp32",
        max_train_steps=12, num_crop_variants=1,
    )  # fmt: skip


def digest(folder: Path) -> dict[str, str]:
    files = sorted(folder.rglob("*.safetensors"))
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


class Lender:
    """Asks for the device after a step, makes pictures elsewhere meanwhile, and keeps what was told."""

    def __init__(self, controls: Controls, at_step: int) -> None:
        self.controls, self.at_step, self.told = controls, at_step, list[Event]()

    def __call__(self, event: Event) -> None:
        self.told.append(event)
        if isinstance(event, PhaseProgress):
            if event.phase == "training" and event.done == self.at_step:
                self.at_step = 0
                self.controls.lend.set()
            if event.phase == "lent":
                self.controls.lend.clear()


@pytest.mark.parametrize(("changes", "num_files"), [({}, 3), ({"method": "lora"}, 1)], ids=["full", "LoRA"])
def test_a_training_that_lent_its_device_becomes_bit_for_bit_what_it_would_have_become(
    config: TrainingConfig, tmp_path: Path, changes: dict[str, Any], num_files: int
) -> None:
    config = dataclasses.replace(config, **changes)
    plain = train(dataclasses.replace(config, output_dir=str(tmp_path / "plain" / "run")))
    controls = Controls()
    lender = Lender(controls, at_step=5)
    lent = train(
        dataclasses.replace(config, output_dir=str(tmp_path / "lent" / "run")), controls=controls, on_event=lender
    )
    assert digest(plain) == digest(lent)
    assert len(digest(plain)) == num_files
    statuses = [(event.status, event.cause) for event in lender.told if isinstance(event, StatusChanged)]
    assert statuses == [("running", ""), ("paused", "lent"), ("running", ""), ("done", "")]


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    jobs = Jobs(Workspace(tmp_path / "data"), ModelManager("cpu"))
    yield jobs
    jobs.close()


def test_pictures_asked_for_now_pause_the_training_and_it_goes_on_by_itself(
    jobs: Jobs, config: TrainingConfig, tiny_base_folder: Path, tmp_path: Path
) -> None:
    # After the first step, before which the device may still be free; a fast machine makes twenty steps meanwhile.
    name = jobs.start(dataclasses.replace(config, max_train_steps=100), "busy")
    until(lambda: jobs.view(name).step, lambda step: step > 0)
    order = jobs.order(str(tiny_base_folder), REQUEST, "pause training")
    paused: Any = until(
        lambda: (jobs.view(name), order.state), lambda seen: seen[0].status == "paused" or seen[1] == "done"
    )
    until(lambda: order.state, lambda state: state == "done", 300)
    assert len(order.files) == 2
    during = paused[0]
    if during.status == "paused":
        assert during.resume_step is None, "it needs nobody to resume it"
    view = finished(jobs, name)
    assert (view.status, view.step) == ("done", 100)
    # Whole: what the page shows of it is its end.
    assert "The device is being used to make pictures." in RunFolder(view.path).log_path.read_text("utf-8")
    alone = train(dataclasses.replace(config, max_train_steps=100, output_dir=str(tmp_path / "alone")))
    assert digest(alone) == digest(view.path / "100")


def test_a_stop_while_the_device_is_lent_is_done_afterwards(
    jobs: Jobs, config: TrainingConfig, tiny_base_folder: Path
) -> None:
    name = jobs.start(dataclasses.replace(config, max_train_steps=5000), "busy")
    until(lambda: jobs.view(name).step, lambda step: step >= 2)
    slow = dataclasses.replace(REQUEST, num_inference_steps=60)
    order = jobs.order(str(tiny_base_folder), slow, "pause training")
    until(lambda: order.share, lambda share: share > 0)
    jobs.stop(name)
    view = finished(jobs, name)
    assert order.state == "done"
    assert view.status == "stopped"
    assert view.steps == [view.step]


def test_a_lent_run_whose_app_ended_is_interrupted_and_can_be_resumed(config: TrainingConfig, tmp_path: Path) -> None:
    from dreambooth.training.lending import LENT

    run = RunFolder(tmp_path / "data" / "runs" / "gone")
    start_records(config, run)
    RunLog(run, 12)(LENT)
    assert read_state(run).status == "interrupted"
    with held_lock(run.lock_path):
        assert read_state(run).status == "paused"
    jobs = Jobs(Workspace(tmp_path / "data"), ModelManager("cpu"))
    assert jobs.view("gone").resume_step == 0
    jobs.close()


@pytest.mark.gpu
@pytest.mark.parametrize("eight_bit", [False, True], ids=["adamw", "adamw-8bit"])
def test_memory_is_afterwards_where_it_was(
    config: TrainingConfig, tiny_base_folder: Path, tmp_path: Path, eight_bit: bool
) -> None:
    import torch

    manager = ModelManager()
    jobs = Jobs(Workspace(tmp_path / "data"), manager)
    before = torch.cuda.memory_allocated()
    settings = dataclasses.replace(
        config, max_train_steps=100_000, use_8bit_adam=eight_bit, mixed_precision="fp16", save_interval=100_000,
    )  # fmt: skip
    name = jobs.start(settings, "busy")
    until(lambda: jobs.view(name).step, lambda step: step >= 5)
    job = jobs._queue[0]
    measured: list[int] = []

    def settled() -> int:
        """Return what is allocated while the run lends its device to nobody in particular."""
        until(lambda: manager.holder, lambda holder: holder == "training")
        job.controls.lend.set()
        until(lambda: manager.holder, lambda holder: holder is None)
        free: int = torch.cuda.memory_allocated()
        job.controls.lend.clear()
        step = jobs.view(name).step
        until(lambda: jobs.view(name).step, lambda now: now > step)
        return free

    measured.append(settled())
    order = jobs.order(str(tiny_base_folder), REQUEST, "pause training")
    until(lambda: order.state, lambda state: state == "done", 60)
    measured.append(settled())
    step = jobs.view(name).step
    until(lambda: jobs.view(name).step, lambda now: now > step + 2)
    jobs.stop(name)
    assert finished(jobs, name).status == "stopped"
    jobs.close()
    manager.collect()
    after = torch.cuda.memory_allocated()
    print(f"before {before}, lent {measured}, after {after} bytes")
    assert abs(measured[1] - measured[0]) < 2**20
    assert after - before < 2**20
