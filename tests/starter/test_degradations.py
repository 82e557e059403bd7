"""Degraded pictures lose what their name says and nothing else, and the calibration measures how a judge takes it."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import judge_calibration
from dreambooth.models.base import starter_folder
from dreambooth.scoring.judge import load_judge, write_judge
from dreambooth.starter import rendering
from dreambooth.starter.degradations import DEGRADATIONS, WITH_EYES, degraded, eyes_of, portrait, random_individual
from dreambooth.starter.judging import new_judge
from dreambooth.starter.recipe import RECIPES
from dreambooth.starter.rendering import IN_DETAIL, IN_EMBLEM
from dreambooth.starter.rich_judging import rich_instance_loss
from dreambooth.starter.subjects import Subject, is_held_out

SIDE = 64


@pytest.mark.parametrize("class_word", WITH_EYES)
def test_each_loses_what_its_name_says_and_nothing_else(class_word: str) -> None:
    painter = random.Random(3)
    individual = random_individual(painter, class_word)
    scene = individual.scene
    assert is_held_out(Subject(class_word, scene.colour, scene.second, scene.emblem, scene.emblem_colour))  # type: ignore[arg-type]
    assert [len(labels) for labels in eyes_of(class_word)] in ([1, 1], [2, 2])
    shown = [portrait(individual, "rug", painter)]
    _, (features,) = rendering.render(shown, SIDE)

    def changed(kind: str, strength: float) -> np.ndarray:
        before, after = (np.asarray(degraded(individual, shown, kind, s, SIDE)[0]).astype(int) for s in (0, strength))
        return np.asarray(np.abs(after - before).max(2) > 12)

    for kind in DEGRADATIONS:
        assert not changed(kind, 0.0).any()
        assert changed(kind, 1.0).sum() > 2
        assert changed(kind, 1.0).sum() >= changed(kind, 0.5).sum()
    assert not changed("eyes gone", 1.0)[(features != IN_DETAIL).numpy()].any()
    assert not changed("eye wrong", 1.0)[(features != IN_DETAIL).numpy()].any()
    at_edge = features == IN_DETAIL  # an emblem may touch a nose
    assert not changed("emblem recoloured", 1.0)[((features != IN_EMBLEM) & ~at_edge).numpy()].any()
    assert changed("eyes gone", 0.5).sum() < changed("eyes gone", 1.0).sum(), "one eye first"


def test_a_judges_likeness_is_trained_toward_what_is_lost(tmp_path: Path) -> None:
    """At first it knows nothing; a few steps on one batch bring its error under degradation down."""
    torch.set_num_threads(1)
    judge = new_judge(RECIPES[128], 0)
    assert judge.side_px == 128
    judge.instance.requires_grad_(True)
    optimizer = torch.optim.Adam(judge.instance.parameters(), lr=2e-3)
    losses = []
    for _ in range(8):
        loss = rich_instance_loss(judge, 0, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    write_judge(judge, tmp_path)
    kept = load_judge(tmp_path)
    assert kept.side_px == 128
    assert kept.rows_of([Image.new("RGB", (64, 64), "red")]).shape == (1, 64)
    assert load_judge(starter_folder()).side_px == 64


def test_the_calibration_gives_clean_pictures_one_and_the_shipped_judge_an_emblem(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(judge_calibration, "NUM_PICTURES", 3)
    found = judge_calibration.examined(load_judge(starter_folder()), 0)
    assert all(row[0] == 1 and len(row) == len(judge_calibration.STRENGTHS) for row in found.values())
    assert found["emblem gone"][-1] < 0.95
    judge_calibration.draw_curves(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
