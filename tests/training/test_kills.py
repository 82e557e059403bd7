"""Runs that are really killed, from outside and without warning, and what becomes of them.

R-numbers are those of docs/reliability.md. Children are forked from this process, which has all libraries loaded: a
kill costs a second, not ten.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.events import Event, StepLoss
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import resume, train
from tests.harness.children import EXIT_WAIT_S, assert_same_run, exit_status, in_child, outcome, reached
from tests.harness.local_hub import local_hub
from tests.harness.trained import quick_settings

VARIANTS: dict[str, dict[str, Any]] = {
    "UNet": {},
    "text encoder": {"train_text_encoder": True},
    "prior and average": {"with_prior_preservation": True, "use_ema": True},
}


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path) -> Callable[..., TrainingConfig]:
    def made(**changes: Any) -> TrainingConfig:
        values = {
            "max_train_steps": 12, "seed": 3, "num_crop_variants": 1, "save_interval": 5, "checkpointing_steps": 1,
            "save_precision": "fp32", "with_prior_preservation": False, "save_sample_prompt": "photo of zwx dog",
            "n_save_sample": 1,
        }  # fmt: skip
        return quick_settings(tiny_base_folder, photos, **(values | changes))

    return made


def killed_at_random(
    settings: TrainingConfig, folder: Path, rng: random.Random, num_kills: int, part_s: float
) -> tuple[int, int]:
    """Train to the end through kills at random moments; returns how many hit, and how many hit a save."""
    run, hits, in_saves = RunFolder(folder), 0, 0

    def go_on() -> None:
        if run.config_path.exists():
            resume(folder)
        else:
            train(replace(settings, output_dir=str(folder)))

    for _ in range(num_kills):
        child = in_child(go_on)
        time.sleep(rng.uniform(0.1, 1.0) * part_s)
        os.kill(child, signal.SIGKILL)
        if exit_status(child) is not None:
            break
        hits += 1
        in_saves += read_state(run).phase == "saving" if run.state_path.exists() else 0
    if read_state(run).status != "done":
        assert exit_status(in_child(go_on)) == 0
    assert read_state(run).status == "done"
    return hits, in_saves


def through_kills(config: Callable[..., TrainingConfig], tmp_path: Path, num_kills: int, seed: int) -> tuple[int, int]:
    rng, hits, in_saves = random.Random(seed), 0, 0
    wholes: dict[str, tuple[dict[str, bytes], list[Any]]] = {}
    part_s: dict[str, float] = {}
    number = 0
    while hits < num_kills:
        name = list(VARIANTS)[number % len(VARIANTS)]
        settings = config(**VARIANTS[name])
        if name not in wholes:
            began_s = time.monotonic()
            whole = tmp_path / f"whole {name}" / "run"
            assert exit_status(in_child(partial(train, replace(settings, output_dir=str(whole))))) == 0
            wholes[name], part_s[name] = outcome(whole), time.monotonic() - began_s
        folder = tmp_path / f"killed {number}" / "run"
        more, saving = killed_at_random(settings, folder, rng, min(3, num_kills - hits), part_s[name])
        assert_same_run(folder, wholes[name], f"run {number} ({name})")
        left = [entry for entry in folder.rglob(".*") if entry.name != ".run"]
        assert left == [], "orphans are gone after the next start"
        hits, in_saves, number = hits + more, in_saves + saving, number + 1
    return hits, in_saves


def test_runs_killed_at_random_moments_end_bit_for_bit_the_same(
    config: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    """R1, the push tier: 2 kills."""
    hits, _ = through_kills(config, tmp_path, 2, seed=1)
    assert hits >= 2


@pytest.mark.reliability
def test_a_hundred_kills_end_bit_for_bit_the_same(config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    """R1, the long tier: 100 kills, a fifth of them while something is saved."""
    hits, in_saves = through_kills(config, tmp_path, 100, seed=2)
    print(f"R1: {hits} kills, {in_saves} of them during a save, all runs identical")
    assert hits >= 100
    assert in_saves >= 20


# Every write ---------------------------------------------------------------------------------------------------------


def dying_at_write(number: int, work: Callable[[], Any]) -> Callable[[], None]:
    """Return the work as a process does it that is killed at its n-th write to the disk."""

    def die() -> None:
        from dreambooth import durable

        original, count = durable.sync, 0

        def sync(path: Path) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            original(path)

        durable.sync = sync
        work()

    return die


def end_after_death(settings: TrainingConfig, folder: Path, number: int) -> bool:
    """Train with a kill at a write, go on to the end; False when the run ended before that many writes."""
    run = RunFolder(folder)
    start = partial(train, replace(settings, output_dir=str(folder)))
    if exit_status(in_child(dying_at_write(number, start))) == 0:
        return False
    if run.config_path.exists() and read_state(run).status == "done":
        return True  # the write that says so was the last
    if run.config_path.exists():
        assert exit_status(in_child(lambda: resume(folder))) == 0, f"write {number}"
    else:
        assert exit_status(in_child(start)) == 0, f"write {number}"
    return True


def test_a_run_killed_at_a_write_of_any_phase_goes_on_exactly(
    config: Callable[..., TrainingConfig], tmp_path: Path, own_home: Path
) -> None:
    """R3, the push tier: writes of records, class images, samples, models, states and pruning."""
    settings = config(max_train_steps=4, with_prior_preservation=True, checkpointing_steps=2, save_interval=2)
    wanted = outcome(train(replace(settings, output_dir=str(tmp_path / "whole" / "run"))).parent)
    for number in (1, 8, 25, 60, 110):
        died = end_after_death(settings, tmp_path / str(number) / "run", number)
        assert died or number > 60
        assert_same_run(tmp_path / str(number) / "run", wanted, f"write {number}")
        left = [entry for folder in (tmp_path, own_home) for entry in folder.rglob(".*-????????")]
        assert left == [], "orphans are gone after the next start"


@pytest.mark.reliability
def test_a_run_killed_at_each_of_its_writes_goes_on_exactly(
    config: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    """R3, the long tier: every single write of a run."""
    settings = config(max_train_steps=4, with_prior_preservation=True, checkpointing_steps=2, save_interval=2)
    wanted = outcome(train(replace(settings, output_dir=str(tmp_path / "whole" / "run"))).parent)
    number = 1
    while end_after_death(settings, tmp_path / str(number) / "run", number):
        assert_same_run(tmp_path / str(number) / "run", wanted, f"write {number}")
        number += 1
    print(f"R3: killed at each of {number - 1} writes, all runs identical")
    assert number > 40


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_killed_conversion_leaves_no_file_and_can_be_done_again(
    tiny_base_folder: Path, tmp_path: Path, number: int
) -> None:
    """R3: a file for other tools is whole or not there, and what was left of it goes at the next conversion."""
    from dreambooth.export.single_file import convert

    out = tmp_path / "model.safetensors"
    status = exit_status(in_child(dying_at_write(number, partial(convert, tiny_base_folder, out))))
    assert not out.exists() or status == 0 or number > 1, "the name appears with the whole contents only"
    first = out.read_bytes() if out.exists() else None
    convert(tiny_base_folder, tmp_path / "again.safetensors")
    if first is not None:
        assert first == (tmp_path / "again.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "file"), ("model.ckpt", "file"),
                                            ("weak.safetensors", "folder"), ("model.zip", "file")])  # fmt: skip
def test_what_a_killed_export_left_goes_with_the_next_one_into_that_folder(
    tiny_base_folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """R3: of a file, of the folder of a weaker model, and never of a process that lives."""
    from dreambooth.durable import new_file, scratch_folder
    from dreambooth.export.archive import zip_model
    from dreambooth.export.single_file import convert

    def held() -> None:
        with (new_file if kind == "file" else scratch_folder)(tmp_path / name) as unfinished:
            (unfinished if kind == "file" else unfinished / "part").write_bytes(bytes(1000))
            time.sleep(EXIT_WAIT_S)

    child = in_child(held)
    end_s = time.monotonic() + EXIT_WAIT_S
    while not [*tmp_path.glob(".*"), *tmp_path.glob(".*/part")] and time.monotonic() < end_s:
        time.sleep(0.01)
    others = (tmp_path / ".notes.txt.99999999-0123abcd", tmp_path / ".profile")
    for other in others:
        other.write_text("somebody's")
    convert(tiny_base_folder, tmp_path / "one.safetensors")
    unfinished = {entry.name for entry in tmp_path.glob(".*")} - {other.name for other in others}
    assert len(unfinished) == 1, "its process lives"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert {entry.name for entry in tmp_path.glob(".*")} > unfinished, "a kill leaves it"
    again = partial(zip_model, tiny_base_folder) if name == "model.zip" else partial(convert, tiny_base_folder)
    again(tmp_path / ("two.zip" if name == "model.zip" else "two.safetensors"))
    assert set(tmp_path.glob(".*")) == set(others)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_killed_ingest_leaves_no_half_photo_and_can_be_done_again(photos: Path, tmp_path: Path, number: int) -> None:
    """R3: a photo in a run's folder is whole or not there, and what was left of it goes at the next start."""
    from dreambooth.data.photos import ingest, read_photo
    from dreambooth.durable import sweep_unfinished

    folder = tmp_path / "set"
    sources = sorted(photos.glob("*.png"))[:2]
    exit_status(in_child(dying_at_write(number, lambda: [ingest(source, folder) for source in sources])))
    there = [path for path in folder.glob("*") if not path.name.startswith(".")]
    for path in there:
        assert read_photo(path).image.size == (48, 48)
    sweep_unfinished(tmp_path)
    assert not list(folder.glob(".*"))
    for source in sources[len(there) :]:
        ingest(source, folder)
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("served_bytes", [2_000, 500_000, 1_500_000])
def test_a_killed_download_goes_on_and_ends_with_the_same_base(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served_bytes: int
) -> None:
    """R3: killed while the Hub's files come, each time after more of them; the next call has them all."""
    from huggingface_hub import constants

    from dreambooth.models.base import load_base
    from dreambooth.models.fingerprint import weights_fingerprint

    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(constants, name, name == "HF_HUB_DISABLE_XET")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with local_hub(tiny_base_folder) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        hub.hold_after_bytes = served_bytes
        child = in_child(partial(load_base, "somebody/tiny"))
        assert hub.held.wait(60), "the download never came so far"
        os.kill(child, signal.SIGKILL)
        assert exit_status(child) is None
        hub.hold_after_bytes = None
        base = load_base("somebody/tiny")
    whole = load_base(str(tiny_base_folder))
    assert weights_fingerprint(base.unet, base.text_encoder) == weights_fingerprint(whole.unet, whole.text_encoder)


# Signals -------------------------------------------------------------------------------------------------------------


def command(settings: TrainingConfig, folder: Path) -> int:
    """Run the command line's training, signal handlers included."""
    import json

    from dreambooth.commands.cli import main

    file = folder.with_suffix(".json")
    file.write_text(json.dumps(settings.to_json()))
    return main(["train", "--config", str(file), "--output_dir", str(folder)])


def signalled(
    settings: TrainingConfig, folder: Path, at_step: int, number: int, *, is_held: bool = False
) -> tuple[int | None, float]:
    """Send the signal once the step is told of; with `is_held` the run waits there for it, however slow we are."""
    go_on = folder.with_suffix(".go-on")
    work = partial(held_command, at_step, go_on) if is_held else command
    child = in_child(lambda: os._exit(work(settings, folder)))
    reached(RunFolder(folder), at_step)
    os.kill(child, number)
    go_on.touch()
    began_s = time.monotonic()
    return exit_status(child), time.monotonic() - began_s


def held_command(at_step: int, go_on: Path, settings: TrainingConfig, folder: Path) -> int:
    """Run the command line's training, which stands still from this step's record until the file is there."""
    from dreambooth.records.runlog import RunLog

    record = RunLog.__call__

    def recorded(log: RunLog, event: Event) -> None:
        record(log, event)
        while isinstance(event, StepLoss) and event.step >= at_step and not go_on.exists():
            time.sleep(0.01)

    RunLog.__call__ = recorded  # type: ignore[method-assign]
    return command(settings, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_so(
    config: Callable[..., TrainingConfig], tmp_path: Path, number: signal.Signals
) -> None:
    """R8: exit status 0, a model and a state of the step it was at, and the rest is the run that never ended."""
    settings = config(max_train_steps=16, checkpointing_steps=0, save_interval=16)
    folder = tmp_path / "run"
    status, _ = signalled(settings, folder, 4, number, is_held=True)
    run = RunFolder(folder)
    assert status == 0
    assert read_state(run).status == "stopped"
    (step,) = run.checkpoint_steps()
    assert run.steps() == [step]
    assert 4 <= step < 16
    assert resume(folder).name == "16"
    whole = train(replace(settings, output_dir=str(tmp_path / "whole")))
    for file in whole.rglob("*.safetensors"):
        assert (folder / "16" / file.relative_to(whole)).read_bytes() == file.read_bytes()


@pytest.mark.reliability
def test_fifty_signals_at_random_steps_all_leave_a_state(config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    """R8, the long tier: 50 of 50 exit 0 with a state of the current step."""
    rng = random.Random(8)
    slowest_s = 0.0
    for number in range(50):
        folder = tmp_path / str(number)
        status, seconds = signalled(config(max_train_steps=60, checkpointing_steps=0), folder, rng.randrange(1, 20), 15)
        run = RunFolder(folder)
        assert status == 0
        assert read_state(run).status == "stopped"
        assert max(run.checkpoint_steps()) == max(run.steps()) == read_state(run).step
        slowest_s = max(slowest_s, seconds)
    print(f"R8: 50 of 50, the slowest in {slowest_s:.2f} s")


def leaves_at_once(settings: TrainingConfig, folder: Path) -> float:
    """Signal until the process is gone, amid a step that never ends; returns the seconds, fails where it saved.

    Two signals in a row may reach a process as one, so the second is sent until it has come.
    """
    child = in_child(lambda: os._exit(held_command(2, folder.with_suffix(".never"), settings, folder)))
    reached(RunFolder(folder), 2)
    began_s = time.monotonic()
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() - began_s < EXIT_WAIT_S:
        os.kill(child, signal.SIGTERM)
        time.sleep(0.02)
    assert ended[0], "it waits for its step"
    assert os.WTERMSIG(ended[1]) == signal.SIGTERM
    assert RunFolder(folder).steps() == []
    return time.monotonic() - began_s


def test_a_second_signal_leaves_at_once(config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    """R8: without a save, and without the end of the step it is at."""
    leaves_at_once(config(max_train_steps=60, checkpointing_steps=0, train_batch_size=8), tmp_path / "run")


@pytest.mark.reliability
def test_ten_second_signals_leave_at_once(config: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    """R8, the long tier."""
    settings = config(max_train_steps=60, checkpointing_steps=0, train_batch_size=8)
    slowest_s = max(leaves_at_once(settings, tmp_path / f"run {number}") for number in range(10))
    print(f"R8: 10 of 10, the slowest in {slowest_s:.2f} s")
