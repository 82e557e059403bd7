"""The tables of the quality benchmarks, on units whose answer is known; what is done is not done again."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peers_quality, recommendation, units
from benchmarks.examined import exam_prompts
from dreambooth.config.concepts import Concept
from dreambooth.scoring.probes import probes_of


def figures(fidelity: float, prompt: float, drift: float) -> dict[str, Any]:
    measures = dict.fromkeys(peers_quality.MEASURES, 0.5)
    return {"fidelity": fidelity, "prompt": prompt, "drift": drift, "measures": measures}


def overfitting(course: str = "plain") -> dict[str, Any]:
    course_of = {step: figures(min(step / 400, 0.9), 1 - step / 1600, step / 1000) for step in range(100, 900, 100)}
    return {"course": course, "seed": 0, "probes": course_of, "exams": course_of}


def test_what_a_choice_of_step_loses_is_counted_against_the_best() -> None:
    lost = recommendation.losses_of(json.loads(json.dumps(overfitting())))
    assert lost["steps"]["last"] == 800
    assert lost["steps"]["middle"] == 400
    assert lost["last"] > lost["middle"] >= 0
    assert 0 <= lost["recommended"] < 0.5 * lost["last"]
    assert lost["best"] in (300, 400)


def test_the_table_says_whether_the_goal_is_met(capsys: pytest.CaptureFixture[str]) -> None:
    summary = recommendation.table([overfitting(), overfitting("prior")])
    assert summary["all"]["runs"] == 2
    assert ("yes" in capsys.readouterr().out) == summary["at most half"]


def test_differences_are_taken_in_pairs_of_one_individual_and_seed() -> None:
    def result(who: str, individual: int, fidelity: float, **more: dict[str, Any]) -> dict[str, Any]:
        exams = {"last": figures(fidelity, 1.0, 0.0), **more}
        return {"who": who, "individual": individual, "seed": 0, "exams": exams}

    results = [
        result("ours", 0, 0.8, recommended=figures(0.9, 1.0, 0.0)), result("theirs", 0, 0.7),
        result("ours", 1, 0.6, recommended=figures(0.6, 1.0, 0.0)), result("theirs", 1, 0.3),
        result("ours", 2, 0.1),
    ]  # fmt: skip
    found = peers_quality.table(results, ["theirs"])["differences"]
    assert found["ours - theirs"]["runs"] == 2
    assert found["ours - theirs"]["fidelity"]["mean"] == pytest.approx(0.2)
    assert found["ours, recommended step - theirs"]["fidelity"]["mean"] == pytest.approx(0.25)


def test_no_prompt_of_the_exam_is_one_of_the_probes() -> None:
    probes = {probe.prompt for probe in probes_of([Concept("photo of zwx dog", "photos", "photo of dog")], 8)} - {""}
    assert probes.isdisjoint(prompt for _, prompt, _, _ in exam_prompts("dog"))


def test_units_that_are_done_are_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = argparse.ArgumentParser()
    units.add_unit_arguments(parser, "nothing")
    begun = []

    def run(command: list[str], **options: Any) -> Any:
        begun.append(command[command.index("--unit") + 1 :])
        assert command[command.index("--units") + 1] == str(tmp_path)
        units.unit_path(tmp_path, begun[-1]).write_text("{}")
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(units.subprocess, "run", run)
    wanted = [("ours, own recipe", "0", "1"), ("ours", "0", "1")]
    arguments = parser.parse_args(["--workers", "2", "--units", str(tmp_path), "--work", str(tmp_path / "work")])
    assert units.run_missing("benchmarks.nothing", wanted, arguments) == 0
    assert sorted(begun) == sorted(map(list, wanted))
    assert units.run_missing("benchmarks.nothing", wanted, arguments) == 0
    assert len(begun) == 2
