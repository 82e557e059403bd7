"""A taught model examined afresh: prompts, places and seeds that neither a run's probes nor its recommendation saw.

The same exam for every benchmark of quality, so that their figures compare.
"""

import random
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth import rng
from dreambooth.config.generation import GenerationConfig
from dreambooth.models.base import Base
from dreambooth.models.manager import ModelManager
from dreambooth.pictures.generation import generate_images
from dreambooth.scoring.encoders import Examiner
from dreambooth.scoring.figures import Kind, ProbePicture, Reference, step_scores
from dreambooth.scoring.probes import PLACES
from dreambooth.scoring.recommendation import StepScores
from dreambooth.starter.places import CONTEXTS

IDENTIFIER = "zwx"
NUM_STEPS = 20
GUIDANCE_SCALE = 3.0
PER_PLACE, NUM_CLASS, NUM_OTHERS = 2, 12, 2
# Words that no probe has: the other places, the class with an article, two classes of another kind.
UNSEEN_PLACES = tuple(phrase for phrase, _ in CONTEXTS.values() if phrase not in PLACES)
OTHERS = ("a photo of a vase", "a photo of a cat in the jungle", "a photo of a red backpack", "a photo of a person")


def exam_prompts(class_word: str, *, taught: bool = True) -> list[tuple[Kind, str, str, int]]:
    """Return kind, prompt, what it asks for in the base's words, and how many pictures of it."""
    words = f"{IDENTIFIER} {class_word}" if taught else class_word
    found: list[tuple[Kind, str, str, int]] = [
        ("identifier", f"a photo of a {words} {place}", f"a photo of a {class_word} {place}", PER_PLACE)
        for place in UNSEEN_PLACES
    ]
    plain = f"a photo of a {class_word}"
    others = [prompt for prompt in OTHERS if class_word not in prompt]
    found.append(("class", plain, plain, NUM_CLASS))
    found += [("unrelated", prompt, prompt, NUM_OTHERS) for prompt in others[:3]]
    found.append(("empty", "", "", NUM_OTHERS))
    return found


def exam_pictures(base: Base, manager: ModelManager, class_word: str, seed: int) -> list[ProbePicture]:
    """Make the pictures of the exam; every model of one seed gets the same noise."""
    for part in base.modules().values():
        manager.place(part)
    side_px = base.card.native_px
    found = []
    for number, (kind, prompt, asked, count) in enumerate(exam_prompts(class_word)):
        request = GenerationConfig(
            prompt=prompt, num_images_per_prompt=count, num_inference_steps=NUM_STEPS, guidance_scale=GUIDANCE_SCALE,
            height=side_px, width=side_px, seed=rng.derived_seed(seed, "starter", 31, number) % 2**31,
        )  # fmt: skip
        pictures = generate_images(base, request, batch_size=12)
        found += [ProbePicture(0, kind, asked, picture.image) for picture in pictures]
    return found


def examined(
    examiner: Examiner, step: int, pictures: list[ProbePicture], before: list[ProbePicture], photos: Path
) -> StepScores:
    """Return a model's figures in the exam, held against the base's pictures and the photos."""
    own = [Image.open(file).convert("RGB") for file in sorted(photos.glob("*.png"))]
    return step_scores(examiner, step, pictures, Reference([own], before))


def figures(scores: StepScores) -> dict[str, Any]:
    """Return scores as plain values for a file."""
    plain = {"fidelity": scores.fidelity, "prompt": scores.prompt, "drift": scores.drift}
    return plain | {"measures": dict(scores.measures)}


def painter(*position: int) -> random.Random:
    """Return a generator for painted things at this position."""
    return random.Random(rng.derived_seed(0, "starter", 30, *position))
