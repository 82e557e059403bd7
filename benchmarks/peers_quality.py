"""What ours teaches against what other scripts teach, from the same base, photos, class pictures and arguments.

    python -m benchmarks.peers_quality --runner RUN_PEER --peer NAME=SCRIPT [--peer ...] [--workers N --device cuda|cpu]

A peer is a `train_dreambooth.py`, which the runner starts unchanged. All models take the exam of `benchmarks.examined`
under one judge: ours with its last step, as the others have it, and ours with the step that it recommends. "ours, own
recipe" has the starter's recipe with what the others' arguments cannot say. Differences are in pairs of the same
individual and seed.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.dreambooth_quality import IDENTIFIER, individuals, write_photos
from benchmarks.examined import exam_pictures, examined, figures
from benchmarks.units import Unit, add_unit_arguments, run_missing, unit_path
from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.presets import resolve
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import held_lock, new_folder, write_json
from dreambooth.environment import load_settings
from dreambooth.models.base import STARTER, load_base, read_card, starter_folder
from dreambooth.models.card import BaseCard
from dreambooth.models.manager import ModelManager
from dreambooth.models.saving import write_model
from dreambooth.pictures.generation import generate_images
from dreambooth.records.workspace import RunFolder, newest_step_folder
from dreambooth.runs.run import train
from dreambooth.scoring.encoders import examiner_for
from dreambooth.scoring.run import score_run

# Held-out individuals that neither the recipe nor the recommendation was chosen on.
SUBJECT_SEED = 3
NUM_CLASS_IMAGES = 50
NUM_SAVES = 8
STEPS = 600
COMMON: dict[str, Any] = {
    "prior_loss_weight": 0.3, "num_class_images": NUM_CLASS_IMAGES, "resolution": 64, "train_batch_size": 1,
    "max_train_steps": STEPS, "learning_rate": 4e-4, "lr_scheduler": "cosine", "lr_warmup_steps": 0,
}  # fmt: skip
SWITCHES = ("with_prior_preservation", "train_text_encoder", "center_crop")
OURS, OWN_RECIPE = "ours", "ours, own recipe"
SHOWN = ("fidelity", "prompt", "drift")
MEASURES = ("judge", "place", "PRES", "DIV")


def concept_of(class_word: str, folder: Path) -> Concept:
    """Return the individual's words and folders, the same for everybody."""
    return Concept(
        f"photo of {IDENTIFIER} {class_word}", str((folder / "photos").absolute()), f"photo of {class_word}",
        str((folder / "class").absolute()),
    )  # fmt: skip


def prepare(number: int, work: Path) -> tuple[str, Path]:
    """Make photos and class pictures of an individual once for all, and return its class and where they lie."""
    subject = individuals(number + 1, SUBJECT_SEED)[number]
    folder = work / "individuals" / str(number)

    def make() -> None:
        write_photos(subject, folder / "photos", SUBJECT_SEED, 64)
        _write_class_pictures(subject.class_word, folder / "class", number)

    once(folder / "class", make)
    return subject.class_word, folder


def once(folder: Path, make: Callable[[], None]) -> None:
    """Have a folder made by one of all the processes that want it, and wait until it is there."""
    while not folder.is_dir():
        try:
            with held_lock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    make()
        except BlockingIOError:
            time.sleep(1)


def wide_starter(work: Path) -> Path:
    """Return the starter's same weights in fp32: some scripts refuse to start from fewer digits."""
    import torch

    target = work / "starter-fp32"

    def make() -> None:
        base = load_base(STARTER)
        with new_folder(target) as folder:
            write_model(folder, base, torch.float32, BaseCard(native_px=64))

    once(target, make)
    return target


def _write_class_pictures(class_word: str, folder: Path, number: int) -> None:
    base, manager = load_base(STARTER), ModelManager()
    for part in base.modules().values():
        manager.place(part)
    request = GenerationConfig(
        prompt=f"photo of {class_word}", num_images_per_prompt=64, num_inference_steps=20, seed=1000 * number,
        guidance_scale=float(base.card.recipes["full"]["class_guidance_scale"]), height=64, width=64,
    )  # fmt: skip
    with new_folder(folder) as temporary:
        made = generate_images(base, request, indices=range(NUM_CLASS_IMAGES), batch_size=10)
        for count, picture in enumerate(made):
            picture.image.save(temporary / f"{count:02}.png")


def measure(unit: Unit, arguments: argparse.Namespace) -> None:
    """Train one individual with one seed by one of all, examine what came out, and write the unit's file."""
    who, number, seed = unit[0], int(unit[1]), int(unit[2])
    class_word, shared = prepare(number, arguments.work)
    folder = arguments.work / "runs" / "-".join(unit).replace(" ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    concept, manager, begun_s = concept_of(class_word, shared), ModelManager(), time.monotonic()
    if who in (OURS, OWN_RECIPE):
        models = _train_ours(concept, folder, seed, manager, own_recipe=who == OWN_RECIPE)
    else:
        models = {"last": _train_peer(arguments, who, concept, folder, seed)}
    trained_s = time.monotonic() - begun_s

    examiner = examiner_for(is_toy=True, download=False)
    assert examiner is not None
    before = exam_pictures(load_base(STARTER), manager, class_word, seed)
    exams: dict[str, Any] = {}
    tokenizer = str(starter_folder() / "tokenizer")
    for kind, model in models.items():
        same = next((other for other in exams if models[other] == model), None)
        if same is None:
            shown = exam_pictures(load_base(str(model), tokenizer=tokenizer), manager, class_word, seed)
            exams[kind] = figures(examined(examiner, 1, shown, before, shared / "photos"))
        else:
            exams[kind] = exams[same]
    steps = {kind: int(model.name) for kind, model in models.items() if model.name.isdecimal()}
    seconds = {"training": trained_s, "all": time.monotonic() - begun_s}
    result = {"who": who, "class": class_word, "individual": number, "seed": seed, "steps": steps, "exams": exams}
    write_json(unit_path(arguments.units, unit), result | {"seconds": seconds})
    shutil.rmtree(folder)


def _train_ours(
    concept: Concept, folder: Path, seed: int, manager: ModelManager, *, own_recipe: bool
) -> dict[str, Path]:
    """Train with ours, and return the last and the recommended step's folder."""
    explicit: dict[str, Any] = {
        "pretrained_model_name_or_path": STARTER, "concepts": (concept,), "output_dir": str(folder / "run"),
        "seed": seed, "mixed_precision": "no", "checkpointing_steps": 0, "save_interval": STEPS // NUM_SAVES,
        "save_guidance_scale": 3.0, "with_prior_preservation": True, "train_text_encoder": True,
    }  # fmt: skip
    if own_recipe:
        config = resolve(explicit | {"use_8bit_adam": False}, read_card(STARTER).recipes, "recommended")
        config = dataclasses.replace(config, save_sample_prompt=None)
    else:
        config = TrainingConfig(**explicit, **COMMON, center_crop=True, pad_tokens=True)
    settings = dataclasses.replace(load_settings(), data_dir=folder / "data")
    train(config.checked(), settings=settings)
    run = RunFolder((folder / "run").absolute())
    found = score_run(run.path, settings=settings, manager=manager).recommended(run.steps())
    assert found is not None
    last = run.steps()[-1]
    return {"last": run.step_folder(last), "recommended": run.step_folder(found.step or last)}


def _train_peer(arguments: argparse.Namespace, who: str, concept: Concept, folder: Path, seed: int) -> Path:
    """Run a peer's script as it is, and return the folder of the model that it left."""
    script = peers(arguments.peer)[who]
    flags = [f"--{name}={value}" for name, value in COMMON.items()] + [f"--{name}" for name in SWITCHES]
    # Scripts that pad already have no such switch; those that have it train on short prompts without it.
    if "--pad_tokens" in script.read_text("utf-8"):
        flags.append("--pad_tokens")
    words = {name: value for name, value in dataclasses.asdict(concept).items() if value is not None}
    flags += [f"--{name}={value}" for name, value in words.items()]
    out = folder / "peer"
    command = [
        sys.executable, str(arguments.runner), str(script), *flags, f"--seed={seed}", f"--output_dir={out}",
        f"--pretrained_model_name_or_path={wide_starter(arguments.work)}",
    ]  # fmt: skip
    subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=True)
    return newest_step_folder(out)


def peers(given: Sequence[str]) -> dict[str, Path]:
    """Return the peers' scripts by name."""
    pairs = (one.partition("=") for one in given)
    return {name: Path(script) for name, _, script in pairs}


# The table -----------------------------------------------------------------------------------------------------------


def rows_of(results: list[dict[str, Any]]) -> dict[str, dict[tuple[int, int], dict[str, float]]]:
    """Return the figures of everybody by individual and seed; ours twice, with the last and the recommended step."""
    rows: dict[str, dict[tuple[int, int], dict[str, float]]] = {}
    for result in results:
        for kind, exam in result["exams"].items():
            title = result["who"] if kind == "last" else f"{result['who']}, recommended step"
            values = {name: exam[name] for name in SHOWN} | {name: exam["measures"][name] for name in MEASURES}
            rows.setdefault(title, {})[result["individual"], result["seed"]] = values
    return rows


def table(results: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Print means, and the differences in pairs of each of ours against each peer; return both."""
    rows = rows_of(results)
    columns = (*SHOWN, *MEASURES)
    summary: dict[str, Any] = {"means": {}, "differences": {}}
    print("fidelity, prompt: more is better; drift: less is better. Means +- their spread over individuals and seeds.")
    print(f"{'':42}{'runs':>5}" + "".join(f"{name:>18}" for name in columns))
    for title, found in sorted(rows.items()):
        summary["means"][title] = _line(title, list(found.values()), columns)
    for ours in sorted(title for title in rows if title.startswith(OURS)):
        for name in (name for name in names if name in rows):
            pairs = [(rows[ours][key], rows[name][key]) for key in rows[ours] if key in rows[name]]
            differences = [{column: one[column] - two[column] for column in columns} for one, two in pairs]
            if differences:
                title = f"{ours} - {name}"
                summary["differences"][title] = _line(title, differences, columns)
    return summary


def _line(title: str, found: list[dict[str, float]], columns: Sequence[str]) -> dict[str, Any]:
    figures_of: dict[str, Any] = {"runs": len(found)}
    cells = []
    for column in columns:
        values = [one[column] for one in found]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        figures_of[column] = {"mean": statistics.fmean(values), "spread": spread}
        cells.append(f"{statistics.fmean(values):.3f} +- {spread:.3f}")
    print(f"{title[:42]:42}{len(found):>5}" + "".join(f"{cell:>18}" for cell in cells))
    return figures_of


def main() -> None:
    """Measure the units that are missing, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", type=Path, help="What starts a peer's script.")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=SCRIPT")
    parser.add_argument("--individuals", type=int, default=6, help="How many, each of another class; at most 10.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ours", nargs="*", choices=(OURS, OWN_RECIPE), default=[OURS, OWN_RECIPE])
    add_unit_arguments(parser, "peers-quality")
    arguments = parser.parse_args()
    if arguments.unit:
        measure(tuple(arguments.unit), arguments)
        return
    scripts = peers(arguments.peer)
    if scripts and arguments.runner is None:
        parser.error("--peer needs --runner")
    units = [
        (who, str(number), str(seed))
        for seed in range(arguments.seeds)
        for number in range(arguments.individuals)
        for who in (*arguments.ours, *scripts)
    ]
    extra = [flag for name, script in scripts.items() for flag in ("--peer", f"{name}={script}")]
    if arguments.runner is not None:
        extra += ["--runner", str(arguments.runner)]
    missing = run_missing("benchmarks.peers_quality", units, arguments, extra)
    done = [unit_path(arguments.units, unit) for unit in units]
    results = [json.loads(path.read_text("utf-8")) for path in done if path.exists()]
    if not results:
        raise SystemExit("No unit is done.")
    summary = table(results, list(scripts)) | {"missing": missing}
    if arguments.json:
        write_json(arguments.json, summary | {"units": results})


if __name__ == "__main__":
    main()
