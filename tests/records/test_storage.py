"""What takes how much and what of it can go: the list is exact, and nothing else is ever deleted."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import held_lock, write_json
from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError, RunFolderError
from dreambooth.events import Controls, Event, ModelSaved, Notice, SamplesMade
from dreambooth.forecast import disk
from dreambooth.forecast.counts import counts_of_base
from dreambooth.records.saved_weights import saved_steps, weight_files
from dreambooth.records.storage import (
    CHOICES,
    COST,
    Choice,
    Deletion,
    carry_out,
    plan,
    remove_weights,
    run_to_clean,
    size_of,
    usage,
)
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.run import resume, train
from tests.harness.trained import quick_settings

MODEL = ("model_index.json", "card.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
         "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
         "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
         "scheduler/scheduler_config.json")  # fmt: skip
# What may lie beside a model, and looks like it.
BESIDE = ("args.json", "samples/0.png", "model.ckpt", "notes.txt", "unet/my-own.txt", "unet/extra/config.json",
          "unet/diffusion_pytorch_model.safetensors.bak", "unet/diffusion_pytorch_model.fp16.safetensors",
          "text_encoder/pytorch_model.bin", "a\nb \u2603.txt")  # fmt: skip
CLASS_IMAGES = "class_images/0123456789abcdef"
PICTURE = "20261123-120000-7-0.png"


def written(path: Path, num_bytes: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    return path


def a_run(workspace: Workspace, name: str, steps: tuple[int, ...] = (2, 10, 9)) -> RunFolder:
    run = RunFolder(workspace.runs_dir / name)
    write_json(run.config_path, {})
    written(run.log_path)
    written(run.path / "0" / "samples" / "0.png")
    for step in steps:
        for file in MODEL:
            written(run.step_folder(step) / file)
        for kept in BESIDE:
            written(run.step_folder(step) / kept)
    written(run.checkpoints / "9" / "unet.safetensors", 5000)
    return run


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "data")
    a_run(workspace, "dog")
    cat = a_run(workspace, "cat", (7,))
    write_json(cat.state_path, {"status": "done"})
    written(workspace.data_dir / CLASS_IMAGES / "00000.png", 300)
    write_json(workspace.data_dir / CLASS_IMAGES / "info.json", {"prompt": "photo of dog"})
    os.utime(workspace.data_dir / CLASS_IMAGES, (1e9, 1e9))
    written(workspace.exports_dir / "dog.safetensors", 4000)
    written(workspace.exports_dir / "dog-step-2-fp16.ckpt", 4100)
    written(workspace.pictures_dir / PICTURE, 50)
    written(workspace.pictures_dir / "dog" / PICTURE, 50)
    written(workspace.datasets_dir / "photos" / "1.png", 70)
    written(workspace.models_dir / "mine.safetensors", 900)
    written(workspace.room("page") / "dead" / "upload.png", 60)
    written(workspace.room("page") / "dead" / "lock", 0)
    return workspace


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_the_sizes_are_those_of_the_files(workspace: Workspace) -> None:
    found = {(one.kind, one.name): (one.num_bytes, one.choice) for one in usage(workspace)}
    assert found["saved model", "dog, step 2 (full model, SD 1.x)"] == (100 * len(MODEL), "intermediate weights")
    assert found["saved model", "dog, step 10 (full model, SD 1.x)"] == (100 * len(MODEL), None)
    assert found["saved model", "cat, step 7 (full model, SD 1.x)"] == (100 * len(MODEL), None)
    assert found["exact states", "dog"] == (5000, "states to resume from")
    assert found["exact states", "cat"] == (5000, "exact states")
    assert found["export", "dog.safetensors"] == (4000, "exports")
    assert found["class images", CLASS_IMAGES[13:]][1] == "class images"
    assert found["photos", "photos"] == (70, None)
    assert found["base", "mine.safetensors"] == (900, None)
    assert found["caches", "left behind"] == (60, "caches")
    # Everything in the data folder is in the list, once.
    ours = sum(num_bytes for (kind, _), (num_bytes, _) in found.items() if "Hub" not in kind)
    assert ours == size_of(workspace.data_dir)
    assert list(COST) == list(CHOICES)


def test_links_are_not_followed_and_files_are_counted_once(tmp_path: Path) -> None:
    one = written(tmp_path / "a" / "one", 1000)
    os.link(one, tmp_path / "a" / "again")
    written(tmp_path / "elsewhere" / "big", 10**6)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "elsewhere")
    assert 1000 <= size_of(tmp_path / "a") < 1000 + 500
    assert size_of(tmp_path / "nothing") == 0


def test_a_file_with_two_names_counts_once_and_frees_its_bytes_with_the_last(workspace: Workspace) -> None:
    run = workspace.run("dog")
    names = [run.step_folder(step) / "unet" / "diffusion_pytorch_model.safetensors" for step in (2, 9)]
    names[1].unlink()
    os.link(*names)
    ours = sum(one.num_bytes for one in usage(workspace) if "Hub" not in one.kind)
    assert ours == size_of(workspace.data_dir)
    assert remove_weights(run, 2) == 100 * (len(MODEL) - 1)
    assert remove_weights(run, 9) == 100 * len(MODEL)


def test_a_run_behind_a_link_is_not_ours(workspace: Workspace, tmp_path: Path) -> None:
    far = a_run(Workspace(tmp_path / "elsewhere"), "far")
    (workspace.runs_dir / "far").symlink_to(far.path)
    before = listing(far.path)
    carry_out(workspace, plan(workspace, CHOICES))
    assert listing(far.path) == before
    assert not any("far" in one.name for one in usage(workspace))
    exports = workspace.exports_dir
    exports.rename(tmp_path / "moved")
    exports.symlink_to(tmp_path / "moved")
    assert plan(workspace, ["exports"]).deletions == ()


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_deletes_its_own_and_nothing_else(workspace: Workspace, choice: Choice) -> None:
    before = listing(workspace.data_dir)
    planned = plan(workspace, [choice])
    assert listing(workspace.data_dir) == before, "looking changes nothing"
    freed = carry_out(workspace, planned)
    after = listing(workspace.data_dir)
    wanted = {
        "intermediate weights": {f"runs/dog/{step}/{file}" for step in (2, 9) for file in MODEL},
        "exact states": {"runs/cat/.run/state/9/unet.safetensors"},
        "states to resume from": {"runs/dog/.run/state/9/unet.safetensors"},
        "class images": {f"{CLASS_IMAGES}/{name}" for name in ("00000.png", "info.json")},
        "exports": {"exports/dog.safetensors", "exports/dog-step-2-fp16.ckpt"},
        "pictures": {f"pictures/{PICTURE}", f"pictures/dog/{PICTURE}"},
        "caches": {"page/dead/upload.png", "page/dead/lock"},
    }
    assert before - after == wanted[choice]
    assert after - before <= {"runs/dog/.run/lock", "runs/cat/.run/lock"}
    assert freed == planned.num_bytes
    assert carry_out(workspace, planned) == 0, "what is gone is gone once"
    rooms = ("class_images", "exports", "pictures", "page", "runs")
    assert all((workspace.data_dir / room).is_dir() for room in rooms), "the rooms themselves stay"


def test_what_is_not_ours_stays_and_empty_folders_go(workspace: Workspace) -> None:
    run = workspace.run("dog")
    assert remove_weights(run, 2) == 100 * len(MODEL)
    assert listing(run.step_folder(2)) == set(BESIDE)
    folders = sorted(entry.name for entry in run.step_folder(2).iterdir() if entry.is_dir())
    assert folders == ["samples", "text_encoder", "unet"]
    assert run.steps() == [9, 10]
    assert sorted(run.samples()) == [0, 2, 9, 10]


def test_a_run_at_work_is_not_touched(workspace: Workspace) -> None:
    run = workspace.run("dog")
    before = listing(run.path)
    for lock in (run.lock_path, run.queue_lock_path):
        with held_elsewhere(lock):
            planned = plan(workspace, CHOICES)
            assert any("dog is running" in sentence for sentence in planned.kept)
            assert any("Class images stay" in sentence for sentence in planned.kept)
            assert not any(one.path.is_relative_to(run.path) for one in planned.deletions)
        # Taken up, or put into the line, between the list and the deletion.
        planned = plan(workspace, ["intermediate weights", "states to resume from"])
        with held_elsewhere(lock):
            assert carry_out(workspace, planned) == 0
    assert listing(run.path) ^ before <= {".run/lock", ".run/in-line"}


def test_a_run_taken_up_at_the_very_moment_is_passed_over(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = workspace.run("dog")
    planned = plan(workspace, ["intermediate weights"])
    for lock in (run.lock_path, run.queue_lock_path):
        with monkeypatch.context() as patch, held_lock(lock):
            patch.setattr("dreambooth.records.storage.is_owned", lambda run: False)
            assert carry_out(workspace, planned) == 0
    assert carry_out(workspace, planned) == 200 * len(MODEL)


@contextlib.contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    """Have another process hold this lock."""
    code = "import sys; from pathlib import Path; from dreambooth.records.workspace import held_lock\n"
    code += "with held_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield
    finally:
        holder.communicate("")


def test_links_lead_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    outside = written(tmp_path / "outside" / "diffusion_pytorch_model.safetensors", 10)
    run = workspace.run("dog")
    shutil.rmtree(run.step_folder(2) / "unet")
    (run.step_folder(2) / "unet").symlink_to(outside.parent)
    (workspace.exports_dir / "link.safetensors").symlink_to(outside)
    carry_out(workspace, plan(workspace, CHOICES))
    assert outside.exists()
    assert (workspace.exports_dir / "link.safetensors").is_symlink()
    # The list is looked at again before anything goes.
    planned = plan(workspace, ["intermediate weights"], [run])
    shutil.move(run.step_folder(10), tmp_path / "moved")
    run.step_folder(10).symlink_to(tmp_path / "moved")
    target = run.step_folder(10) / "model_index.json"
    forged = dataclasses.replace(planned, deletions=(Deletion(target, 1, run), Deletion(target, 1)))
    carry_out(workspace, forged)
    assert (tmp_path / "moved" / "model_index.json").exists()


def test_killed_in_the_middle_nothing_counts_as_a_model(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = workspace.run("dog")
    unlink = Path.unlink
    done: list[Path] = []

    def dying(path: Path, missing_ok: bool = False) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", dying)
    with pytest.raises(KeyboardInterrupt):
        remove_weights(run, 9)
    monkeypatch.undo()
    assert run.steps() == [2, 10]
    assert (run.step_folder(9) / "unet" / "diffusion_pytorch_model.safetensors").exists()
    # The rest goes with the next time.
    carry_out(Workspace(run.path.parent.parent), plan(Workspace(run.path.parent.parent), ["intermediate weights"]))
    assert listing(run.step_folder(9)) == set(BESIDE)


def test_the_newest_model_stays_whatever_happened_since_the_list(workspace: Workspace) -> None:
    run = workspace.run("dog")
    planned = plan(workspace, ["intermediate weights"])
    shutil.rmtree(run.step_folder(10))
    carry_out(workspace, planned)
    assert run.steps() == [9]


def test_a_model_that_no_training_saved_here_stays(workspace: Workspace, tmp_path: Path) -> None:
    run = workspace.run("dog")
    for step in (1, 3, 99):
        for file in MODEL:
            written(run.step_folder(step) / file)
    (run.step_folder(4)).symlink_to(run.step_folder(2))
    index = run.step_folder(9) / "model_index.json"
    shutil.move(index, tmp_path / "index")
    index.symlink_to(tmp_path / "index")
    carry_out(workspace, plan(workspace, CHOICES))
    assert run.steps() == [1, 3, 9, 10, 99]
    assert (run.step_folder(9) / "unet" / "diffusion_pytorch_model.safetensors").exists(), "all or nothing"


def test_what_others_put_into_our_folders_stays(workspace: Workspace) -> None:
    mine = {
        f"{folder}/{name}"
        for folder in ("exports", "pictures", "class_images", "exports/folder", CLASS_IMAGES)
        for name in ("notes.txt", "holiday.png", "mine.safetensors", "a\nb.zip")
    } | {"class_images/my dogs/00000.png", "class_images/fedcba9876543210/00000.png"}
    for name in mine:
        written(workspace.data_dir / name)
    os.utime(workspace.data_dir / CLASS_IMAGES, (1e9, 1e9))
    planned = plan(workspace, CHOICES)
    carry_out(workspace, planned)
    after = listing(workspace.data_dir)
    assert mine - after == set()
    assert all(sentence.isprintable() for sentence in planned.kept)
    assert f"{CLASS_IMAGES}/00000.png" not in after
    assert all(one.name.isprintable() for one in usage(workspace))


def test_an_export_whose_model_is_not_here_or_goes_too_stays(workspace: Workspace) -> None:
    written(workspace.exports_dir / "dog-step-3-fp16.safetensors")
    for name in ("dog-step-10-fp32.safetensors", "dog-step-10.zip", "dog-step-10-samples.zip"):
        written(workspace.exports_dir / name)
    planned = plan(workspace, ["exports", "intermediate weights"])
    going = {one.path.name for one in planned.deletions if one.run is None}
    again = {"dog-step-10-fp32.safetensors", "dog-step-10.zip", "dog-step-10-samples.zip"}
    assert going == {"dog.safetensors"} | again
    assert [sentence.split()[2] for sentence in planned.kept] == [
        "dog-step-2-fp16.ckpt", "dog-step-3-fp16.safetensors",
    ]  # fmt: skip
    carry_out(workspace, planned)
    assert (workspace.exports_dir / "dog-step-2-fp16.ckpt").exists()


def test_class_images_that_a_run_goes_on_with_stay(workspace: Workspace, photos: Path) -> None:
    run = workspace.run("dog")
    concept = Concept("photo of zwx dog", str(photos), "photo of dog")
    for settings, stays in (
        (TrainingConfig(concepts=(concept,), with_prior_preservation=True), True),
        (TrainingConfig(concepts=(concept,)), False),
        (TrainingConfig(concepts=(dataclasses.replace(concept, class_data_dir="mine"),),
                        with_prior_preservation=True), False),
    ):  # fmt: skip
        write_json(run.config_path, settings.to_json())
        planned = plan(workspace, ["class images"])
        assert bool(planned.deletions) != stays
        assert any("dog can be resumed only with them" in sentence for sentence in planned.kept) == stays
    os.utime(workspace.data_dir / CLASS_IMAGES, (time.time() - 60,) * 2)
    planned = plan(workspace, ["class images"])
    assert planned.deletions == ()
    assert "within the last hour" in planned.kept[0]


def test_a_living_or_newborn_servers_copies_stay(workspace: Workspace) -> None:
    written(workspace.room("page") / "newborn" / "upload.png")
    living = workspace.room("page") / "living" / "lock"
    written(living.parent / "upload.png")
    with held_elsewhere(living):
        planned = plan(workspace, ["caches"])
        assert [one.path.name for one in planned.deletions] == ["dead"]
    os.utime(workspace.room("page") / "newborn", (1e9, 1e9))
    assert len(plan(workspace, ["caches"]).deletions) == 3


def test_what_cannot_be_deleted_is_told(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(DreamBoothError, match="cannot be deleted"):
        carry_out(workspace, plan(workspace, ["intermediate weights"]))


def test_a_saved_model_is_exactly_the_listed_names(tiny_base_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(tiny_base_folder, run.step_folder(3))
    assert remove_weights(run, 3) > 10**5
    assert listing(run.path) == set(), "nothing that write_model writes is left"


@pytest.mark.parametrize("kind", ["missing", "a file", "a broken repository"])
def test_the_hubs_cache_may_be_anything(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cache = tmp_path / "hub"
    if kind == "a file":
        cache.write_text("x")
    if kind == "a broken repository":
        written(cache / "models--a--b" / "snapshots" / "file")
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(cache))
    assert [one for one in usage(workspace) if "Hub" in one.kind] == []


def test_one_run_anywhere_the_seeds_included(tmp_path: Path) -> None:
    elsewhere = Workspace(tmp_path / "other")
    run = a_run(elsewhere, "seed")
    run.config_path.unlink()
    data = Workspace(tmp_path / "data")
    assert run_to_clean(run.path) == run
    assert carry_out(data, plan(data, ["intermediate weights"], [run])) == 200 * len(MODEL)
    assert run.steps() == [10]
    with pytest.raises(RunFolderError, match="holds no run"):
        run_to_clean(tmp_path)


# Retention -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> TrainingConfig:
    return quick_settings(
        tiny_base_folder, photos, seed=1, max_train_steps=5, save_interval=1, output_dir=str(tmp_path / "run"),
        num_crop_variants=1, save_sample_prompt="photo of dog", n_save_sample=1, save_infer_steps=1, lr_warmup_steps=0,
        save_total_limit=2,
    )  # fmt: skip


def test_the_newest_models_are_kept_and_all_samples(config: TrainingConfig) -> None:
    at_most = 0

    def watch(event: Event) -> None:
        nonlocal at_most
        if isinstance(event, ModelSaved):
            at_most = max(at_most, len(RunFolder(Path(str(config.output_dir))).steps()))

    run = RunFolder(train(config, on_event=watch).parent)
    assert run.steps() == [4, 5]
    assert at_most == 3
    assert sorted(run.samples()) == [0, 1, 2, 3, 4, 5]
    assert all((run.step_folder(step) / "args.json").exists() for step in range(1, 6))


def test_a_resumed_run_with_few_models_is_the_same_run(config: TrainingConfig, tmp_path: Path) -> None:
    """Stopped after step 3 and resumed from the state of step 2, so that it comes by steps whose weights are gone."""
    whole = RunFolder(train(config).parent)
    controls = Controls()
    other = dataclasses.replace(config, output_dir=str(tmp_path / "other" / "run"), checkpoints_total_limit=5)
    run = RunFolder(Path(str(other.output_dir)))

    def stop(event: Event) -> None:
        if isinstance(event, SamplesMade) and event.step == 3:
            controls.stop.set()

    train(other, controls=controls, on_event=stop, settings=Settings(data_dir=tmp_path / "data"))
    assert run.steps() == [2, 3]
    shutil.rmtree(run.checkpoints / "3")
    shutil.rmtree(run.checkpoints / "2")
    assert run.checkpoint_steps() == [1]
    resume(run.path)
    assert run.steps() == [4, 5]
    for name in ("5/unet/diffusion_pytorch_model.safetensors", "4/unet/diffusion_pytorch_model.safetensors"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    names = [listing(folder.path) for folder in (run, whole)]
    assert {name for name in names[0] if not name.startswith(".run")} == {
        name for name in names[1] if not name.startswith(".run")
    }


@pytest.mark.parametrize("moment", [pytest.param("before", marks=pytest.mark.reliability), "amid"])
def test_a_run_killed_at_the_last_removal_resumes_to_the_same_files(
    config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    whole = RunFolder(train(config).parent)
    run = RunFolder(tmp_path / "other" / "run")

    class Killed(BaseException):
        pass

    def dying(of: RunFolder, step: int) -> int:
        if step == 3:
            if moment == "amid":
                for file in weight_files(of, step)[:3]:
                    file.unlink()
            raise Killed
        return remove_weights(of, step)

    with monkeypatch.context() as patch:
        patch.setattr("dreambooth.training.saving.remove_weights", dying)
        with pytest.raises(Killed):
            train(dataclasses.replace(config, output_dir=str(run.path)))
    assert run.steps() == [3, 4, 5] if moment == "before" else [4, 5]
    resume(run.path)
    names = [{name for name in listing(of.path) if not name.startswith(".run")} for of in (run, whole)]
    assert names[0] == names[1]


def test_a_limit_touches_only_what_this_run_saved(config: TrainingConfig, tmp_path: Path) -> None:
    run = RunFolder(Path(str(config.output_dir)))
    other = RunFolder(train(dataclasses.replace(config, seed=2, output_dir=str(tmp_path / "other"))).parent)

    def put_in(event: Event) -> None:
        if isinstance(event, ModelSaved) and event.step == 1:
            shutil.copytree(other.step_folder(5), run.step_folder(77))
            for file in MODEL:
                written(run.step_folder(66) / file)

    train(config, on_event=put_in)
    assert run.steps() == [4, 5, 66, 77]
    assert saved_steps(run, config) == [1, 2, 3, 4, 5]
    assert saved_steps(run) == [1, 2, 3, 4, 5, 77]


def test_what_was_just_saved_stays_though_newer_ones_are_there(config: TrainingConfig, tmp_path: Path) -> None:
    """Resumed from an old state and stopped: the step it was stopped at is below the newest one."""
    config = dataclasses.replace(config, save_interval=4, save_total_limit=1, checkpointing_steps=1,
                                 checkpoints_total_limit=9, max_train_steps=9)  # fmt: skip
    run, controls = RunFolder(Path(str(config.output_dir))), Controls()

    def stop_at(step: int) -> None:
        controls.stop.clear()

        def stop(event: Event) -> None:
            if getattr(event, "phase", "") == "training" and getattr(event, "done", 0) == step:
                controls.stop.set()

        (train(config, controls=controls, on_event=stop) if not run.path.exists() else
         resume(run.path, controls=controls, on_event=stop))  # fmt: skip

    stop_at(8)
    assert run.steps() == [8]
    for step in run.checkpoint_steps():
        if step > 5:
            shutil.rmtree(run.checkpoints / str(step))
    stop_at(6)
    assert run.steps() == [6, 8]
    resume(run.path)
    assert run.steps() == [9]


def test_a_limit_counts_in_the_need_of_disk_but_not_for_samples_and_copies(config: TrainingConfig) -> None:
    from dreambooth.models.base import load_base

    base = load_base(config.pretrained_model_name_or_path)
    counts = counts_of_base(base)
    limited, free = (
        disk.disk_need(dataclasses.replace(config, save_total_limit=limit), counts, 5) for limit in (1, None)
    )
    assert (limited.num_models, free.num_models) == (2, 5)
    assert free.total_bytes - limited.total_bytes == 3 * free.model_bytes
    assert limited.picture_bytes == free.picture_bytes
    assert limited.kept_bytes == free.kept_bytes, "a Drive keeps every copy"


def test_weights_that_cannot_be_removed_do_not_end_a_run(
    config: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: RunFolder, step: int) -> int:
        raise RunFolderError("It cannot be deleted.", "Permission denied.", "")

    monkeypatch.setattr("dreambooth.training.saving.remove_weights", refused)
    events: list[Event] = []
    run = RunFolder(train(config, on_event=events.append).parent)
    assert run.steps() == [1, 2, 3, 4, 5]
    assert any(isinstance(event, Notice) and "Permission denied. It stays" in event.text for event in events)
