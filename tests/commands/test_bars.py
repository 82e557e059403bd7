"""What a long command shows on the terminal while it works."""

import pytest

from dreambooth.commands.bars import RunBars, StageBars
from dreambooth.events import Notice, PhaseProgress, StepLoss


def test_a_runs_phases_are_bars_below_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    bars = RunBars()
    for event in (
        PhaseProgress("loading"), PhaseProgress("loading"), PhaseProgress("class images", 2, 4),
        PhaseProgress("class images", 4, 4), PhaseProgress("training", 0, 8), StepLoss(8, 0.25, 0.25, None, 1e-6),
        PhaseProgress("training", 8, 8), Notice("The disk is nearly full."),
    ):  # fmt: skip
        bars(event)
    bars.close()
    told = capsys.readouterr()
    assert told.out.splitlines() == ["Loading ...", "The disk is nearly full."]
    assert "Class images: 100%" in told.err
    assert "4/4" in told.err
    last = told.err.replace("\r", "\n").strip().splitlines()[-1]
    assert last.startswith("Training: 100%")
    assert "8/8" in last
    assert "loss=0.2500" in last


def test_a_stage_goes_on_from_where_it_was_and_ends_with_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    with StageBars(unit="%") as bars:
        bars("vae", 50, 100, "step 7")
        bars("vae", 100, 100, "step 9")
        bars("unet", 10, 100, "step 1")
    told = capsys.readouterr().err.replace("\r", "\n")
    assert "vae:  50%" in told
    assert "vae: 100%" in told
    assert "step 9" in told
    assert "unet:  10%" in told
