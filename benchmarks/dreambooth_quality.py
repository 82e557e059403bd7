"""What a training teaches and what it costs the prior, as in the DreamBooth paper's tables 1 and 3 (arXiv 2208.12242).

`python -m benchmarks.dreambooth_quality`: individuals that neither the starter nor its judge has seen, five pictures
each, several seeds, with and without prior preservation, at the starter's own recipe. Every run's scores are kept under
`--work`, so the command goes on where it was; `--only` measures one individual and leaves the table to a later call.
"""

import argparse
import dataclasses
import json
import random
import shutil
import statistics
from pathlib import Path
from typing import Any

from benchmarks.judged import add_common_arguments, contact_sheet, judge_with_validity, pictures_for
from dreambooth import rng
from dreambooth.config.concepts import Concept
from dreambooth.config.presets import resolve
from dreambooth.environment import load_settings
from dreambooth.models.base import STARTER, Base, load_base, read_card
from dreambooth.models.saved_step import ModelSource, load
from dreambooth.runs.run import train
from dreambooth.scoring import measures
from dreambooth.scoring.judge import Judge
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.subjects import Subject, random_subject, render_subject

IDENTIFIER = "zwx"
NUM_PHOTOS = 5
NUM_CLASS_PICTURES = 12
MEASURES = ("fidelity", "prompt", "PRES", "DIV")
# One of each kind of shape; the individuals of these classes are drawn from the fifth that the judge never saw.
CLASSES = ("dog", "toy", "backpack", "teapot", "sneaker", "vase", "cat", "duck toy", "can", "clock")


def individuals(count: int, seed: int) -> list[Subject]:
    """Return this many held-out individuals, each of another class."""
    painters = [random.Random(rng.derived_seed(seed, "starter", 21, number)) for number in range(count)]
    chosen = zip(painters, CLASSES, strict=False)
    return [random_subject(painter, class_word, held_out=True) for painter, class_word in chosen]


def write_photos(subject: Subject, folder: Path, seed: int, side_px: int) -> None:
    """Write the five pictures that teach the individual, each in another place."""
    painter = random.Random(rng.derived_seed(seed, "starter", 22, CLASSES.index(subject.class_word)))
    folder.mkdir(parents=True, exist_ok=True)
    for number, context in enumerate(painter.sample(list(CONTEXTS), NUM_PHOTOS)):
        render_subject(subject, context, side_px, painter).save(folder / f"{number}.png")


@dataclasses.dataclass(frozen=True)
class Exam:
    """How a model is examined on one individual: its photos, and the words of the prompts."""

    judge: Judge
    photos: Path
    class_word: str
    guidance_scale: float

    def scores(self, base: Base, identifier: str, seed: int, sheet: Path | None = None) -> dict[str, float]:
        """Return fidelity, prompt fidelity, PRES and DIV; `identifier` is empty for the untaught base.

        Prompt fidelity is the share of pictures in which the judge reads the context that was asked for.
        """
        from PIL import Image

        real = self.judge.embeddings_of(
            self.judge.pictures([Image.open(file) for file in sorted(self.photos.glob("*.png"))])
        )
        words = f"{identifier} {self.class_word}".strip()
        shown = [
            pictures_for(base, f"a photo of {words} {phrase}", 1, seed + number, self.guidance_scale)[0]
            for number, (phrase, _) in enumerate(CONTEXTS.values())
        ]
        plain = pictures_for(base, f"photo of {self.class_word}", NUM_CLASS_PICTURES, seed + 100, self.guidance_scale)
        taught, of_class = (self.judge.rows_of(images) for images in (shown, plain))
        obeyed = [
            said["context"] == context
            for said, context in zip(self.judge.attributes_of(self.judge.pictures(shown)), CONTEXTS, strict=True)
        ]
        if sheet:
            contact_sheet([*shown, *plain], len(shown), sheet)
        return {
            "fidelity": measures.similarity(taught, real),
            "prompt": statistics.mean(obeyed),
            "PRES": measures.similarity(of_class, real),
            "DIV": measures.diversity(of_class),
        }

    def references(self, base: Base, subject: Subject, seed: int) -> dict[str, float]:
        """Return the ceiling among the real photos, and how surely base pictures are told from the individual."""
        from PIL import Image

        real = self.judge.embeddings_of(
            self.judge.pictures([Image.open(file) for file in sorted(self.photos.glob("*.png"))])
        )
        painter = random.Random(rng.derived_seed(seed, "starter", 23))
        others = [render_subject(subject, painter.choice(list(CONTEXTS)), 64, painter) for _ in range(20)]
        plain = pictures_for(base, f"photo of {self.class_word}", 20, seed + 200, self.guidance_scale)
        near, far = ((self.judge.rows_of(images) @ real.T).mean(1) for images in (others, plain))
        return {"ceiling": measures.own_similarity(real), "auc": measures.area_under_curve(near, far)}


def examined_run(exam: Exam, data_dir: Path, seed: int, prior: bool, overrides: dict[str, Any]) -> dict[str, float]:
    """Train on the exam's photos by the starter's recipe, and return the scores.

    The run's folder is removed afterwards, its contact sheet stays.
    """
    name = f"{exam.class_word} {seed} {'prior' if prior else 'plain'}".replace(" ", "-")
    concept = Concept(f"photo of {IDENTIFIER} {exam.class_word}", str(exam.photos), f"photo of {exam.class_word}")
    explicit = {
        "pretrained_model_name_or_path": STARTER,
        "concepts": (concept,),
        "output_dir": str(data_dir / "runs" / name),
        "seed": seed,
        "with_prior_preservation": prior,
        "save_sample_prompt": None,
        "mixed_precision": "no",
        "use_8bit_adam": False,
        "checkpointing_steps": 0,
        **overrides,
    }
    shutil.rmtree(data_dir / "runs" / name, ignore_errors=True)
    config = resolve(explicit, read_card(STARTER).recipes, "recommended").checked()
    last = train(config, settings=dataclasses.replace(load_settings(), data_dir=data_dir))
    found = exam.scores(load(ModelSource(str(last))), IDENTIFIER, 1000 * seed, data_dir / "sheets" / f"{name}.png")
    shutil.rmtree(last.parent)
    return found


def measure(
    judge: Judge, number: int, subject: Subject, seeds: list[int], work: Path, subject_seed: int
) -> dict[str, Any]:
    """Return all scores of one individual, taking those that `work` has already."""
    base = load_base(STARTER)
    folder = work / f"{number}-{subject.class_word.replace(' ', '-')}"
    write_photos(subject, folder / "photos", subject_seed, base.card.native_px)
    guidance_scale = base.guidance_scale
    exam = Exam(judge, folder / "photos", subject.class_word, guidance_scale)
    kept = folder / "scores.json"
    scores: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}

    def keep(name: str, values: dict[str, float]) -> None:
        scores[name] = values
        kept.write_text(json.dumps(scores, indent=1), "utf-8")
        print(f"{subject.class_word:10} {name:8}", {key: round(value, 3) for key, value in values.items()}, flush=True)

    if "base" not in scores:
        keep("base", exam.scores(base, "", 0, folder / "sheets" / "base.png"))
        keep("real", exam.references(base, subject, 0))
    for seed in seeds:
        for prior in (True, False):
            name = f"{'prior' if prior else 'plain'} {seed}"
            if name not in scores:
                keep(name, examined_run(exam, folder, seed, prior, {}))
    return scores


def table(all_scores: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """Print means with their spread over individuals and seeds, and return them."""
    rows: dict[str, dict[str, list[float]]] = {
        "untaught base": {name: [s["base"][name] for s in all_scores] for name in MEASURES}
    }
    for kind, title in (("plain", "without prior preservation"), ("prior", "with prior preservation")):
        rows[title] = {name: [s[f"{kind} {seed}"][name] for s in all_scores for seed in seeds] for name in MEASURES}
    pairs = zip(*(rows[f"{kind} prior preservation"].items() for kind in ("with", "without")), strict=True)
    rows["difference, in pairs"] = {
        name: [a - b for a, b in zip(ours, theirs, strict=True)] for (name, ours), (_, theirs) in pairs
    }
    ceiling = [s["real"]["ceiling"] for s in all_scores]
    print(f"{'':28}" + "".join(f"{name:>16}" for name in MEASURES))
    print(f"{'real pictures (ceiling)':28}{_spread(ceiling):>16}")
    figures: dict[str, Any] = {"ceiling": _figures(ceiling), "auc": _figures([s["real"]["auc"] for s in all_scores])}
    for title, columns in rows.items():
        print(f"{title:28}" + "".join(f"{_spread(values):>16}" for values in columns.values()))
        figures[title] = {name: _figures(values) for name, values in columns.items()}
    print(f"AUC of real against base pictures: {_spread([s['real']['auc'] for s in all_scores])}")
    return figures


def _figures(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}


def _spread(values: list[float]) -> str:
    found = _figures(values)
    return f"{found['mean']:.3f} +- {found['spread']:.3f}"


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dreambooth_quality", description=__doc__)
    parser.add_argument("--individuals", type=int, default=6, help="How many, each of another class; at most 10.")
    parser.add_argument("--seeds", type=int, default=3, help="Trainings of each individual, with and without prior.")
    parser.add_argument("--only", type=int, help="Measure this individual alone, and print no table.")
    parser.add_argument("--work", type=Path, default=Path("outputs/dreambooth-quality"), help="Where scores are kept.")
    add_common_arguments(parser)
    arguments = parser.parse_args()

    judge, validity = judge_with_validity(load_base(STARTER).vae, arguments.validity_scenes)
    seeds, chosen = list(range(arguments.seeds)), individuals(arguments.individuals, seed=0)
    numbers = range(len(chosen)) if arguments.only is None else [arguments.only]
    scores = [measure(judge, number, chosen[number], seeds, arguments.work, 0) for number in numbers]
    if arguments.only is not None:
        return
    figures = table(scores, seeds)
    if arguments.json:
        summary = {"individuals": [dataclasses.asdict(one) for one in chosen], "seeds": seeds, **figures}
        arguments.json.write_text(json.dumps({**summary, "validity": validity}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
