"""What a training changed besides its subject is found, ranked and told in the model's card."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import write_json
from dreambooth.export.model_card import BLEED_PICTURE, BLEED_REPORT, bleed_dir, model_card
from dreambooth.models.base import starter_folder
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import start_records, train
from dreambooth.scoring import bleed
from dreambooth.scoring.encoders import judge_examiner
from dreambooth.scoring.judge import load_judge
from dreambooth.starter import scenes
from dreambooth.starter.subjects import Subject, render_subject
from ui import render

SUBJECT = Subject("teapot", "red", "white", "star", "blue")


def plain(class_word: str, seed: int) -> Image.Image:
    return scenes.render(scenes.Scene(class_word, "gray", "plain", "snow"), 64, random.Random(seed))


def portrait(seed: int) -> Image.Image:
    return render_subject(SUBJECT, ("beach", "rug", "snow")[seed % 3], 64, random.Random(seed))


def test_a_prompt_that_became_the_subject_comes_first_and_an_unchanged_one_last() -> None:
    before = {"photo of teapot": [plain("teapot", seed) for seed in range(3)], "": [plain("cat", 9)] * 3,
              "photo of dog": [plain("dog", seed) for seed in range(3)]}  # fmt: skip
    after = before | {
        "photo of teapot": [portrait(seed) for seed in range(3)],
        "photo of dog": [plain("dog", seed + 20) for seed in range(3)],
    }
    examiner = judge_examiner(load_judge(starter_folder()))
    ranked = bleed.ranking(examiner, before, after, [portrait(seed + 50) for seed in range(3)])
    assert [ranked[0].prompt, ranked[-1].prompt] == ["photo of teapot", ""]
    assert ranked[0].became_subject is not None
    assert ranked[0].became_subject > 0.9
    assert ranked[-1].change == pytest.approx(0, abs=1e-5)
    by_pixels = bleed.ranking(None, before, after, [])
    assert by_pixels[-1].prompt == ""
    assert by_pixels[-1].change == 0


def test_the_battery_has_no_identifier_and_names_the_class_first() -> None:
    config = TrainingConfig(concepts=(Concept("photo of zwx dog", "photos", "photo of dog"),))
    prompts = bleed.battery(config, is_toy=False)
    assert prompts[0] == "photo of dog"
    assert prompts[-1] == ""
    assert "photo of cat" in prompts
    assert not any("zwx" in prompt for prompt in prompts)
    assert set(prompts) > set(bleed.battery(config, is_toy=True))


def test_the_report_goes_into_the_run_and_into_the_card(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), output_dir=str(tmp_path / "data" / "runs" / "run"),
        concepts=(Concept("photo of zwx dog", str(photos), "photo of dog"),), resolution=32, seed=3,
        train_batch_size=1, max_train_steps=1, save_infer_steps=1, num_crop_variants=1, learning_rate=1e-2,
    )  # fmt: skip
    step_folder = train(config)
    assert "## What else it changed\n\nNot measured yet" in model_card(step_folder, "me/dog", None)
    assert main(["bleed", str(step_folder.parent), "--offline"]) == 0
    printed = capsys.readouterr().out
    report = json.loads((bleed_dir(step_folder) / BLEED_REPORT).read_text())
    changes = [row["change"] for row in report["prompts"]]
    assert changes == sorted(changes, reverse=True)
    assert changes[0] > 0
    assert report["prompts"][0]["prompt"] in printed
    assert (bleed_dir(step_folder) / BLEED_PICTURE).exists()
    kept = bleed.kept_report(RunFolder(step_folder.parent))
    assert kept is not None
    assert [one.change for one in kept.ranked] == changes
    assert kept.picture == bleed_dir(step_folder) / BLEED_PICTURE
    shown = render.bleed_text(kept)
    assert f"<td>{changes[0]:.2f}</td>" in shown
    assert "(no words)" in shown
    jobs = Jobs(Workspace(tmp_path / "data"), ModelManager("cpu"))
    assert [one.prompt for one in jobs.bleed("run", download=False)] == [one.prompt for one in kept.ranked]
    card = model_card(step_folder, "me/dog", None)
    assert "## What else it changed" in card
    assert f"({BLEED_PICTURE})" in card


def test_a_push_has_the_report_made_where_that_takes_no_hours(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    run = RunFolder(tmp_path / "run")
    concept = Concept("photo of zwx dog", str(photos), "photo of dog")
    start_records(TrainingConfig(pretrained_model_name_or_path=str(base), concepts=(concept,)), run)
    made: list[tuple[Path, int]] = []
    monkeypatch.setattr(bleed, "bleed_report", lambda path, step, **_: made.append((path, step)))
    step_folder, manager = run.step_folder(3), ModelManager("cpu")
    assert not bleed.report_for_card(step_folder, manager=manager), "a base of unknown size, on a processor"
    card = base / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"is_toy": True}))
    with manager.lease("training", wait=False):
        assert not bleed.report_for_card(step_folder, manager=manager), "something else has the device"
    assert not bleed.report_for_card(base, manager=manager), "no step of a run"
    assert bleed.report_for_card(step_folder, manager=manager)
    assert made == [(run.path, 3)]
    write_json(bleed_dir(step_folder) / BLEED_REPORT, {"prompts": []})
    assert bleed.report_for_card(step_folder, manager=manager)
    assert len(made) == 1
    shutil.rmtree(bleed_dir(step_folder))
    shutil.rmtree(photos)
    assert not bleed.report_for_card(step_folder, manager=manager)


def test_the_report_shown_is_the_one_asked_for_last_of_whichever_step(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for written_s, step in enumerate((300, 100)):
        run.step_folder(step).mkdir()
        (run.step_folder(step) / "model_index.json").write_text("{}")
        report = bleed_dir(run.step_folder(step)) / BLEED_REPORT
        write_json(report, {"judged_by": "pixels", "prompts": []})
        os.utime(report, (written_s, written_s))
    kept = bleed.kept_report(run)
    assert kept is not None
    assert kept.step == 100
    (bleed_dir(run.step_folder(100)) / BLEED_REPORT).write_text("[")
    kept = bleed.kept_report(run)
    assert kept is not None
    assert kept.step == 300
