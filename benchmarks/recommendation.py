"""How good the recommended step is: `python -m benchmarks.recommendation [--workers N --device cuda|cpu]`.

Individuals that starter and judge have not seen, several seeds, 8 saved steps each. A run is scored as users' runs are,
from its own dozen probe pictures a step, and a step recommended; then each step is examined afresh with other prompts
and seeds (`benchmarks.examined`), and the exam's merit says what the recommended, the last and the middle step lose
against the best. Two courses: the paper's loss with prior preservation, and without; both at a constant rate and for
longer than the starter's recipe, as people train who do not know when to stop.
"""

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.dreambooth_quality import IDENTIFIER, individuals, write_photos
from benchmarks.examined import exam_pictures, examined, figures
from benchmarks.units import Unit, add_unit_arguments, run_missing, unit_path
from dreambooth.config.concepts import Concept
from dreambooth.config.presets import resolve
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import write_json
from dreambooth.environment import load_settings
from dreambooth.models.base import STARTER, load_base, read_card
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import train
from dreambooth.scoring.encoders import examiner_for
from dreambooth.scoring.recommendation import StepScores, merit, recommended
from dreambooth.scoring.run import score_run

NUM_SAVES = 8
# Held-out individuals; those of seeds 0 and 1 chose the starter's recipe.
SUBJECT_SEED = 2
COURSES: dict[str, dict[str, Any]] = {
    "prior": {"with_prior_preservation": True, "max_train_steps": 1200},
    "plain": {"with_prior_preservation": False, "max_train_steps": 800},
}
KINDS = ("recommended", "last", "middle")


def settings_of(class_word: str, photos: Path, run: Path, seed: int, course: str) -> TrainingConfig:
    """Return the settings of one run of a course."""
    concept = Concept(f"photo of {IDENTIFIER} {class_word}", str(photos), f"photo of {class_word}")
    explicit = {
        "pretrained_model_name_or_path": STARTER,
        "concepts": (concept,),
        "output_dir": str(run),
        "seed": seed,
        "lr_scheduler": "constant",
        "save_sample_prompt": None,
        "mixed_precision": "no",
        "use_8bit_adam": False,
        "checkpointing_steps": 0,
        "save_interval": COURSES[course]["max_train_steps"] // NUM_SAVES,
        **COURSES[course],
    }
    config = resolve(explicit, read_card(STARTER).recipes, "recommended")
    # The preset writes sample pictures of its own accord; here the probes are all that is looked at.
    return dataclasses.replace(config, save_sample_prompt=None).checked()


def measure(unit: Unit, work: Path, result_path: Path) -> None:
    """Train one individual with one seed, score and examine every saved step, and write the unit's file."""
    course, number, seed = unit[0], int(unit[1]), int(unit[2])
    subject = individuals(number + 1, SUBJECT_SEED)[number]
    folder = work / "-".join(unit)
    shutil.rmtree(folder, ignore_errors=True)
    write_photos(subject, folder / "photos", SUBJECT_SEED, read_card(STARTER).native_px)
    config = settings_of(subject.class_word, folder / "photos", folder / "run", seed, course)
    settings = dataclasses.replace(load_settings(), data_dir=folder / "data")
    manager, run = ModelManager(), RunFolder((folder / "run").absolute())
    begun_s = time.monotonic()
    train(config, settings=settings)
    trained_s = time.monotonic() - begun_s
    scores = score_run(run.path, settings=settings, manager=manager)
    scored_s = time.monotonic() - begun_s - trained_s

    examiner = examiner_for(is_toy=True, download=False)
    assert examiner is not None
    before = exam_pictures(load_base(STARTER), manager, subject.class_word, seed)
    exams = {}
    for step in run.steps():
        shown = exam_pictures(load_base(str(run.step_folder(step))), manager, subject.class_word, seed)
        exams[step] = figures(examined(examiner, step, shown, before, folder / "photos"))
    result = {
        "course": course,
        "individual": dataclasses.asdict(subject),
        "seed": seed,
        "probes": {one.step: figures(one) for one in scores.steps},
        "exams": exams,
        "seconds": {"training": trained_s, "scoring": scored_s, "all": time.monotonic() - begun_s},
    }
    write_json(result_path, result)
    shutil.rmtree(folder)


def losses_of(result: dict[str, Any]) -> dict[str, Any]:
    """Return which step was recommended and what each choice of a step loses in the exam against the best one."""
    probes = [
        StepScores(int(step), *(one[name] for name in ("fidelity", "prompt", "drift")))
        for step, one in result["probes"].items()
    ]
    merits = {
        int(step): merit(one["fidelity"], one["prompt"], one["drift"]) or 0.0 for step, one in result["exams"].items()
    }
    found, steps = recommended(probes), sorted(merits)
    assert found is not None
    chosen = {"recommended": found.step or steps[-1], "last": steps[-1], "middle": steps[len(steps) // 2 - 1]}
    best = max(merits, key=lambda step: merits[step])
    return {"best": best, "merit of the best": merits[best], "steps": chosen,
            **{kind: merits[best] - merits[step] for kind, step in chosen.items()}}  # fmt: skip


def table(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Print what each choice loses, by course and over all, and return it."""
    summary: dict[str, Any] = {}
    lost = [(result, losses_of(result)) for result in results]
    print(f"{'score lost against the best step':36}" + "".join(f"{kind:>18}" for kind in KINDS))
    for course in (*COURSES, "all"):
        rows = [row for result, row in lost if course in (result["course"], "all")]
        if not rows:
            continue
        summary[course] = {
            "runs": len(rows),
            "merit of the best": statistics.fmean(r["merit of the best"] for r in rows),
        }
        cells = []
        for kind in KINDS:
            values = [row[kind] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            summary[course][kind] = {"mean": statistics.fmean(values), "spread": spread}
            cells.append(f"{statistics.fmean(values):.3f} +- {spread:.3f}")
        print(f"{course + f' ({len(rows)} runs)':36}" + "".join(f"{cell:>18}" for cell in cells))
    overall = summary["all"]
    summary["at most half"] = all(
        overall["recommended"]["mean"] <= 0.5 * overall[kind]["mean"] for kind in ("last", "middle")
    )
    print(f"at most half of what the last and the middle step lose: {'yes' if summary['at most half'] else 'NO'}")
    return summary


def main() -> None:
    """Measure the units that are missing, and print the table of all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recommendation", description=__doc__)
    parser.add_argument("--individuals", type=int, default=6, help="How many, each of another class; at most 10.")
    parser.add_argument("--seeds", type=int, default=3, help="Trainings of each individual.")
    parser.add_argument("--courses", nargs="+", choices=list(COURSES), default=list(COURSES))
    add_unit_arguments(parser, "recommendation")
    arguments = parser.parse_args()
    if arguments.unit:
        measure(tuple(arguments.unit), arguments.work, unit_path(arguments.units, arguments.unit))
        return
    units = [
        (course, str(number), str(seed))
        for seed in range(arguments.seeds)
        for number in range(arguments.individuals)
        for course in arguments.courses
    ]
    missing = run_missing("benchmarks.recommendation", units, arguments)
    results = [
        json.loads(unit_path(arguments.units, unit).read_text("utf-8"))
        for unit in units
        if unit_path(arguments.units, unit).exists()
    ]
    if not results:
        raise SystemExit("No unit is done.")
    summary = table(results) | {"missing": missing}
    if arguments.json:
        write_json(arguments.json, summary | {"units": [result | {"losses": losses_of(result)} for result in results]})


if __name__ == "__main__":
    main()
