"""What takes how much and what of it can go: the list is exact, and nothing else is ever deleted."""

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.config import Concept, TrainingConfig
from dreambooth.errors import RunFolderError
from dreambooth.events import Controls, Event, ModelSaved
from dreambooth.runs import resume, train
from dreambooth.settings import Settings
from dreambooth.storage import CHOICES, COST, Doomed, carry_out, plan, remove_weights, run_to_clean, size_of, usage
from dreambooth.workspace import RunFolder, Workspace, held_lock, write_json

MODEL = ("model_index.json", "card.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
         "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
         "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
         "scheduler/scheduler_config.json")  # fmt: skip


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
        for kept in ("args.json", "samples/0.png", "model.ckpt", "notes.txt", "unet/my-own.txt"):
            written(run.step_folder(step) / kept)
    written(run.checkpoints / "9" / "unet.safetensors", 5000)
    return run


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "data")
    a_run(workspace, "dog")
    a_run(workspace, "cat", (7,))
    written(workspace.class_images_dir / "abc" / "0.png", 300)
    written(workspace.exports_dir / "dog.safetensors", 4000)
    written(workspace.exports_dir / "dog.zip", 4100)
    written(workspace.pictures_dir / "1.png", 50)
    written(workspace.datasets_dir / "photos" / "1.png", 70)
    written(workspace.models_dir / "mine.safetensors", 900)
    written(workspace.room("page") / "dead" / "upload.png", 60)
    return workspace


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_the_sizes_are_those_of_the_files(workspace: Workspace) -> None:
    found = {(one.kind, one.name): (one.num_bytes, one.choice) for one in usage(workspace)}
    assert found["saved model", "dog, step 2"] == (100 * len(MODEL), "intermediate weights")
    assert found["saved model", "dog, step 10"] == (100 * len(MODEL), None)
    assert found["saved model", "cat, step 7"] == (100 * len(MODEL), None)
    assert found["exact states", "dog"] == (5000, "exact states")
    assert found["export", "dog.safetensors"] == (4000, "exports")
    assert found["class images", "abc"] == (300, "class images")
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


@pytest.mark.parametrize("choice", CHOICES)
def test_each_choice_deletes_its_own_and_nothing_else(workspace: Workspace, choice: str) -> None:
    before = listing(workspace.data_dir)
    agreed = plan(workspace, [choice])  # type: ignore[list-item]
    assert listing(workspace.data_dir) == before, "looking changes nothing"
    freed = carry_out(workspace, agreed)
    gone = before - listing(workspace.data_dir)
    wanted = {
        "intermediate weights": {f"runs/dog/{step}/{file}" for step in (2, 9) for file in MODEL},
        "exact states": {"runs/dog/.run/state/9/unet.safetensors", "runs/cat/.run/state/9/unet.safetensors"},
        "class images": {"class_images/abc/0.png"},
        "exports": {"exports/dog.safetensors", "exports/dog.zip"},
        "pictures": {"pictures/1.png"},
        "caches": {"page/dead/upload.png"},
    }
    assert gone == wanted[choice]
    assert freed == agreed.num_bytes == 100 * len(gone) if choice == "intermediate weights" else freed > 0
    assert carry_out(workspace, agreed) == 0, "what is gone is gone once"


def test_what_is_not_ours_stays_and_empty_folders_go(workspace: Workspace) -> None:
    run = workspace.run("dog")
    assert remove_weights(run, 2) == 100 * len(MODEL)
    assert listing(run.step_folder(2)) == {"args.json", "samples/0.png", "model.ckpt", "notes.txt", "unet/my-own.txt"}
    assert sorted(entry.name for entry in run.step_folder(2).iterdir() if entry.is_dir()) == ["samples", "unet"]
    assert run.steps() == [9, 10]
    assert sorted(run.samples()) == [0, 2, 9, 10]


def test_a_run_at_work_is_not_touched(workspace: Workspace) -> None:
    run = workspace.run("dog")
    before = listing(run.path)
    code = "import sys; from pathlib import Path; from dreambooth.workspace import held_lock\n"
    code += "with held_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(run.lock_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    agreed = plan(workspace, ["intermediate weights", "exact states", "class images"])
    assert any("dog is at work" in sentence for sentence in agreed.kept)
    assert any("Class images stay" in sentence for sentence in agreed.kept)
    assert not any(one.path.is_relative_to(run.path) for one in agreed.doomed)
    holder.communicate("")
    # Taken up between the list and the deletion.
    agreed = plan(workspace, ["intermediate weights"])
    with held_lock(run.lock_path):
        assert carry_out(workspace, agreed) == 0
    assert listing(run.path) - before <= {".run/lock"}


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
    agreed = plan(workspace, ["intermediate weights"], [run])
    shutil.move(run.step_folder(10), tmp_path / "moved")
    run.step_folder(10).symlink_to(tmp_path / "moved")
    target = run.step_folder(10) / "model_index.json"
    forged = dataclasses.replace(agreed, doomed=(Doomed(target, 1, run), Doomed(target, 1)))
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
    return TrainingConfig(
        concepts=(Concept(instance_prompt="photo of dog", instance_data_dir=str(photos)),), seed=1,
        pretrained_model_name_or_path=str(tiny_base_folder), resolution=32, max_train_steps=5, save_interval=1,
        output_dir=str(tmp_path / "run"), train_batch_size=1, num_crop_variants=1, save_sample_prompt="photo of dog",
        n_save_sample=1, save_infer_steps=1, lr_warmup_steps=0, save_total_limit=2,
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
        if isinstance(event, ModelSaved) and event.step == 3:
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
