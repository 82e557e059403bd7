"""How far the judge's likeness falls when details are lost: `python -m benchmarks.judge_calibration`.

Held-out individuals with eyes, painted at 128 px, are degraded by degrees: blurred, the emblem gone or wrong, a half in
another colour, an eye wrong, the eyes gone. Likeness is that of a run: the mean cosine to five clean pictures of the
individual, 0 for plain things of its class and 1 for other clean pictures of it. About three minutes on one CPU core.
"""

import argparse
import json
import random
import statistics
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dreambooth import rng
from dreambooth.models.base import starter_folder
from dreambooth.scoring import measures
from dreambooth.scoring.judge import Judge, load_judge
from dreambooth.starter import rendering
from dreambooth.starter.degradations import DEGRADATIONS, WITH_EYES, degraded, portrait, random_individual
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.rich_world import Scene, plain_look
from dreambooth.starter.things import COLOURS

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SIZE_PX = 128
NUM_PHOTOS, NUM_PICTURES = 5, 10
PANEL_PX, EDGE_PX = 220, 40


def main() -> None:
    """Print the table, and write figures and curves."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge_calibration", description=__doc__)
    parser.add_argument("--individuals", type=int, default=20, help="How many, the classes in turn.")
    parser.add_argument("--judge", type=Path, default=starter_folder(), help="The folder with the judge.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Write the figures there too.")
    parser.add_argument("--curves", type=Path, metavar="FILE", help="Draw the curves into this PNG.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    judge = load_judge(arguments.judge)
    units = [examined(judge, number) for number in range(arguments.individuals)]
    figures = {kind: [summary([one[kind][place] for one in units]) for place in range(len(STRENGTHS))]
               for kind in DEGRADATIONS}  # fmt: skip
    print(f"Likeness by strength, {arguments.individuals} individuals, {NUM_PICTURES} pictures each (± standard error)")
    print(f"{'':18}" + "".join(f"{strength:>15.2f}" for strength in STRENGTHS))
    for kind, row in figures.items():
        print(f"{kind:18}" + "".join(f"{one['mean']:8.3f} ± {one['error']:.3f}" for one in row))
    if arguments.json:
        arguments.json.write_text(json.dumps({"strengths": STRENGTHS, "likeness": figures}, indent=2) + "\n", "utf-8")
    if arguments.curves:
        draw_curves({kind: [one["mean"] for one in row] for kind, row in figures.items()}, arguments.curves)


def examined(judge: Judge, number: int) -> dict[str, list[float]]:
    """Return the likeness of one individual's pictures for each degradation and strength."""
    painter = random.Random(rng.derived_seed(0, "starter", 40, number))
    individual = random_individual(painter, WITH_EYES[number % len(WITH_EYES)])
    photos, shown = ([portrait(individual, painter.choice(list(CONTEXTS)), painter) for _ in range(count)]
                     for count in (NUM_PHOTOS, NUM_PICTURES))  # fmt: skip
    plain = [Scene(individual.scene.class_word, painter.choice(list(COLOURS)), "plain", scene.context)
             for scene, _ in shown]  # fmt: skip

    def rows(images: list[Image.Image]) -> Any:
        return judge.rows_of(images)

    real = rows(degraded(individual, photos, "blurred", 0.0, SIZE_PX))
    clean = measures.similarity(rows(degraded(individual, shown, "blurred", 0.0, SIZE_PX)), real)
    pictures, _ = rendering.render([(scene, plain_look(scene, painter)) for scene in plain], SIZE_PX)
    start = measures.similarity(rows([Image.fromarray(one.numpy()) for one in pictures]), real)

    def likeness(kind: str, strength: float) -> float:
        images = degraded(individual, shown, kind, strength, SIZE_PX)
        return measures.share_of_way(measures.similarity(rows(images), real), start, clean)

    return {kind: [likeness(kind, strength) for strength in STRENGTHS] for kind in DEGRADATIONS}


def summary(values: list[float]) -> dict[str, float]:
    """Return the mean and its standard error."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 4), "error": round(spread / len(values) ** 0.5, 4)}


def draw_curves(curves: dict[str, list[float]], path: Path) -> None:
    """Draw a small panel for each degradation: likeness, 0 to 1, over strength, 0 to 1."""
    columns = 4
    rows = -(-len(curves) // columns)
    image = Image.new("RGB", (columns * (PANEL_PX + EDGE_PX) + EDGE_PX, rows * (PANEL_PX + EDGE_PX) + EDGE_PX), "white")
    draw = ImageDraw.Draw(image)
    draw.font = ImageFont.load_default(16)
    for number, (kind, values) in enumerate(curves.items()):
        left = EDGE_PX + (number % columns) * (PANEL_PX + EDGE_PX)
        top = EDGE_PX + (number // columns) * (PANEL_PX + EDGE_PX)
        draw.rectangle((left, top, left + PANEL_PX, top + PANEL_PX), outline="#d8d8de")
        draw.text((left, top - 22), kind, "#30303a")
        places = zip(STRENGTHS, values, strict=True)
        line = [(left + strength * PANEL_PX, top + (1 - value) * PANEL_PX) for strength, value in places]
        draw.line(line, "#1f6fb4", 3)
        for share in (0, 1):
            draw.text((left - 16, top + (1 - share) * PANEL_PX - 8), str(share), "#30303a")
    image.save(path)


if __name__ == "__main__":
    main()
