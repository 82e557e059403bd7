"""Which options of a training win over the plain recipe, on the starter: `python -m benchmarks.recipes`.

Individuals that neither the starter, its judge nor the choice of its recipe has seen, each option and the plain recipe
with the same photos, class pictures, seeds and prompts; a table of paired differences with their spread. A unit is one
training and its pictures. Units go round by option within an individual and seed, and each is kept in `--results` as it
ends, so that a run which is cut off is balanced, and the same command goes on with what is missing.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.judged import add_common_arguments, judge_with_validity, pictures_of
from dreambooth import rng
from dreambooth.config.concepts import Concept
from dreambooth.config.presets import resolve
from dreambooth.data.class_images import ensure_class_images
from dreambooth.environment import load_settings
from dreambooth.events import FixedNoiseLosses, memorisation_of
from dreambooth.models.base import STARTER, Base, load_base, read_card, starter_folder
from dreambooth.models.fingerprint import weights_fingerprint
from dreambooth.models.manager import ModelManager
from dreambooth.runs.run import train
from dreambooth.scoring import measures
from dreambooth.scoring.judge import Judge, load_judge
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.subjects import Subject, random_subject, render_subject

IDENTIFIER = "zwx"
NUM_PHOTOS = 5
NUM_CLASS_PICTURES = 12
SUBJECT_SEED = 2  # the recipe was chosen on individuals of seed 1, and is measured on those of seed 0
CLASSES = ("dog", "toy", "backpack", "teapot", "sneaker", "vase", "cat", "duck toy", "can", "clock")
MEASURES = ("fidelity", "prompt", "PRES", "DIV")
PLAIN = "plain"
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "moving average": {"use_ema": True},
    "stratified timesteps": {"stratified_timesteps": True},
    "teacher prior": {"teacher_prior": True},
    "teacher prior, weight 1": {"teacher_prior": True, "prior_loss_weight": 1.0},
    "class latents kept": {"keep_class_latents": True},
    "caption dropout 0.1": {"caption_dropout": 0.1},
    "noise offset 0.05": {"noise_offset": 0.05},
    "background weight 0.3": {"background_weight": 0.3},
    "no min-SNR": {"snr_gamma": None},
    "min-SNR 5": {"snr_gamma": 5.0},
    "one rate for both": {"text_encoder_lr": None},
    "text encoder stops at half": {},
}


def changes_of(option: str, num_steps: int) -> dict[str, Any]:
    """Return the settings in which an option differs from the plain recipe, in a run of this length."""
    if option == "text encoder stops at half":
        return {"text_encoder_stop_step": max(num_steps // 2, 1)}
    return OPTIONS[option]


@dataclasses.dataclass(frozen=True)
class Unit:
    """One training: an option, an individual by its number, and a seed."""

    option: str
    individual: int
    seed: int

    @property
    def name(self) -> str:
        """Return the key of its result."""
        return f"{self.option} | {CLASSES[self.individual]} | {self.seed}"


# What all units share ------------------------------------------------------------------------------------------------


def subject_of(individual: int) -> Subject:
    """Return the individual of this number, from the fifth that the judge never saw."""
    painter = random.Random(rng.derived_seed(SUBJECT_SEED, "starter", 21, individual))
    return random_subject(painter, CLASSES[individual], held_out=True)


def prepare_individual(individual: int, work: Path) -> Path:
    """Paint the individual's photos and its class's pictures, once, and return their folder."""
    folder = work / CLASSES[individual].replace(" ", "-")
    if (folder / "ready").exists():
        return folder
    card = read_card(STARTER)
    subject, painter = subject_of(individual), random.Random(rng.derived_seed(SUBJECT_SEED, "starter", 22, individual))
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    for number, context in enumerate(painter.sample(list(CONTEXTS), NUM_PHOTOS)):
        render_subject(subject, context, card.native_px, painter).save(folder / "photos" / f"{number}.png")
    base, manager = load_base(STARTER), ModelManager()
    for part in base.modules().values():
        manager.place(part)
    ensure_class_images(
        Concept(f"photo of {IDENTIFIER} {subject.class_word}", str(folder / "photos"),
                f"photo of {subject.class_word}", str(folder / "class")),
        base_factory=lambda: base,
        cache_dir=folder, base_key=weights_fingerprint(base.unet, base.text_encoder),
        vae_key=weights_fingerprint(base.vae), num_class_images=int(card.recipes["full"]["num_class_images"]),
        resolution_px=card.native_px, num_inference_steps=20, seed=0,
        guidance_scale=float(card.recipes["full"]["class_guidance_scale"]), batch_size=25,
        report=lambda done, total: None, should_stop=lambda: False, keep_latents=True,
    )  # fmt: skip
    (folder / "ready").touch()
    return folder


# One unit ------------------------------------------------------------------------------------------------------------


def measured(unit: Unit, work: Path, num_steps: int | None, judge: Judge) -> dict[str, Any]:
    """Train the unit and return its scores, its last losses at fixed noise, and what it cost."""
    began_s, cpu_began_s = time.monotonic(), time.process_time()
    folder, subject = work / CLASSES[unit.individual].replace(" ", "-"), subject_of(unit.individual)
    run = work / "runs" / unit.name.replace(" ", "-").replace("|", "-")
    shutil.rmtree(run, ignore_errors=True)
    concept = Concept(
        f"photo of {IDENTIFIER} {subject.class_word}", str(folder / "photos"),
        f"photo of {subject.class_word}", str(folder / "class"),
    )  # fmt: skip
    card = read_card(STARTER)
    steps = num_steps or int(card.recipes["full"]["max_train_steps"])
    explicit = {
        "pretrained_model_name_or_path": STARTER, "concepts": (concept,), "output_dir": str(run), "seed": unit.seed,
        "with_prior_preservation": True, "mixed_precision": "no", "use_8bit_adam": False, "checkpointing_steps": 10**6,
        "max_train_steps": steps, "save_interval": steps, "log_interval": steps, "gauge_interval": steps,
        "capture_step": ModelManager().device.type == "cuda",
        **changes_of(unit.option, steps),
    }  # fmt: skip
    looks: list[FixedNoiseLosses] = []
    config = dataclasses.replace(resolve(explicit, card.recipes, "recommended"), save_sample_prompt=None).checked()
    last = train(
        config,
        settings=dataclasses.replace(load_settings(), data_dir=work / "data"),
        on_event=lambda event: looks.append(event) if isinstance(event, FixedNoiseLosses) else None,
    )
    trained_s = time.monotonic() - began_s
    scores = exam(judge, load_base(str(last)), folder / "photos", subject.class_word, 1000 * unit.seed)
    shutil.rmtree(run)
    return {
        **scores,
        "memorisation": memorisation_of(looks)[-1],
        "drift": looks[-1].drift,
        "device": str(ModelManager().device),
        "num_steps": steps,
        "train_s": round(trained_s, 1),
        "unit_s": round(time.monotonic() - began_s, 1),
        "unit_cpu_s": round(time.process_time() - cpu_began_s, 1),
    }


def exam(judge: Judge, base: Base, photos: Path, class_word: str, seed: int) -> dict[str, float]:
    """Return fidelity, prompt fidelity, PRES and DIV, as `benchmarks.dreambooth_quality` defines them."""
    from PIL import Image

    manager = ModelManager()
    for part in base.modules().values():
        manager.place(part)
    guidance_scale = base.guidance_scale
    contexts = [f"a photo of {IDENTIFIER} {class_word} {phrase}" for phrase, _ in CONTEXTS.values()]
    prompts = contexts + [f"photo of {class_word}"] * NUM_CLASS_PICTURES
    seeds = [seed + number for number in range(len(contexts))]
    seeds += [seed + 100 + number for number in range(NUM_CLASS_PICTURES)]
    images = pictures_of(base, prompts, seeds, guidance_scale)
    real = judge.rows_of([Image.open(file) for file in sorted(photos.glob("*.png"))])
    shown, plain = judge.pictures(images[: len(contexts)]), judge.pictures(images[len(contexts) :])
    read = [said["context"] for said in judge.attributes_of(shown)]
    of_class = judge.embeddings_of(plain)
    return {
        "fidelity": measures.similarity(judge.embeddings_of(shown), real),
        "prompt": statistics.mean(said == asked for said, asked in zip(read, CONTEXTS, strict=True)),
        "PRES": measures.similarity(of_class, real),
        "DIV": measures.diversity(of_class),
    }


# All of them ---------------------------------------------------------------------------------------------------------


def units_of(options: list[str], num_individuals: int, num_seeds: int) -> list[Unit]:
    """Return all units: every option of one individual and seed before the next."""
    return [
        Unit(option, individual, seed)
        for seed in range(num_seeds)
        for individual in range(num_individuals)
        for option in options
    ]


def work_off(todo: list[Unit], arguments: argparse.Namespace) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Yield each unit with its result as it ends, `--workers` at a time; the individuals are prepared first."""
    context = multiprocessing.get_context("spawn")
    deadline_s = time.monotonic() + (arguments.minutes or math.inf) * 60
    with context.Pool(arguments.workers, _start, (arguments.device, context.Value("i", 0))) as pool:
        pool.starmap(prepare_individual, [(number, arguments.work) for number in range(arguments.individuals)], 1)
        jobs = ((unit, arguments.work, arguments.steps, deadline_s) for unit in todo)
        for unit, result in pool.imap_unordered(_one, jobs):
            if result is not None:
                yield unit, result


def _start(device: str, started: Any) -> None:
    """Make a worker of one thread, which sees a GPU only where it is to use it: with `both`, every second one.

    `started` is the number of workers before it, shared by all.
    """
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if device == "cpu" or (device == "both" and number % 2 == 1):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    torch.set_num_threads(1)


def _one(job: tuple[Unit, Path, int | None, float]) -> tuple[Unit, dict[str, Any] | None]:
    unit, work, num_steps, deadline_s = job
    if time.monotonic() > deadline_s:  # one clock for all processes of the machine
        return unit, None
    return unit, measured(unit, work, num_steps, load_judge(starter_folder()))


def table(results: dict[str, dict[str, Any]], options: list[str]) -> dict[str, Any]:
    """Print each option's paired differences from the plain recipe, and return them."""
    plain = {tuple(name.split(" | ")[1:]): values for name, values in results.items() if name.startswith(f"{PLAIN} |")}
    columns = (*MEASURES, "drift")
    figures: dict[str, Any] = {}
    print("| option | pairs | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    print(f"| {PLAIN}, as it is | {len(plain)} | " + " | ".join(
        _spread([values[name] for values in plain.values()], "") for name in columns
    ) + " |")  # fmt: skip
    for option in options:
        own = {tuple(name.split(" | ")[1:]): v for name, v in results.items() if name.startswith(f"{option} |")}
        pairs = [(own[where], plain[where]) for where in own if where in plain]
        if option == PLAIN or not pairs:
            continue
        differences = {name: [mine[name] - theirs[name] for mine, theirs in pairs] for name in columns}
        print(f"| {option} | {len(pairs)} | " + " | ".join(_spread(differences[name], "+") for name in columns) + " |")
        figures[option] = {
            name: {"mean": statistics.mean(values), "standard_error": _standard_error(values), "pairs": len(values)}
            for name, values in differences.items()
        }
    return figures


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _spread(values: list[float], sign: str) -> str:
    """Return the mean and its standard error."""
    if not values:
        return ""
    digits = 3 if max(map(abs, values)) >= 0.1 else 4
    return f"{statistics.mean(values):{sign}.{digits}f} ± {_standard_error(values):.{digits}f}"


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--individuals", type=int, default=3, help="How many, each of another class; at most 10.")
    parser.add_argument("--seeds", type=int, default=3, help="Trainings of each individual with each option.")
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=list(OPTIONS), metavar="OPTION")
    parser.add_argument("--steps", type=int, help="Another length than the recipe's; with --results of its own.")
    parser.add_argument("--workers", type=int, default=1, help="Processes, each of one thread.")
    parser.add_argument("--device", choices=("cpu", "cuda", "both"), default="cpu")
    parser.add_argument("--units", type=int, help="Measure at most so many of what is missing.")
    parser.add_argument("--minutes", type=float, help="Begin no unit after this time.")
    parser.add_argument("--work", type=Path, default=Path("outputs/recipes"), help="For photos, class pictures, runs.")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/recipes.json"))
    add_common_arguments(parser)
    arguments = parser.parse_args()

    kept = arguments.results
    results: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    units = units_of(arguments.options, arguments.individuals, arguments.seeds)
    todo = [unit for unit in units if unit.name not in results][: arguments.units]
    began_s = time.monotonic()
    for unit, result in work_off(todo, arguments) if todo else ():
        results[unit.name] = result
        temporary = kept.with_name(f".{kept.name}")
        temporary.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        temporary.replace(kept)
        shown = {name: round(value, 3) for name, value in result.items() if isinstance(value, float)}
        print(f"{time.monotonic() - began_s:6.0f} s {unit.name:45}", shown, flush=True)
    figures = table(results, arguments.options)
    if arguments.json:
        _, validity = judge_with_validity(load_base(STARTER).vae, arguments.validity_scenes)
        arguments.json.write_text(json.dumps({"validity": validity, "differences": figures}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
