"""Jobs: the background thread, the queue, the buttons, and what a run folder tells afterwards."""

import dataclasses
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import SD15, SDXL_BASE, MethodName, TrainingConfig
from dreambooth.durable import held_lock
from dreambooth.errors import ConfigError, DeviceError, DreamBoothError, RunFolderError
from dreambooth.events import PhaseProgress, StatusChanged, StepLoss
from dreambooth.models.manager import ModelManager
from dreambooth.pictures.painter import generate
from dreambooth.records.eta import in_words
from dreambooth.records.runlog import RunLog, TensorBoardLog, read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import start_records, train
from dreambooth.runs.smaller import smaller_config, smaller_settings
from tests.harness.jobs_at_work import Stub, finished, until
from tests.harness.trained import quick_settings


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path) -> TrainingConfig:
    return quick_settings(tiny_base_folder, photos, max_train_steps=3, seed=None, num_crop_variants=1)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "data")


@pytest.fixture
def jobs(workspace: Workspace) -> Iterator[Jobs]:
    jobs = Jobs(workspace, ModelManager("cpu"))
    yield jobs
    jobs.close()


@pytest.fixture
def stub() -> Stub:
    return Stub()


@pytest.fixture
def stub_jobs(workspace: Workspace, stub: Stub) -> Iterator[Jobs]:
    """Yield jobs whose trainings are the stub's."""
    jobs = Jobs(workspace, ModelManager("cpu"), train=stub)
    yield jobs
    jobs.close()


def test_a_run_trains_in_the_background_and_tells_its_folder(jobs: Jobs, config: TrainingConfig) -> None:
    name = jobs.start(config, "my dog!")
    assert name.startswith("my-dog-")
    assert jobs.active() == name
    view = finished(jobs, name)
    assert (view.status, view.step, view.total_steps, view.steps) == ("done", 3, 3, [3])
    assert [loss.step for loss in view.losses] == [1, 2, 3]
    assert "done 3 steps." in view.log_tail
    assert view.config is not None
    assert view.config.seed is not None, "a drawn seed is recorded"
    assert jobs.models()[0] == (f"{name}, step 3 (full model, SD 1.x)", str(view.path / "3"))
    until(jobs.active, lambda active: active is None)


def test_a_run_that_has_just_ended_does_not_refuse_pictures(
    jobs: Jobs, config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it is done a moment before its thread leaves the line: that moment is made to last."""
    view = finished(jobs, jobs.start(config, "dog"))
    until(jobs.active, lambda active: active is None)
    monkeypatch.setattr(jobs, "active", lambda: view.name)
    request = GenerationConfig(prompt="photo of zwx dog", num_images_per_prompt=1, num_inference_steps=1)
    assert len(list(jobs.generate(str(view.path / "3"), request))) == 1


def test_every_mistake_is_told_before_anything_is_written(jobs: Jobs, workspace: Workspace) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs.start(TrainingConfig(resolution=7, max_train_steps=0))
    assert {problem.field for problem in caught.value.problems} >= {
        "resolution",
        "max_train_steps",
        "instance_data_dir",
    }
    assert workspace.runs() == []


def test_runs_wait_in_line_and_keep_their_order(stub_jobs: Jobs, config: TrainingConfig, stub: Stub) -> None:
    names = [stub_jobs.start(config) for _ in range(4)]
    until(lambda: stub.order, lambda order: len(order) == 1)
    assert stub_jobs.view(names[2]).queue_place == 2
    assert stub_jobs.view(names[2]).queued_after == names[:2]
    assert stub_jobs.view(names[2]).status == "queued"
    stub_jobs.stop(names[1])
    assert stub_jobs.view(names[2]).queued_after == names[:1]
    assert stub_jobs.view(names[1]).status == "stopped"
    stub.go_on.set()
    assert [finished(stub_jobs, name).status for name in (names[0], names[2], names[3])] == ["done"] * 3
    assert stub.order == [names[0], names[2], names[3]]


def test_stopping_is_shown_until_it_has_stopped(jobs: Jobs, config: TrainingConfig) -> None:
    name = jobs.start(dataclasses.replace(config, max_train_steps=10_000))
    until(lambda: jobs.view(name).step, lambda step: step >= 2)
    jobs.stop(name)
    assert jobs.view(name).status in ("stopping", "stopped")
    view = finished(jobs, name)
    assert view.status == "stopped"
    assert view.steps == [view.step]
    with pytest.raises(RunFolderError, match="not running"):
        until(lambda: jobs.stop(name), lambda _: False, seconds=2)


@pytest.mark.parametrize(
    ("error", "what", "log"),
    [
        (DreamBoothError("The disk is full.", "It is.", "Free some."), "The disk is full.", "The disk is full."),
        (ZeroDivisionError("oh"), "unexpected ZeroDivisionError", "Traceback"),
        (type("OutOfMemoryError", (RuntimeError,), {})("Tried 2 GiB. x"), "ran out of memory", "Traceback"),
    ],
)
def test_a_failed_run_says_why_and_the_next_one_works(
    stub_jobs: Jobs, config: TrainingConfig, stub: Stub, error: BaseException, what: str, log: str
) -> None:
    stub.error = error
    stub.go_on.set()
    view = finished(stub_jobs, stub_jobs.start(config))
    assert view.status == "failed"
    assert view.error is not None
    assert what in view.error.what
    assert view.error.todo
    assert log in view.log_tail
    stub.error = None
    assert finished(stub_jobs, stub_jobs.start(config)).status == "done"


def test_a_run_out_of_memory_is_tried_again_with_the_plan_that_fits(
    stub_jobs: Jobs, config: TrainingConfig, stub: Stub
) -> None:
    """R11: each retry needs less, one thing at a time, until nothing is left to give up."""
    stub.error = type("OutOfMemoryError", (RuntimeError,), {})("Tried to allocate 2 GiB. x")
    stub.go_on.set()
    name, seen, refusal = stub_jobs.start(dataclasses.replace(config, train_text_encoder=True, use_ema=True)), [], ""
    while not refusal:
        view = finished(stub_jobs, name)
        assert view.error is not None
        assert view.error.cause == "out of memory"
        seen.append(view.config)
        try:
            name = stub_jobs.retry_with_less(name)
        except RunFolderError as error:
            refusal = str(error)
    assert "already the smallest" in refusal
    assert len(seen) >= 4
    assert len(set(seen)) == len(seen), "no settings are tried twice"
    last = seen[-1]
    assert last is not None
    assert (last.gradient_checkpointing, last.use_ema, last.train_text_encoder) == (True, False, False)
    assert {one.method for one in seen if one is not None} == {"full"}, "another method is another result"
    assert "Train a LoRA instead, or use a device with more memory." in refusal


def test_what_a_lora_gives_up_is_its_own(config: TrainingConfig) -> None:
    """Least harmful first; 8-bit moments, updates inside backward and weights in bf16 would change nothing."""
    smaller: TrainingConfig | None = dataclasses.replace(
        config, method="lora", train_text_encoder=True, mixed_precision="fp16", resolution=384, train_batch_size=1
    )
    seen: list[TrainingConfig] = []
    while smaller is not None:
        seen.append(smaller.checked())
        assert not any("--use_8bit_adam" in words or "--method" in words for words in smaller_settings(smaller))
        smaller = smaller_config(smaller)
    changed = [
        {name for name, value in after.to_json().items() if value != before.to_json()[name]}
        for before, after in itertools.pairwise(seen)
    ]
    assert changed == [{"gradient_checkpointing"}, {"train_text_encoder"}, {"lora_targets"}, {"resolution"}]
    assert smaller_settings(dataclasses.replace(config, method="full"))[-1] == "or train a LoRA: --method lora"


@pytest.mark.parametrize(("base", "least_px"), [(SD15, 256), (SDXL_BASE, 768)])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_no_side_is_taken_below_what_is_useful_in_the_bases_family(
    config: TrainingConfig, base: str, least_px: int, method: MethodName
) -> None:
    smaller: TrainingConfig | None = dataclasses.replace(
        config, pretrained_model_name_or_path=base, method=method, resolution=1024
    )
    last = smaller
    while smaller is not None:
        last, told, smaller = smaller, smaller_settings(smaller), smaller_config(smaller)
        assert told
    assert last is not None
    assert last.resolution == least_px
    assert not any("--resolution" in words for words in told)


@pytest.mark.parametrize(
    "changes",
    [
        {"update_in_backward": True, "max_grad_norm": 0.0, "train_batch_size": 4},
        {"capture_step": True, "train_batch_size": 2},
        {"shard_weights": True, "train_batch_size": 2},
        {"train_batch_size": 2},
    ],
    ids=str,
)
def test_what_is_said_to_need_less_can_be_run(config: TrainingConfig, changes: dict[str, Any]) -> None:
    """R11: batches are lowered without accumulation, number formats changed to one that goes with the rest."""
    smaller: TrainingConfig | None = dataclasses.replace(config, resolution=512, **changes).checked()
    seen, told = [], []
    while smaller is not None:
        seen.append(smaller.checked())
        told += smaller_settings(smaller)
        smaller = smaller_config(smaller)
    assert seen[-1].train_batch_size == 1
    assert {one.shard_weights for one in seen} == {"shard_weights" in changes}
    assert any("accumulation" in words for words in told) == ("update_in_backward" not in changes)
    assert ("--mixed_precision bf16" in told) == bool({"update_in_backward", "shard_weights"} & set(changes))


def test_a_run_is_deleted_only_when_it_is_over(stub_jobs: Jobs, config: TrainingConfig, stub: Stub) -> None:
    names = [stub_jobs.start(config) for _ in range(2)]
    until(lambda: stub.order, len)
    assert stub_jobs.waiting() == names[1:]
    for name in names:
        with pytest.raises(RunFolderError, match="Stop it first"):
            stub_jobs.remove(name)
    stub.go_on.set()
    path = finished(stub_jobs, names[0]).path
    until(lambda: stub_jobs.active() != names[0], bool)
    assert stub_jobs.remove(names[0]).num_bytes > 0
    assert not path.exists()


def test_a_run_is_not_deleted_while_pictures_are_made_with_it(
    stub_jobs: Jobs, config: TrainingConfig, stub: Stub
) -> None:
    stub.go_on.set()
    name = stub_jobs.start(config)
    path = finished(stub_jobs, name).path
    until(lambda: stub_jobs.active() != name, bool)
    may_end = threading.Event()

    def slow(*_: object) -> Iterator[Path]:
        may_end.wait(60)
        yield from ()

    order = stub_jobs.pictures.add("a step of it", 1, slow, source=path)
    with pytest.raises(RunFolderError, match="cancel them on the Generate tab"):
        stub_jobs.remove(name)
    may_end.set()
    until(lambda: order.state == "done", bool)
    stub_jobs.remove(name)
    assert not path.exists()


def test_pictures_while_training_are_told_how_long_it_takes(
    stub_jobs: Jobs, config: TrainingConfig, stub: Stub
) -> None:
    name = stub_jobs.start(config)
    until(lambda: stub.order, len)
    with pytest.raises(DeviceError, match=f"training {name}"):
        next(stub_jobs.generate("starter", GenerationConfig(prompt="a dog")))
    log = RunLog(RunFolder(stub_jobs.view(name).path), 500)
    for step in range(1, 60):
        log(PhaseProgress("training", step, 500))
    log(StatusChanged("running"))
    with pytest.raises(DeviceError, match=r"About \d+ s left"):
        next(stub_jobs.generate("starter", GenerationConfig(prompt="a dog")))


def test_pictures_come_one_by_one_with_their_recipe(jobs: Jobs, tiny_base_folder: Path) -> None:
    from PIL import Image

    request = GenerationConfig(prompt="a dog", num_images_per_prompt=2, num_inference_steps=2, seed=3)
    files = list(jobs.generate(str(tiny_base_folder), request))
    again = list(jobs.generate(str(tiny_base_folder), request))
    assert len(files) == 2
    assert Image.open(files[0]).size == (32, 32)
    assert "Seed: 3" in Image.open(files[0]).info["parameters"]
    assert Image.open(files[0]).tobytes() == Image.open(again[0]).tobytes()
    assert Image.open(files[0]).tobytes() != Image.open(files[1]).tobytes()


def test_a_run_without_an_owner_is_interrupted(workspace: Workspace, config: TrainingConfig) -> None:
    run = workspace.run("gone")
    start_records(config, run)
    RunLog(run, 100)(StatusChanged("running"))
    assert read_state(run).status == "interrupted"
    with held_lock(run.lock_path):
        assert read_state(run).status == "running"


def test_the_time_left_of_a_part_ends_with_the_run(workspace: Workspace, config: TrainingConfig) -> None:
    run = workspace.run("gone")
    start_records(config, run)
    with held_lock(run.lock_path):
        log = RunLog(run, 100)
        log(StatusChanged("running"))
        for done in (0, 4):
            log(PhaseProgress("class images", done, 50))
            time.sleep(0.01)
        log(StatusChanged("running"))
        assert read_state(run).phase_seconds_left is not None
    assert read_state(run).status == "interrupted"
    assert read_state(run).phase_seconds_left is None
    log(StatusChanged("stopped"))
    assert read_state(run).status == "stopped"
    assert read_state(run).phase_seconds_left is None


def test_train_and_generate_from_python(config: TrainingConfig, tmp_path: Path) -> None:
    seen: list[object] = []
    folder = train(dataclasses.replace(config, output_dir=str(tmp_path / "run")), on_event=seen.append)
    assert folder == tmp_path / "run" / "3"
    assert any(isinstance(event, StepLoss) for event in seen)
    request = GenerationConfig(prompt="photo of zwx dog", num_images_per_prompt=1, num_inference_steps=2)
    assert len(generate(tmp_path / "run", request, tmp_path / "pictures")) == 1
    with pytest.raises(RunFolderError, match="already holds a run"):
        train(dataclasses.replace(config, output_dir=str(tmp_path / "run")))


def test_a_failed_training_raises(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DreamBoothError("The photos are gone.")

    monkeypatch.setattr("dreambooth.training.preparation.prepare", fail)
    with pytest.raises(DreamBoothError, match="photos are gone"):
        train(config)


def test_a_damaged_state_or_event_file_is_no_crash(jobs: Jobs, workspace: Workspace, config: TrainingConfig) -> None:
    run = workspace.run("odd")
    start_records(config, run)
    run.state_path.write_text('{"status": 5')
    run.events_path.write_text('{"event": "StepLoss"}\nnot json\n[1]\n{"event": "Unknown", "time_s": 1}\n')
    assert jobs.view("odd").losses == []
    run.config_path.write_text(json.dumps({"nonsense": 1}))
    assert jobs.view("odd").config is None


@pytest.mark.parametrize("name", ["../x", ".run", "a/b", "", "x" * 200, "a..b", "-rf"])
def test_names_that_could_leave_the_runs_folder_are_refused(jobs: Jobs, name: str) -> None:
    with pytest.raises(RunFolderError):
        jobs.view(name)


def test_epochs_in_place_of_steps_show_their_total(jobs: Jobs, config: TrainingConfig) -> None:
    view = finished(jobs, jobs.start(dataclasses.replace(config, max_train_steps=None, num_train_epochs=2)))
    assert (view.step, view.total_steps) == (6, 6), "three photos, twice"


def test_tensorboard_gets_losses_where_it_is_installed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(workspace.run("r").path / "0" / "logs")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append(("closed", 0, 0))

    stand_in = types.SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)  # type: ignore[arg-type]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    board = TensorBoardLog(workspace.run("r"), "logs")
    board(StepLoss(4, 0.5, 0.5, None, 1e-6))
    board.close()
    assert written == [("loss", 0.5, 4), ("lr", 1e-6, 4), ("closed", 0, 0)]


def test_durations_in_words() -> None:
    assert [in_words(seconds) for seconds in (8, 59, 61, 600, 4800)] == ["8 s", "59 s", "1 min", "10 min", "1 h 20 min"]


def test_importing_the_jobs_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, dreambooth.runs.jobs, dreambooth.commands.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0


def test_the_view_names_the_recommended_step_of_those_whose_model_is_there(
    jobs: Jobs, workspace: Workspace, config: TrainingConfig
) -> None:
    from dreambooth.scoring.recommendation import StepScores
    from dreambooth.scoring.records import RunScores, write_scores

    run = workspace.run("scored")
    start_records(config, run)
    assert jobs.view("scored").recommended_step is None
    for step in (100, 300):
        run.step_folder(step).mkdir()
        (run.step_folder(step) / "model_index.json").write_text("{}")
    steps = (StepScores(100, 0.5, 1.0, 0.0), StepScores(200, 0.9, 1.0, 0.0), StepScores(300, 0.9, 0.2, 0.8))
    write_scores(run, RunScores("judge", steps))
    view = jobs.view("scored")
    assert view.recommended_step == 100
    assert view.why_recommended.startswith("Step 100 is the best")
    assert view.scores is not None
    assert len(view.scores.steps) == 3
