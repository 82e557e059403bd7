"""Which recipe suits the starter: `python -m benchmarks.recipe_sweep`, over rates, steps, weights and batches.

Two individuals that `benchmarks.dreambooth_quality` does not use, prior preservation on, a rate that falls to
zero over the run. The best is the one with the highest product of fidelity (as a share of the ceiling) and prompt
fidelity. "Unpadded" scores were taken while the recipe trained on captions of their own length: generation pads to 77
tokens, and what was taught to the first eight of them often did not come out. All scores are kept in `--scores`: a
second call with other values adds to them, and ranks all.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from benchmarks.dreambooth_quality import Exam, examined_run, individuals, write_photos
from benchmarks.judged import add_common_arguments, judge_with_validity
from dreambooth.models.base import STARTER, load_base

SUBJECT_SEED = 1


def main() -> None:
    """Measure what is missing, and print all of it, the best first."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipe_sweep", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4])
    parser.add_argument("--text_encoder_rates", type=float, nargs="+", default=[1e-3, 2e-3])
    parser.add_argument("--prior_weights", type=float, nargs="+", default=[1.0])
    parser.add_argument("--class_guidances", type=float, nargs="+", default=[2.0], help="Of the class pictures.")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0, 0.1], help="Of Min-SNR weighting; 0: none.")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 600])
    parser.add_argument("--method", default="full", help="Of the training; a LoRA's rank and targets are below.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[16])
    parser.add_argument("--targets", nargs="+", default=["linear"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="Of the training and the exam's pictures.")
    parser.add_argument("--individuals", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("outputs/recipe-sweep"), help="For photos, runs and sheets.")
    parser.add_argument(
        "--scores", type=Path, default=Path("benchmarks/results/recipe_sweep.json"), help="Where scores are kept."
    )
    add_common_arguments(parser)
    arguments = parser.parse_args()

    base = load_base(STARTER)
    judge, validity = judge_with_validity(base.vae, arguments.validity_scenes)
    guidance_scale = base.guidance_scale
    kept = arguments.scores
    scores: dict[str, Any] = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
    loras: list[dict[str, Any]] = [{}]
    if arguments.method == "lora":
        sizes = itertools.product(arguments.ranks, arguments.targets)
        loras = [{"lora_rank": rank, "lora_targets": targets} for rank, targets in sizes]
    for subject in individuals(arguments.individuals, SUBJECT_SEED):
        photos = arguments.work / subject.class_word.replace(" ", "-")
        write_photos(subject, photos / "photos", SUBJECT_SEED, base.card.native_px)
        exam = Exam(judge, photos / "photos", subject.class_word, guidance_scale)
        for rate, text_encoder_rate, weight, class_guidance, gamma, batch_size, num_steps, lora in itertools.product(
            arguments.rates, arguments.text_encoder_rates, arguments.prior_weights, arguments.class_guidances,
            arguments.gammas, arguments.batch_sizes, arguments.steps, loras,
        ):  # fmt: skip
            setting = (
                f"rate {rate:g} text encoder {text_encoder_rate:g} prior {weight:g} at guidance {class_guidance:g} "
                f"gamma {gamma:g} batch {batch_size} steps {num_steps}"
            )
            setting += "".join(f" {key} {value}" for key, value in lora.items())
            name = f"{subject.class_word} {setting}"
            if name in scores:
                continue
            overrides = {
                "learning_rate": rate,
                "text_encoder_lr": text_encoder_rate,
                "prior_loss_weight": weight,
                "class_guidance_scale": class_guidance,
                "snr_gamma": gamma or None,
                "train_batch_size": batch_size,
                "max_train_steps": num_steps,
                "save_interval": num_steps,
                "lr_scheduler": "cosine",
                "method": arguments.method,
                **lora,
            }
            found = [examined_run(exam, photos, seed, True, overrides) for seed in arguments.seeds]
            means = {key: sum(one[key] for one in found) / len(found) for key in found[0]}
            scores[name] = means | {"ceiling": _ceiling(exam)}
            kept.write_text(json.dumps(scores, indent=1), "utf-8")
            print(name, _merit(scores[name]), flush=True)
    figures = ranking(scores)
    if arguments.json:
        arguments.json.write_text(json.dumps({"validity": validity, "ranking": figures}, indent=1) + "\n", "utf-8")


def _ceiling(exam: Exam) -> float:
    from PIL import Image

    from dreambooth.scoring import measures

    photos = [Image.open(file) for file in sorted(exam.photos.glob("*.png"))]
    return measures.own_similarity(exam.judge.rows_of(photos))


def _merit(values: dict[str, float]) -> float:
    return round(values["fidelity"] / values["ceiling"] * values["prompt"], 3)


def ranking(scores: dict[str, Any]) -> list[dict[str, Any]]:
    """Print every setting's means over the individuals, the best first, and return them."""
    by_setting: dict[str, list[dict[str, float]]] = {}
    for name, values in scores.items():
        by_setting.setdefault(name[name.index("rate ") :], []).append(values | {"merit": _merit(values)})
    rows = [
        {"setting": setting, "individuals": len(found)}
        | {key: sum(values[key] for values in found) / len(found) for key in found[0]}
        for setting, found in by_setting.items()
    ]
    # What was given up after the first individual stands last.
    rows.sort(key=lambda row: (-int(row["individuals"]), -float(row["merit"])))
    for row in rows:
        figures = "  ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float))
        print(f"{row['setting']:92} {row['individuals']} individuals  {figures}")
    return rows


if __name__ == "__main__":
    main()
