"""A run on disk is scored, and its folder then says which step to take."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import RunFolderError
from dreambooth.models.base import starter_folder
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import start_records, train
from dreambooth.scoring import probes
from dreambooth.scoring import run as score
from dreambooth.scoring.encoders import judge_examiner
from dreambooth.scoring.judge import load_judge
from dreambooth.scoring.recommendation import UNSEEN_LOSS, StepScores
from dreambooth.scoring.records import RunScores, read_scores
from dreambooth.scoring.run import score_lines, score_run


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Return a run of two saved steps."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("scored")
    (folder / "photos").mkdir()
    for number in range(3):
        Image.linear_gradient("L").resize((48, 48)).rotate(90 * number).save(folder / "photos" / f"{number}.png")
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), output_dir=str(folder / "run"),
        concepts=(Concept("photo of zwx dog", str(folder / "photos"), "photo of dog"),), resolution=32, seed=3,
        train_batch_size=1, max_train_steps=2, save_interval=1, save_infer_steps=2, num_crop_variants=1,
        learning_rate=1e-3,
    )  # fmt: skip
    train(config)
    return RunFolder(folder / "run")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the starter's judge look at the tiny base's pictures: its figures mean nothing there, but they are some."""
    examiner = judge_examiner(load_judge(starter_folder()))
    monkeypatch.setattr(score, "examiner_of", lambda *wanted, **options: examiner)


def test_without_encoders_only_pixels_are_told_and_it_is_said_plainly(trained: RunFolder) -> None:
    trained.scores_chart_path.unlink(missing_ok=True)  # of a test with the judge
    scores = score_run(trained.path, num_probes=2)
    assert [one.step for one in scores.steps] == [0, 1, 2]
    pick = scores.recommended()
    assert pick is not None
    assert "no encoder has scored its pictures" in pick.why
    assert scores.note == probes.WITHOUT_ENCODERS
    assert score_lines(scores, trained)[-1] == pick.why
    assert UNSEEN_LOSS in scores.steps[1].measures
    assert scores.steps[0].measures["changed"] == 0
    assert scores.steps[2].measures["changed"] > 0
    assert not trained.scores_chart_path.exists()


@pytest.mark.usefixtures("judged")
def test_a_scored_run_says_which_step_to_take(trained: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(trained.path), "--offline"]) == 0
    printed = capsys.readouterr().out
    values = json.loads(trained.scores_path.read_text())
    assert values["examiner"] == "the starter's judge"
    # Random weights need not look like anything; then the sentence says so.
    assert values["recommended_step"] in (1, 2, None)
    assert values["why"] in printed
    assert trained.scores_chart_path.exists()
    assert set(values["ceiling"]) == {"judge"}
    assert sorted(entry.name for entry in trained.path.iterdir() if entry.name.isdecimal()) == ["1", "2"]


@pytest.mark.usefixtures("judged")
def test_other_pictures_get_other_figures(trained: RunFolder) -> None:
    """Each number of probes has pictures of its own, and what was told of others counts no more."""
    shutil.rmtree(trained.probes, ignore_errors=True)  # of other tests, with more pictures: one would not be made anew
    by_number = [score_run(trained.path, num_probes=number).steps[1] for number in (1, 3)]
    assert by_number[0] != by_number[1]
    assert read_scores(trained) == score_run(trained.path, num_probes=3), "the same number: the same figures"


def test_a_start_after_a_failed_one_is_held_to_nothing_of_it(tmp_path: Path, photos: Path) -> None:
    """What failed may have had another base, size or prompt: its pictures and figures are none of the next run's."""
    run = RunFolder(tmp_path / "run")
    config = TrainingConfig(concepts=(Concept("photo of zwx dog", str(photos)),))
    start_records(config, run)
    left = [run.records / name for name in ("probes/0/0-identifier-0.png", "bleed/2/bleed.json", "scores.json")]
    for file in left:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    start_records(config, run)
    assert not [file for file in left if file.exists()]


def test_the_command_line_says_that_no_step_looks_like_the_photos(trained: RunFolder) -> None:
    lines = score_lines(RunScores("judge", (StepScores(1, 0.0, 1.0, 0.0), StepScores(2, 0.0, 1.0, 0.0))), trained)
    assert lines[-1].startswith("No saved step looks like the photos yet (likeness 0.00 of 1 at most): train longer")
    assert not any("recommended" in line or "best" in line for line in lines)


@pytest.mark.usefixtures("judged")
def test_pictures_and_figures_that_are_there_are_not_made_again(
    trained: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = score_run(trained.path)

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(probes, "generate_images", refuse)
    monkeypatch.setattr(probes, "step_scores", refuse)
    assert score_run(trained.path) == first == read_scores(trained)


def test_a_folder_without_steps_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no saved step"):
        score_run(tmp_path)


def test_a_run_with_samples_is_scored_as_it_goes_beside_the_seeds_folders(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreambooth.events import Event, Notice
    from dreambooth.training import scored_saves

    examiner = judge_examiner(load_judge(starter_folder()))
    monkeypatch.setattr(scored_saves, "examiner_for", lambda **options: examiner)
    events: list[Event] = []
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), output_dir=str(tmp_path / "run"),
        concepts=(Concept("photo of zwx dog", str(photos), "photo of dog"),), resolution=32, seed=3,
        train_batch_size=1, max_train_steps=2, save_interval=1, save_infer_steps=1, num_crop_variants=1,
        learning_rate=1e-3, save_sample_prompt="photo of zwx dog", n_save_sample=1, num_probe_images=2,
    )  # fmt: skip
    train(config, on_event=events.append)
    run = RunFolder(tmp_path / "run")
    scores = read_scores(run)
    assert scores is not None
    assert [one.step for one in scores.steps] == [0, 1, 2]
    pick = scores.recommended(run.steps())
    assert pick is not None
    assert pick.why in [event.text for event in events if isinstance(event, Notice)]
    assert [path.name for path in (run.path / "2" / "samples").iterdir()] == ["0.png"]
    assert sorted(entry.name for entry in (run.path / "0").iterdir()) == ["samples"]
    assert len(list(probes.probes_dir(run, 2).iterdir())) == config.num_probe_pictures == 6


@pytest.mark.slow
@pytest.mark.reliability
def test_a_run_without_prior_drifts_and_its_scores_say_so(tmp_path: Path) -> None:
    from dreambooth.config.presets import resolve
    from dreambooth.data.samples import sample_concept
    from dreambooth.models.base import STARTER, read_card

    explicit = {
        "pretrained_model_name_or_path": STARTER, "concepts": (sample_concept(),), "output_dir": str(tmp_path / "run"),
        "seed": 1, "with_prior_preservation": False, "max_train_steps": 150, "save_interval": 75,
        "lr_scheduler": "constant", "n_save_sample": 1, "save_infer_steps": 12, "num_probe_images": 3,
        "num_crop_variants": 1, "mixed_precision": "no", "use_8bit_adam": False, "checkpointing_steps": 0,
    }  # fmt: skip
    train(resolve(explicit, read_card(STARTER).recipes, "recommended").checked())
    scores = read_scores(RunFolder(tmp_path / "run"))
    assert scores is not None
    base, first, last = scores.steps
    assert base.drift == 0
    assert last.drift is not None
    assert last.drift > 0.2
    assert last.measures["PRES"] > base.measures["PRES"] + 0.2
    assert last.fidelity is not None
    assert last.fidelity > 0.3
    assert scores.recommended() is not None
    assert first.step == 75
