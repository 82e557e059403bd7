"""A resumed run is the run that never ended; what is damaged is set aside, and nothing ever starts again in silence.

R-numbers are those of docs/reliability.md.
"""

import dataclasses
import errno
import itertools
import json
import os
import shutil
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError, DreamBoothError, RunFolderError, TrainingError
from dreambooth.events import Event, Notice, PhaseProgress, Resumed, StepLoss, losses_of, read_events
from dreambooth.formats.json_file import MAX_JSON_BYTES
from dreambooth.models.manager import ModelManager
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs import run as runs
from dreambooth.runs.run import resume, train
from dreambooth.training import checkpoint, objective, run_identity
from dreambooth.training.batches import BatchMaker
from dreambooth.training.checkpoint import Checkpoint, newest_checkpoint
from dreambooth.training.materials import RunContext
from dreambooth.training.rates import LearningRates
from dreambooth.training.trainer import Trainer
from dreambooth.training.updates import UpdatesInBackward
from tests.harness.killed_runs import Killed
from tests.harness.tiny import tiny_base, tiny_sdxl_base
from tests.harness.trained import Run, quick_settings

NUM_STEPS = 8


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return all that changes in a training: weights, moments, averages."""
    learner = trainer._learner
    found = {f"unet.{key}": value for key, value in trainer._base.unet.state_dict().items()}
    found |= {f"text.{key}": value for key, value in trainer._base.text_encoder.state_dict().items()}
    for number, parameter in enumerate(learner.parameters):
        found[f"learns.{number}"] = parameter
        for key, value in learner.optimizer.state[parameter].items():
            found[f"moment.{number}.{key}"] = torch.as_tensor(value)
    for number, shadow in enumerate(learner.ema.shadow_params if learner.ema else []):
        found[f"average.{number}"] = shadow
    return {key: value.detach().clone() for key, value in found.items()}


def files_of(run: RunFolder) -> dict[str, bytes]:
    """Return the contents of all models and sample pictures, our own records aside."""
    files = [file for file in run.path.rglob("*") if file.is_file() and ".run" not in file.parts]
    return {str(file.relative_to(run.path)): file.read_bytes() for file in files if file.name != "args.json"}


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path) -> Callable[..., TrainingConfig]:
    def made(num_photos: int = 3, **changes: Any) -> TrainingConfig:
        from PIL import Image

        for number in range(num_photos):
            Image.radial_gradient("L").resize((40 + number, 48)).convert("RGB").save(photos / f"{number}.png")
        for number in range(num_photos, 3):
            (photos / f"{number}.png").unlink()
        values = {
            "max_train_steps": NUM_STEPS, "log_interval": 3, "save_interval": 3, "checkpointing_steps": 2,
            "with_prior_preservation": False,
        }  # fmt: skip
        return quick_settings(tiny_base_folder, photos, **(values | changes))

    return made


def die_at(monkeypatch: pytest.MonkeyPatch, step: int, micro_step: int = 0) -> None:
    """Kill the run when it asks for this batch."""
    original = BatchMaker.batch

    def batch(self: BatchMaker, at_step: int, at_micro_step: int) -> Any:
        if (at_step, at_micro_step) == (step, micro_step):
            raise Killed
        return original(self, at_step, at_micro_step)

    monkeypatch.setattr(BatchMaker, "batch", batch)


CASES = [
    pytest.param(5, {"num_photos": photos, "with_prior_preservation": prior}, id=f"{photos} photos, prior {prior}")
    for photos, prior in itertools.product((1, 5, 7), (False, True))
] + [
    pytest.param(step, {"num_photos": 5}, id=f"killed at step {step} of an epoch of 5") for step in (2, 3, 4, 6, 7)
] + [
    pytest.param(5, {"train_text_encoder": True}, id="text encoder"),
    pytest.param(5, {"train_text_encoder": True, "text_encoder_stop_step": 3}, id="text encoder stopped before"),
    pytest.param(3, {"train_text_encoder": True, "text_encoder_stop_step": 6}, id="text encoder stops after"),
    pytest.param(5, {"train_text_encoder": True, "text_encoder_stop_step": 4}, id="text encoder stops at the state"),
    pytest.param(5, {"use_ema": True}, id="moving average"),
    pytest.param(
        5,
        {
            "with_prior_preservation": True, "teacher_prior": True, "keep_class_latents": True, "gauge_interval": 2,
            "stratified_timesteps": True, "caption_dropout": 0.3, "noise_offset": 0.1, "background_weight": 0.3,
        },
        id="all options of the recipe",
    ),
    pytest.param(5, {"update_in_backward": True, "max_grad_norm": 0.0}, id="updates inside backward"),
    pytest.param(5, {"use_8bit_adam": True}, id="8-bit AdamW"),
    pytest.param(5, {"lr_scheduler": "cosine", "lr_warmup_steps": 3}, id="cosine schedule"),
    pytest.param(5, {"not_cache_latents": True}, id="latents not cached"),
    pytest.param(5, {"train_batch_size": 2, "hflip": True}, id="batches of 2, mirrored"),
    pytest.param(5, {"gradient_checkpointing": True}, id="gradient checkpointing"),
    pytest.param(5, {"save_sample_prompt": "photo of zwx dog", "n_save_sample": 1}, id="samples"),
    pytest.param(4, {"checkpointing_steps": 1, "save_interval": 1}, id="a state at every step"),
    pytest.param(5, {"method": "lora", "train_text_encoder": True}, id="LoRA"),
    pytest.param(5, {"method": "lora", "lora_targets": "all", "use_ema": True}, id="LoRA with an average"),
    pytest.param(
        5,
        {
            "method": "lora", "train_text_encoder": True, "text_encoder_stop_step": 4, "gradient_checkpointing": True,
            "with_prior_preservation": True, "teacher_prior": True, "save_sample_prompt": "photo of zwx dog",
            "n_save_sample": 1,
        },
        id="LoRA whose text encoder stops at the state",
    ),
]  # fmt: skip


@pytest.mark.usefixtures("plain_kernels")
def test_a_killed_run_in_bf16_resumes_bit_for_bit(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R4: under autocast too, and with weights that are rounded at random."""
    compare_killed_with_whole(config(mixed_precision="bf16"), tmp_path / "masters", monkeypatch, step=5)
    monkeypatch.undo()
    lean = {"weight_precision": "bf16", "update_in_backward": True, "max_grad_norm": 0.0, "use_8bit_adam": True}
    compare_killed_with_whole(config(mixed_precision="bf16", **lean), tmp_path / "rounded", monkeypatch, step=5)
    monkeypatch.undo()
    compare_killed_with_whole(config(mixed_precision="bf16", method="lora"), tmp_path / "lora", monkeypatch, step=5)


@pytest.mark.parametrize(("step", "changes"), CASES)
def test_a_killed_run_resumes_bit_for_bit(
    config: Callable[..., TrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    changes: dict[str, Any],
) -> None:
    """R4: weights, moments, averages, losses, models and samples equal those of the run that never ended."""
    compare_killed_with_whole(config(**changes), tmp_path, monkeypatch, step)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_killed_run_of_sdxl_resumes_bit_for_bit(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    base = str(tiny_sdxl_base(tmp_path / "base"))
    changes = {"pretrained_model_name_or_path": base, "method": method, "train_text_encoder": True, "pad_tokens": True}
    compare_killed_with_whole(config(**changes), tmp_path, monkeypatch, step=5)


def compare_killed_with_whole(
    settings: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Train once whole and once killed at a step and resumed; everything has to be equal."""
    whole = Run(settings, tmp_path / "whole")
    wanted = everything(whole.train_anew())

    first = Run(settings, tmp_path / "killed")
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Killed):
            first.train_anew()
    second = Run(settings, tmp_path / "killed")
    found = everything(second.train_anew(second.newest_state()))

    assert found.keys() == wanted.keys()
    assert [key for key in wanted if not torch.equal(wanted[key], found[key])] == []
    events: list[tuple[float, Event]] = [(0.0, event) for event in (*first.events, *second.events)]
    assert losses_of(events) == [event for event in whole.events if isinstance(event, StepLoss)]
    assert files_of(second.folder) == files_of(whole.folder)
    assert second.folder.checkpoint_steps() == [max(second.folder.steps())], "a complete run keeps the last one alone"


@pytest.mark.parametrize("micro_step", [0, 1, 2])
def test_a_run_killed_inside_an_accumulation_window_resumes_bit_for_bit(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro_step: int
) -> None:
    """R4: gradients that were not yet applied are made again."""
    settings = config(gradient_accumulation_steps=3, max_train_steps=5)
    wanted = everything(Run(settings, tmp_path / "whole").train_anew())
    with monkeypatch.context() as patch:
        die_at(patch, 3, micro_step)
        with pytest.raises(Killed):
            Run(settings, tmp_path / "killed").train_anew()
    second = Run(settings, tmp_path / "killed")
    found = everything(second.train_anew(second.newest_state()))
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)


def test_a_stopped_run_keeps_its_state_and_goes_on(config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    settings = config(checkpointing_steps=0)
    wanted = everything(Run(settings, tmp_path / "whole").train_anew())
    first = Run(settings, tmp_path / "stopped")
    first.press = lambda event: (
        first.controls.stop.set()
        if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", 5)
        else None
    )
    first.train_anew()
    assert first.folder.steps()[-1] == 5
    second = Run(settings, tmp_path / "stopped")
    state = second.newest_state()
    assert state.step == 5
    found = everything(second.train_anew(state))
    assert all(torch.equal(wanted[key], found[key]) for key in wanted)
    assert Resumed(5) in second.events


# Through the front door ----------------------------------------------------------------------------------------------


def killed_run(settings: TrainingConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> RunFolder:
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Killed):
            train(dataclasses.replace(settings, output_dir=str(folder)))
    return RunFolder(folder)


def dead_process() -> int:
    """Return the id of a process that is no more."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_killed_run_is_shown_as_interrupted_and_resumes(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R15: the state on disk is all that is needed."""
    run = killed_run(config(), tmp_path / "run", monkeypatch, 5)
    assert read_state(run).status == "interrupted"
    (run.path / f".7.{dead_process()}-01234567").mkdir()
    last = resume(run.path)
    assert last.name == str(NUM_STEPS)
    assert read_state(run).status == "done"
    assert [entry.name for entry in run.path.iterdir() if entry.name.startswith(".")] == [".run"], "orphans are swept"
    with pytest.raises(RunFolderError, match="complete"):
        resume(run.path)


def test_a_run_that_had_trained_never_starts_again_in_silence(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_run(config(checkpointing_steps=0, log_interval=1), tmp_path / "run", monkeypatch, 5)
    assert run.checkpoint_steps() == [3], "a state beside each saved model"
    (run.checkpoints / "3" / "values.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(DreamBoothError, match="no valid state"):
            resume(run.path)


@pytest.mark.parametrize("step", [0, 1])
def test_a_run_killed_before_its_first_state_starts_again_and_says_so(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run = killed_run(config(log_interval=1), tmp_path / "run", monkeypatch, step)
    events: list[Event] = []
    assert resume(run.path, on_event=events.append).name == str(NUM_STEPS)
    assert any(isinstance(event, Notice) and "starts again at its first step" in event.text for event in events)
    losses = losses_of(read_events(run.events_path))
    assert [loss.step for loss in losses] == list(range(1, NUM_STEPS + 1))


def test_other_photos_are_refused(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    run = killed_run(config(), tmp_path / "run", monkeypatch, 5)
    (photos / "2.png").write_bytes((photos / "1.png").read_bytes())
    with pytest.raises(DreamBoothError, match="photos or class images are not those"):
        resume(run.path)


def test_other_captions_and_another_base_are_refused(
    config: Callable[..., TrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    tiny_base_folder: Path,
) -> None:
    base, caption = tmp_path / "base", photos / "0.txt"
    shutil.copytree(tiny_base_folder, base)
    caption.write_text("photo of zwx dog on a beach")
    settings = config(pretrained_model_name_or_path=str(base), read_prompts_from_txts=True)
    run = killed_run(settings, tmp_path / "run", monkeypatch, 5)
    caption.write_text("photo of zwx dog in the snow")
    with pytest.raises(DreamBoothError, match="captions are not those"):
        resume(run.path)
    caption.write_text("photo of zwx dog on a beach")
    shutil.rmtree(base)
    tiny_base(base, seed=1)
    with pytest.raises(DreamBoothError, match="weights of the base model are not those"):
        resume(run.path)
    as_from_before_they_were_noted(run)
    assert resume(run.path).name == str(NUM_STEPS)


def as_from_before_they_were_noted(run: RunFolder) -> None:
    """Take captions and base out of the manifests of a run's states."""
    for file in run.checkpoints.glob("*/manifest.json"):
        without = {"digest", "captions", "base"}
        manifest = {name: value for name, value in json.loads(file.read_text()).items() if name not in without}
        file.write_text(json.dumps(manifest | {"digest": run_identity.value_hash(manifest)}))


def test_a_refused_run_leaves_no_hook_that_holds_its_weights(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = config(update_in_backward=True, max_grad_norm=0.0)
    state = newest_checkpoint(killed_run(lean, tmp_path / "run", monkeypatch, 5), pytest.fail)
    assert state is not None
    hooked: list[Any] = []
    original = UpdatesInBackward.__init__

    def watched(self: UpdatesInBackward, *arguments: Any) -> None:
        original(self, *arguments)
        hooked.append(self)

    monkeypatch.setattr(UpdatesInBackward, "__init__", watched)
    with pytest.raises(TrainingError, match="settings are not those"):
        Run(dataclasses.replace(lean, learning_rate=0.5), tmp_path).train(state)
    assert hooked == []
    (state.folder / "optimizer.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        Run(lean, tmp_path / "other").train(state)
    (updates,) = hooked
    assert not any(parameter._post_accumulate_grad_hooks for parameter in hooked_parameters(updates))


def hooked_parameters(updates: UpdatesInBackward) -> list[torch.Tensor]:
    return [parameter for group in updates._optimizer.param_groups for parameter in group["params"]]


def test_a_resumed_run_makes_no_pictures_of_the_base_from_taught_weights(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(save_sample_prompt="photo of zwx dog", n_save_sample=1, num_probe_images=1, max_train_steps=4)
    run = killed_run(settings, tmp_path / "run", monkeypatch, 3)
    ours = (run.step_folder(0) / "samples", run.records / "probes" / "0")
    for folder in ours:
        shutil.rmtree(folder)
    resume(run.path)
    assert not any(folder.exists() for folder in ours)


def test_other_settings_are_refused_on_the_command_line(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from dreambooth.commands.cli import main

    run = killed_run(config(), tmp_path / "run", monkeypatch, 5)
    command = ["train", "--resume_from_checkpoint", "latest", "--output_dir", str(run.path)]
    assert main([*command, "--learning_rate", "0.5"]) == 1
    assert "learning_rate: is 0.001 in the run" in capsys.readouterr().err
    assert main([*command, "--learning_rate", "0.001"]) == 0
    assert RunFolder(run.path).steps()[-1] == NUM_STEPS


def test_nothing_to_resume_is_a_sentence(tmp_path: Path, capsys: Any) -> None:
    from dreambooth.commands.cli import main

    assert main(["train", "--resume_from_checkpoint", "latest"]) == 1
    assert "finds no run" in capsys.readouterr().err
    assert main(["train", "--resume_from_checkpoint", str(tmp_path / "nowhere")]) == 1
    assert "holds no run" in capsys.readouterr().err


# Damage --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_states(config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """Return a killed run with states of the steps 2 and 4."""
    settings = config(checkpoints_total_limit=2, max_train_steps=6, save_interval=10)
    run = killed_run(settings, tmp_path / "run", monkeypatch, 5)
    assert sorted(entry.name for entry in run.checkpoints.iterdir()) == ["2", "4"]
    return run


def mutants(newest: Path) -> list[tuple[str, Callable[[], None]]]:
    """Return ways to damage a state, each as a name and a deed."""
    found: list[tuple[str, Callable[[], None]]] = []
    manifest = newest / "manifest.json"
    records = no_manifests(manifest)
    for file in sorted(newest.iterdir()):
        size = file.stat().st_size

        def truncate(file: Path = file, size: int = size) -> None:
            file.write_bytes(file.read_bytes()[: size // 2])

        def flip(file: Path = file, at: int = size // 2, bit: int = 1) -> None:
            data = bytearray(file.read_bytes())
            data[at] ^= bit
            file.write_bytes(data)

        def blank(file: Path = file, size: int = size) -> None:
            data = bytearray(file.read_bytes())
            data[size // 3 : size // 3 + 16] = bytes(255 - byte for byte in data[size // 3 : size // 3 + 16])
            file.write_bytes(data)

        found += [(f"half of {file.name}", truncate), (f"a hole in {file.name}", blank)]
        found += [(f"{file.name} gone", file.unlink), (f"{file.name} empty", lambda file=file: file.write_bytes(b""))]
        for place, bit in itertools.product(range(9), (1, 2, 8, 32, 64)):
            at = place * (size - 1) // 8
            found.append((f"bit {bit} of byte {at} of {file.name}", lambda f=flip, a=at, b=bit: f(at=a, bit=b)))
    found += [
        ("a strange file", lambda: (newest / "more.safetensors").write_bytes(b"x")),
        ("a swapped file", lambda: shutil.copy(newest.parent / "2" / "unet.safetensors", newest)),
        ("a stale manifest", lambda: shutil.copy(newest.parent / "2" / "manifest.json", newest)),
        ("another step's name", lambda: newest.rename(newest.with_name("5"))),
        ("an empty folder", lambda: (shutil.rmtree(newest), newest.mkdir())),
    ]
    found += [(f"{name} as manifest", lambda text=text: manifest.write_bytes(text)) for name, text in records.items()]
    return found  # type: ignore[return-value]


def no_manifests(manifest: Path) -> dict[str, bytes]:
    """Return contents that are no manifest although they are JSON, or nearly."""
    values, text = json.loads(manifest.read_text()), manifest.read_text()
    size = json.dumps(values["files"]["unet.safetensors"]["bytes"])
    sizes = {name: text.replace(size, name, 1).encode() for name in ("Infinity", "1e999", "-Infinity", "NaN", '"many"')}
    return sizes | {
        "a deep list": b"[" * 100_000,
        "a deep object": b'{"step":' * 100_000,
        "a number of 400 digits": text.replace(size, "1" + "0" * 400, 1).encode(),
        "half a character": text.replace('"step"', '"\\ud800": 1, "step"', 1).encode(),
        "a list": b"[1]",
        "a number": b"1",
        "files as a list": json.dumps(values | {"files": [1]}).encode(),
        "a machine as a number": json.dumps(values | {"machine": 4}).encode(),
        "a step as a list": json.dumps(values | {"step": [4]}).encode(),
        "64 MB and a byte": b"{" + bytes(MAX_JSON_BYTES),
    }


def test_a_damaged_state_is_set_aside_and_the_one_before_is_taken(two_states: RunFolder, tmp_path: Path) -> None:
    """R5: no mutant is loaded, each is reported by name, the valid state before it is used."""
    kept = tmp_path / "kept"
    shutil.copytree(two_states.checkpoints, kept)
    tried = 0
    for name, damage in mutants(two_states.checkpoints / "4"):
        shutil.rmtree(two_states.checkpoints)
        shutil.copytree(kept, two_states.checkpoints)
        damage()
        told: list[str] = []
        found = newest_checkpoint(two_states, told.append)
        tried += 1
        assert found is not None, name
        assert found.step == 2, name
        assert len(told) == 1, name
        assert "was set aside as .bad-" in told[0], name
    assert tried >= 215


@pytest.mark.parametrize("damage", ["a bit of the moments", "a deep manifest", "an infinite size"])
def test_a_resumed_run_tells_of_the_damaged_state_and_is_exact(
    two_states: RunFolder, config: Callable[..., TrainingConfig], tmp_path: Path, damage: str
) -> None:
    manifest = two_states.checkpoints / "4" / "manifest.json"
    if damage == "a bit of the moments":
        file = two_states.checkpoints / "4" / "optimizer.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        manifest.write_bytes(no_manifests(manifest)["a deep list" if damage == "a deep manifest" else "Infinity"])
    events: list[Event] = []
    last = resume(two_states.path, on_event=events.append)
    assert Resumed(2) in events
    assert any(isinstance(event, Notice) and ".bad-4" in event.text for event in events)
    whole = train(
        config(checkpoints_total_limit=2, max_train_steps=6, save_interval=10, output_dir=str(tmp_path / "whole"))
    )
    for file in sorted(whole.rglob("*.safetensors")):
        assert (last / file.relative_to(whole)).read_bytes() == file.read_bytes()


def test_of_several_processes_the_first_alone_sets_damaged_states_aside(
    two_states: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (two_states.checkpoints / "4" / "values.json").unlink()
    said: list[list[Any]] = []

    def looked(*, is_first: bool, broadcast: Callable[[list[Any]], Any]) -> Checkpoint | None:
        process = types.SimpleNamespace(num_processes=2, is_main_process=is_first)
        monkeypatch.setattr(runs, "_this_process", lambda manager: process)
        monkeypatch.setattr("accelerate.utils.broadcast_object_list", broadcast)
        context = RunContext(two_states, Workspace(two_states.path.parent / "data"), ModelManager("cpu"))
        return runs._same_state_to_resume(context)

    other = looked(is_first=False, broadcast=lambda told: told.__setitem__(0, 2))
    assert (two_states.checkpoints / "4").exists(), "it is the first one's to look at"
    first = looked(is_first=True, broadcast=lambda told: said.append([*told]))
    assert said == [[2]]
    assert other == first
    assert not (two_states.checkpoints / "4").exists()
    shutil.rmtree(two_states.checkpoints / "2")
    with pytest.raises(TrainingError, match="no valid state"):
        looked(is_first=True, broadcast=lambda told: said.append([*told]))
    with pytest.raises(TrainingError, match="no valid state"):
        looked(is_first=False, broadcast=lambda told: told.__setitem__(0, said[1][0]))


def test_a_state_of_other_settings_is_refused(two_states: RunFolder) -> None:
    values = json.loads(two_states.config_path.read_text())
    two_states.config_path.write_text(json.dumps(values | {"learning_rate": 0.5}))
    with pytest.raises(DreamBoothError, match="settings are not those"):
        resume(two_states.path)


def test_pruning_comes_after_the_new_state_and_keeps_the_newest(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    original = checkpoint.remove_folder

    def watched(folder: Path) -> None:
        seen.append(sorted(entry.name for entry in folder.parent.iterdir() if entry.name.isdecimal()))
        original(folder)

    monkeypatch.setattr(checkpoint, "remove_folder", watched)
    killed_run(config(checkpoints_total_limit=1), tmp_path / "run", monkeypatch, 7)
    assert seen == [["2", "3"], ["3", "4"], ["4", "6"]]


# Failures ------------------------------------------------------------------------------------------------------------


def test_a_full_disk_pauses_the_run_which_resumes_exactly(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: whichever file of models and states hits the end of the disk, the last valid state survives."""
    settings = config(max_train_steps=6, checkpoints_total_limit=1)
    whole = train(dataclasses.replace(settings, output_dir=str(tmp_path / "whole")))
    for number in range(1, 9):
        calls = itertools.count(1)

        def filling(write: Callable[..., Any], calls: Any = calls, number: int = number) -> Callable[..., Any]:
            def written(*arguments: Any, **options: Any) -> Any:
                result = write(*arguments, **options)
                if next(calls) == number:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return result

            return written

        folder = tmp_path / f"full {number}"
        with monkeypatch.context() as patch:
            writing = filling(checkpoint.write_safetensors)
            patch.setattr("dreambooth.models.saving.write_safetensors", writing)
            patch.setattr(checkpoint, "write_safetensors", writing)
            with pytest.raises(DreamBoothError, match="disk is full"):
                train(dataclasses.replace(settings, output_dir=str(folder)))
        run = RunFolder(folder)
        assert read_state(run).status == "paused", number
        last = resume(folder)
        for file in sorted(whole.rglob("*.safetensors")):
            assert (last / file.relative_to(whole)).read_bytes() == file.read_bytes(), number


def test_a_full_disk_costs_the_older_state_before_it_pauses_the_run(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6: with two states, one makes room for what is written; the run then goes on."""
    original, failures = checkpoint.write_safetensors, []
    folder = tmp_path / "run"

    def write_safetensors(*arguments: Any, **options: Any) -> Any:
        if len(RunFolder(folder).checkpoint_steps()) > 1:
            failures.append(sorted(RunFolder(folder).checkpoint_steps()))
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments, **options)

    monkeypatch.setattr(checkpoint, "write_safetensors", write_safetensors)
    settings = config(max_train_steps=4, checkpointing_steps=1, checkpoints_total_limit=2, output_dir=str(folder))
    events: list[Event] = []
    assert train(settings, on_event=events.append).name == "4"
    assert failures[0] == [1, 2]
    assert any(isinstance(event, Notice) and "disk is full" in event.text for event in events)


STEP = "dreambooth.training.step.step_loss"
OUT_OF_MEMORY_AT: dict[str, Iterable[int]] = {
    STEP: (1, 5),
    "dreambooth.training.batches.LatentPool._encoded": range(1, 3),
    "dreambooth.models.saving.write_model": range(1, 5),
    "dreambooth.pictures.generation.generate_images": range(1, 5),
    "dreambooth.training.checkpoint._gathered": range(1, 3),
}


@pytest.mark.parametrize(
    ("target", "numbers"),
    [
        *(pytest.param(target, numbers, id=target.rsplit(".", 1)[1]) for target, numbers in OUT_OF_MEMORY_AT.items()),
        pytest.param(STEP, range(1, 9), id="every step", marks=pytest.mark.reliability),
    ],
)
def test_out_of_memory_is_a_plain_failure_and_the_next_run_works(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str,
    numbers: Iterable[int],
) -> None:  # fmt: skip
    """R11: in a step, the VAE, a save, a sample, a state. It names settings that need less; none changes."""
    import pkgutil

    original = pkgutil.resolve_name(target)
    shared = {
        "save_interval": 2,
        "save_sample_prompt": "photo of zwx dog",
        "n_save_sample": 1,
        "save_infer_steps": 2,
        "checkpointing_steps": 2,
    }
    for number in numbers:
        calls = itertools.count(1)

        def run_out(*arguments: Any, calls: Any = calls, number: int = number, **options: Any) -> Any:
            if next(calls) == number:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")
            return original(*arguments, **options)

        settings = config(max_train_steps=8, output_dir=str(tmp_path / f"failed {number}"), **shared)
        with monkeypatch.context() as patch:
            patch.setattr(target, run_out)
            with pytest.raises(DreamBoothError, match="ran out of memory") as failure:
                train(settings)
        assert "--gradient_checkpointing" in failure.value.todo, number
        assert read_state(RunFolder(Path(str(settings.output_dir)))).status == "failed"
        if target.endswith("step_loss"):
            losses = losses_of(read_events(RunFolder(Path(str(settings.output_dir))).events_path))
            assert len(losses) <= number - 1, "no batch was skipped"
    assert train(config(max_train_steps=2, output_dir=str(tmp_path / "next"))).name == "2"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 5, 7])
def test_a_broken_loss_stops_the_run_before_the_update(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, step: int
) -> None:
    """R12: the weights stay finite, what was learned is saved, and the cause is told."""
    calls = itertools.count()
    original = objective.prior_preservation

    def broken(*arguments: Any) -> objective.Losses:
        losses = original(*arguments)
        if next(calls) == step:
            return dataclasses.replace(losses, total=losses.total * value)
        return losses

    monkeypatch.setattr(objective, "prior_preservation", broken)
    part = Run(config(), tmp_path)
    with pytest.raises(TrainingError, match=f"loss of step {step + 1} became NaN or infinite") as told:
        part.train()
    assert ("updates were too large" in told.value.why) == (step > 0), "before the first one there was none"
    assert part.folder.steps()[-1:] == ([step] if step else [])
    if step:
        from dreambooth.models.base import load_base

        base = load_base(str(part.folder.step_folder(step)))
        assert all(bool(tensor.isfinite().all()) for tensor in base.unet.state_dict().values())


def test_a_broken_gradient_stops_the_run_before_the_update(
    config: Callable[..., TrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R12: a finite loss may have an infinite gradient."""
    original = objective.prior_preservation

    def broken(prediction: torch.Tensor, *arguments: Any) -> objective.Losses:
        # The square root's slope at zero is infinite, its value is not.
        return original(prediction + 0 * (prediction * 0).sqrt(), *arguments)

    monkeypatch.setattr(objective, "prior_preservation", broken)
    part = Run(config(), tmp_path)
    with pytest.raises(TrainingError, match="gradients of step 1"):
        part.train()
    assert part.folder.steps() == []


def test_a_run_whose_weights_do_not_move_is_stopped_and_told(
    config: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    """R12: 25 updates that change no bit of any bias or norm."""
    part = Run(config(learning_rate=1e-9, adam_weight_decay=0.0), tmp_path)

    def at_zero(self: LearningRates, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LearningRates, "lower", at_zero)
        with pytest.raises(TrainingError, match="have not changed in 8 steps"):
            part.train()


def test_the_limits_of_the_new_settings_are_told(config: Callable[..., TrainingConfig]) -> None:
    with pytest.raises(ConfigError, match="checkpoints_total_limit"):
        config(checkpoints_total_limit=0)
    with pytest.raises(ConfigError, match="checkpointing_steps"):
        config(checkpointing_steps=-1)
