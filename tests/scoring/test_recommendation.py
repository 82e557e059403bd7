"""The step that is recommended, on scores whose best step is known."""

import json
import random
from pathlib import Path

import pytest

from dreambooth.records.workspace import RunFolder
from dreambooth.scoring import chart
from dreambooth.scoring.recommendation import UNSEEN_LOSS, StepScores, merit, recommended
from dreambooth.scoring.records import RunScores, read_scores, write_scores

OVERFITTING = [
    StepScores(100, 0.30, 1.00, 0.00),
    StepScores(200, 0.60, 1.00, 0.02),
    StepScores(300, 0.85, 0.98, 0.05),
    StepScores(400, 0.88, 0.95, 0.10),
    StepScores(500, 0.90, 0.70, 0.40),
    StepScores(600, 0.91, 0.40, 0.70),
]


def test_a_run_that_overfits_is_cut_before_it_does() -> None:
    found = recommended(OVERFITTING)
    assert found is not None
    assert found.step in (300, 400)
    assert found.why.startswith(f"Step {found.step} is the best overall (likeness 0.8")
    assert "step 600 changes other pictures more" in found.why or "step 600 follows prompts less" in found.why


def test_a_run_too_short_to_overfit_gives_its_last_step() -> None:
    found = recommended(OVERFITTING[:3])
    assert found is not None
    assert found.step == 300
    assert "the last" in found.why


def test_a_saved_step_that_was_not_scored_is_named() -> None:
    """Such as the one that a stopped run saves last."""
    scores = RunScores("judge", (StepScores(0, 0.0, 1.0, 0.0), *OVERFITTING[:2]))
    complete, stopped = (scores.recommended(steps) for steps in ([100, 200], [100, 200, 288]))
    assert complete is not None
    assert stopped is not None
    assert stopped.step == complete.step == 200
    assert stopped.why == f"{complete.why} Step 288, the last, has not been scored yet."


def test_steps_that_cannot_be_told_apart_give_the_last() -> None:
    noise = random.Random(0)
    even = [StepScores(step, 0.8 + noise.uniform(-0.004, 0.004), 1.0, 0.0) for step in (100, 200, 300, 400)]
    found = recommended(even)
    assert found is not None
    assert found.step == 400


def test_one_lucky_figure_does_not_decide() -> None:
    lucky = [StepScores(step, 0.5 + step / 2000, 1.0, 0.0) for step in (100, 200, 300, 400, 500, 600)]
    lucky[1] = StepScores(200, 0.74, 1.0, 0.0)
    found = recommended(lucky)
    assert found is not None
    assert found.step >= 500


def test_only_steps_that_are_still_there_are_recommended() -> None:
    found = recommended(OVERFITTING, available=[500, 600])
    assert found is not None
    assert found.step == 500


def test_nothing_is_recommended_where_nothing_was_measured() -> None:
    assert recommended([]) is None
    assert recommended([StepScores(0, 0.0, 1.0, 0.0)]) is None
    assert recommended([StepScores(100, measures={"changed": 0.1})]) is None


def test_where_no_step_looks_like_the_photos_none_is_recommended_and_it_says_what_to_do() -> None:
    unlike = [StepScores(step, 0.0, 1.0, 0.0) for step in (100, 200, 300)]
    what_to_do = "train longer, at a higher learning rate, or with other photos."
    found = recommended(unlike)
    assert found is not None
    assert found.step is None
    assert found.why == f"No saved step looks like the photos yet (likeness 0.00 of 1 at most): {what_to_do}"
    only = recommended(unlike[:1])
    assert only is not None
    assert only.step is None
    assert only.why == (
        f"Step 100, the only one that was scored, does not look like the photos yet (likeness 0.00 of 1): {what_to_do}"
    )
    seen = recommended([*unlike, StepScores(400, 0.2, 1.0, 0.0)])
    assert seen is not None
    assert seen.step == 400
    assert recommended(unlike, available=[200]) == recommended([unlike[1]])


def test_where_every_step_follows_no_prompt_none_is_recommended() -> None:
    for steps in ([StepScores(100, 0.9, 0.0, 0.4)], [StepScores(step, 0.9, 0.0, 1.0) for step in (100, 200)]):
        found = recommended(steps)
        assert found is not None
        assert found.step is None
        assert "prompts followed 0.00" in found.why
        assert "train for fewer steps" in found.why


def test_without_encoders_the_losses_at_fixed_noise_decide_and_say_so() -> None:
    losses = {100: 0.20, 200: 0.15, 300: 0.12, 400: 0.1205, 500: 0.14, 600: 0.18}
    found = recommended([StepScores(step, measures={UNSEEN_LOSS: loss}) for step, loss in losses.items()])
    assert found is not None
    assert found.step == 400
    assert "no encoder has scored" in found.why


def test_merit_is_nothing_where_one_of_the_three_is_lost() -> None:
    assert merit(1.0, 1.0, 0.0) == 1
    assert merit(0.9, 0.0, 0.0) == 0
    assert merit(0.9, 1.0, 1.0) == 0
    assert merit(0.64, None, None) == pytest.approx(0.64)
    assert merit(None, 1.0, 0.0) is None


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    scores = RunScores("judge", (StepScores(0, 0.0, 1.0, 0.0, {"DIV": 0.9}), *OVERFITTING), {"judge": 0.96}, "a note")
    write_scores(run, scores)
    assert read_scores(run) == scores
    assert chart.write_chart(scores, scores.recommended(), run.scores_chart_path)


def test_scores_without_likeness_are_written_and_drawn_without_a_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    scores = RunScores("judge", (StepScores(0, 0.0, 1.0, 0.0), StepScores(60, 0.0, 0.9, 0.0)))
    write_scores(run, scores)
    values = json.loads(run.scores_path.read_text())
    assert values["recommended_step"] is None
    assert "does not look like the photos yet" in values["why"]
    assert chart.write_chart(scores, scores.recommended(), run.scores_chart_path)


@pytest.mark.parametrize("text", ["", "[]", '{"examiner": 1, "steps": [{"step": "x"}], "ceiling": {}}', '{"steps": 3}'])
def test_damaged_scores_are_none(tmp_path: Path, text: str) -> None:
    run = RunFolder(tmp_path)
    run.records.mkdir()
    run.scores_path.write_text(text)
    assert read_scores(run) is None


def test_a_likeness_below_a_half_is_called_what_it_is() -> None:
    poor = recommended([StepScores(100, 0.40, 1.0, 0.1), StepScores(200, 0.41, 1.0, 0.1)])
    good = recommended([StepScores(100, 0.80, 1.0, 0.1), StepScores(200, 0.81, 1.0, 0.1)])
    assert poor is not None
    assert good is not None
    assert "(likeness 0.41 of 1, less than halfway to the photos, prompts followed 1.00" in poor.why
    assert "halfway" not in good.why
