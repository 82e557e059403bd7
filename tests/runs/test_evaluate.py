"""The paper's protocol on a folder of subjects: its lists, its table, and going on where it was ended."""

import json
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.errors import ConfigError
from dreambooth.formats.layout import saved_step_kind
from dreambooth.models.base import starter_folder
from dreambooth.runs import evaluate as evaluating
from dreambooth.scoring import run as score
from dreambooth.scoring.encoders import judge_examiner
from dreambooth.scoring.judge import load_judge
from dreambooth.scoring.protocol import LIVE_PROMPTS, OBJECT_PROMPTS, filled, read_protocol

CLASSES = "Classes\n\nsubject_name,class\ncup,teapot\nrex,dog\n\nPrompts\n"


def test_the_papers_lists_have_25_prompts_each() -> None:
    assert len(set(OBJECT_PROMPTS)) == len(set(LIVE_PROMPTS)) == 25
    assert len(set(OBJECT_PROMPTS) & set(LIVE_PROMPTS)) == 15
    assert filled("a red {0} {1}", "zwx", "dog") == "a red zwx dog"
    assert filled("a {0} {1} in the snow", "", "dog") == "a dog in the snow"


def subjects_in(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
    return folder


def test_classes_and_lists_come_from_the_data_sets_own_file(tmp_path: Path) -> None:
    folder = subjects_in(tmp_path, "cup", "rex")
    lists = [f"'a {{0}} {{1}} {place}'.format(unique_token, class_token)," for place in ("here", "there")]
    live = "'a {0} {1} asleep'.format(unique_token, class_token)"
    text = CLASSES + "\nObject Prompts\n\nprompt_list = [\n" + "\n".join(lists)
    (folder / "prompts_and_classes.txt").write_text(
        f"{text}\n]\n\nLive Subject Prompts\n\nprompt_list = [\n{live}\n]\n"
    )
    protocol = read_protocol(folder, None)
    assert protocol.classes == {"cup": "teapot", "rex": "dog"}
    assert protocol.prompts_for("teapot") == ("a {0} {1} here", "a {0} {1} there")
    assert protocol.prompts_for("dog") == ("a {0} {1} asleep",)


def test_without_the_file_all_are_of_one_class_and_the_papers_lists_count(tmp_path: Path) -> None:
    protocol = read_protocol(subjects_in(tmp_path, "a", "b"), "old dog")
    assert protocol.classes == {"a": "old dog", "b": "old dog"}
    assert protocol.prompts_for("old dog") == LIVE_PROMPTS
    assert protocol.prompts_for("vase") == OBJECT_PROMPTS


def test_a_subject_without_a_class_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no class for a"):
        read_protocol(subjects_in(tmp_path, "a"), None)
    with pytest.raises(ConfigError, match="no folders"):
        read_protocol(tmp_path / "absent", "dog")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_an_evaluation_writes_its_scores_and_makes_nothing_twice(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:  # fmt: skip
    from PIL import Image

    examiner = judge_examiner(load_judge(starter_folder()))
    monkeypatch.setattr(score, "examiner_of", lambda *given, **named: examiner)
    monkeypatch.setattr(evaluating, "examiner_for", lambda **named: examiner)
    monkeypatch.setattr(evaluating, "NUM_CLASS_PICTURES", 2)
    real_resolve = evaluating.resolve
    small = {"resolution": 32, "num_class_images": 1, "save_infer_steps": 1, "n_save_sample": 1, "num_probe_images": 1}
    monkeypatch.setattr(evaluating, "resolve", lambda explicit, *rest: real_resolve(explicit | small, *rest))
    folder = subjects_in(tmp_path / "subjects", "cup")
    (folder / "prompts_and_classes.txt").write_text(CLASSES)
    for number in range(2):
        Image.linear_gradient("L").resize((48, 48)).rotate(90 * number).save(folder / "cup" / f"{number}.png")
    command = [
        "evaluate", str(folder), "--output_dir", str(tmp_path / "out"), "--pretrained_model_name_or_path",
        str(tiny_base_folder), "--prompts", "2", "--images", "1", "--method", method, "--max_train_steps", "2",
    ]  # fmt: skip
    assert main(command) == 0
    assert [saved_step_kind(step) for step in (tmp_path / "out" / "cup" / "run").glob("[12]")] == [
        {"full": "model"}.get(method, method)
    ] * 2
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["subjects"]["cup"]["step"] in (1, 2)
    assert scores["subjects"]["cup"]["recommended_step"] in (None, scores["subjects"]["cup"]["step"])
    assert {"judge", "place", "PRES", "DIV", "copies"} <= set(scores["mean"])
    assert set(scores["ceiling"]) == {"judge"}
    assert set(scores["base"]) == set(scores["mean"])
    assert "1 subjects, 2 prompts each, 1 pictures of each prompt: a part of the paper's" in scores["stated"]
    assert (tmp_path / "out" / "cup" / "sheet.png").exists()
    assert "base model" in capsys.readouterr().out

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("made again")

    for name in ("train", "resume", "_save_one", "step_scores"):
        monkeypatch.setattr(evaluating, name, refuse)
    assert main(command) == 0
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == scores
    capsys.readouterr()
    assert main([*command[:-1], "3"]) == 1
    assert "holds an evaluation with another number of steps: name another folder." in capsys.readouterr().err
    other = [{"full": "lora", "lora": "full"}.get(one, one) for one in command]
    if method == "full":  # as of a version that knew no other
        request = tmp_path / "out" / "request.json"
        request.write_text(json.dumps({k: v for k, v in json.loads(request.read_text()).items() if k != "method"}))
    assert main(other) == 1
    assert "holds an evaluation with another method: name another folder." in capsys.readouterr().err
    (folder / "prompts_and_classes.txt").write_text(CLASSES.replace("teapot", "vase"))
    assert main(command) == 1
    assert "another class of cup" in capsys.readouterr().err
