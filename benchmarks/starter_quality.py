"""How often the starter paints what it is asked for: `python -m benchmarks.starter_quality [--prompts N --json FILE]`.

Prompts are captions of random scenes; a picture is right in class, colour, pattern or context where the judge reads
there what the prompt says. The judge's own validity comes first. About six minutes on one CPU core.
"""

import argparse
import json
import random
from pathlib import Path

from benchmarks.judged import add_common_arguments, contact_sheet, judge_with_validity, pictures_for
from dreambooth import rng
from dreambooth.models.base import STARTER, load_base
from dreambooth.starter import scenes
from dreambooth.starter.judging import WORDS, attributes_of


def main() -> None:
    """Print the shares, and write figures and contact sheet."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starter_quality", description=__doc__)
    parser.add_argument("--prompts", type=int, default=500, help="How many prompts, one picture each.")
    parser.add_argument("--guidance_scale", type=float, help="The recipe's own when left out.")
    parser.add_argument("--seed", type=int, default=0, help="Start of all randomness.")
    parser.add_argument("--sheet", type=Path, default=Path("outputs/starter_quality.png"), help="The contact sheet.")
    parser.add_argument("--model", default=STARTER, help="Another folder with a starter's UNet and text encoder.")
    add_common_arguments(parser)
    arguments = parser.parse_args()

    base = load_base(arguments.model)
    judge, validity = judge_with_validity(base.vae, arguments.validity_scenes)
    guidance_scale = arguments.guidance_scale or base.guidance_scale
    right = dict.fromkeys(WORDS, 0)
    all_right = 0
    images = []
    for number in range(arguments.prompts):
        scene = scenes.random_scene(random.Random(rng.derived_seed(arguments.seed, "starter", 20, number)))
        picture = pictures_for(base, scene.caption, 1, arguments.seed + number, guidance_scale)
        said, wanted = judge.attributes_of(judge.pictures(picture))[0], attributes_of(scene)
        for name in right:
            right[name] += said[name] == wanted[name]
        all_right += said == wanted
        images += picture
        if (number + 1) % 50 == 0:
            shares = "  ".join(f"{name} {count / (number + 1):.3f}" for name, count in right.items())
            print(f"{number + 1:4} prompts: {shares}  all four {all_right / (number + 1):.3f}", flush=True)
    contact_sheet(images[:200], 20, arguments.sheet)
    print(f"Contact sheet of the first {min(len(images), 200)}: {arguments.sheet}")
    figures = {name: count / arguments.prompts for name, count in right.items()}
    figures |= {"all": all_right / arguments.prompts}
    summary = {**figures, "prompts": arguments.prompts, "guidance_scale": guidance_scale, "validity": validity}
    if arguments.json:
        arguments.json.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
