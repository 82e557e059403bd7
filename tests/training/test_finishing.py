"""A run that is told to finish cools down, saves and is done; killed amid it, it goes on as it would have."""

import itertools
import json
from pathlib import Path

import pytest

from dreambooth.events import StatusChanged
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import resume, train
from dreambooth.scoring.recommendation import StepScores, is_past_best
from dreambooth.training import scored_saves
from dreambooth.training.finishing import Finish, cool_down_from, read_finish
from tests.harness.watched_runs import Watcher, short_settings


def test_the_rate_is_a_function_of_the_step_alone() -> None:
    assert cool_down_from(1000, 2000) == Finish(1000, 1080)
    assert cool_down_from(10, 2000) == Finish(10, 15)
    assert cool_down_from(10, 12) == Finish(10, 12)
    factors = [Finish(4, 9).rate_factor(step) for step in range(10)]
    assert factors[:4] == [1.0] * 4
    assert factors[4:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0])
    assert all(one >= other for one, other in itertools.pairwise(factors))


def test_finish_now_cools_down_saves_and_is_done(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    watcher = Watcher(finish_at=3)
    folder = train(
        short_settings(tiny_base_folder, photos, tmp_path / "run"), controls=watcher.controls, on_event=watcher
    )
    run = RunFolder(tmp_path / "run")
    assert folder.name == "8"
    assert watcher.rates == pytest.approx([1e-3] * 3 + [1e-3 * share / 6 for share in (5, 4, 3, 2, 1)])
    assert read_finish(run.finish_path) == Finish(3, 8)
    assert read_state(run).status == "done"
    assert "finished before all 60" in [event.what for event in watcher.events if isinstance(event, StatusChanged)][-1]
    assert run.checkpoint_steps() == [max(run.steps())], "the last one stays, for more steps"


def test_a_run_ended_amid_its_cool_down_becomes_the_one_that_was_not(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    from dreambooth.models.weights import part_weights

    whole = Watcher(finish_at=3)
    first = train(short_settings(tiny_base_folder, photos, tmp_path / "a"), controls=whole.controls, on_event=whole)
    cut = Watcher(finish_at=3, stop_at=5)
    train(short_settings(tiny_base_folder, photos, tmp_path / "b"), controls=cut.controls, on_event=cut)
    assert read_state(RunFolder(tmp_path / "b")).status == "stopped"
    second = resume(tmp_path / "b")
    assert second.name == first.name == "8"
    one, other = part_weights(first / "unet"), part_weights(second / "unet")
    assert all(one[name].equal(other[name]) for name in one)


def test_a_run_is_past_its_best_when_two_saves_add_nothing() -> None:
    rising = [StepScores(step, step / 400, 1.0, 0.0) for step in (100, 200, 300)]
    assert not is_past_best(rising)
    worse = [*rising, StepScores(400, 0.75, 0.5, 0.5)]
    assert not is_past_best(worse[:4])
    assert is_past_best([*worse, StepScores(500, 0.75, 0.2, 0.8)])


def test_a_run_that_stops_when_it_is_good_does(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_saves, "is_past_best", lambda steps: len(steps) > 2)
    config = short_settings(
        tiny_base_folder, photos, tmp_path / "run", stop_when_good=True, save_interval=2, save_infer_steps=1,
        save_sample_prompt="photo of zwx dog", n_save_sample=1, num_probe_images=1,
    )  # fmt: skip
    assert train(config).name == "4"
    run = RunFolder(tmp_path / "run")
    assert run.steps() == [2, 4]
    assert read_state(run).status == "done"
    assert json.loads(run.finish_path.read_text()) == {"start": 4, "end": 4}
