"""Training of the starter's judge on painted pictures alone, and its validity.

A quarter of its pictures have gone through the starter's VAE, like everything that the starter generates.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.device.precision import autocast
from dreambooth.scoring import judge as judges
from dreambooth.scoring import measures
from dreambooth.starter import scenes
from dreambooth.starter.loop import Report, Stage, run_stage
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.recipe import Recipe
from dreambooth.starter.rich_judging import RICH_WORDS, rich_attribute_loss, rich_instance_loss
from dreambooth.starter.scenes import PATTERNS, Scene
from dreambooth.starter.subjects import Subject, near_misses, random_subject, render_subject
from dreambooth.starter.things import CLASSES, COLOURS

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

WORDS = {
    "class": list(CLASSES), "colour": list(COLOURS), "pattern": list(PATTERNS), "context": list(CONTEXTS),
}  # fmt: skip
BATCH = 64
NUM_INDIVIDUALS = 24
TEMPERATURE = 0.1
RATE = 2e-3
RETRIEVAL_GALLERY = 20


def new_judge(recipe: Recipe, seed: int) -> judges.Judge:
    """Return an untrained judge of the recipe's world."""
    import torch

    words, side_px = WORDS, judges.SIDE_PX
    if recipe.world == "rich":
        words, side_px = RICH_WORDS, side_px if recipe.size_px <= side_px else 2 * side_px
    with torch.random.fork_rng():
        torch.manual_seed(rng.derived_seed(seed, "starter", 10))
        attributes = judges.network(sum(map(len, words.values())), side_px)
        return judges.Judge(attributes, judges.network(judges.EMBEDDING_SIZE, side_px), words, side_px)


def train_judge(
    judge: judges.Judge, vae: Any, recipe: Recipe, seed: int, work_dir: Path, deadline_s: float, on_progress: Report
) -> None:
    """Train both networks for the recipe's steps each, or until the deadline with half the time for each."""
    attributes, instance = (part.requires_grad_(True).to(recipe.device) for part in (judge.attributes, judge.instance))
    losses: tuple[Callable[[int], Tensor], ...] = (
        lambda step: _attribute_loss(attributes, vae, seed, step),
        lambda step: _instance_loss(instance, vae, seed, step),
    )
    if recipe.world == "rich":
        losses = (
            lambda step: rich_attribute_loss(judge, seed, step),
            lambda step: rich_instance_loss(judge, seed, step),
        )
    named = zip(("judge-attributes", "judge-instance"), (attributes, instance), losses, strict=True)
    stages = [
        Stage(name, [part], loss, recipe.judge_steps, RATE, recipe.save_every, recipe.is_exact)
        for name, part, loss in named
    ]
    halfway_s = (time.monotonic() + deadline_s) / 2
    for stage, end_s in zip(stages, (halfway_s, deadline_s), strict=True):
        run_stage(stage, work_dir, end_s, on_progress)


def _attribute_loss(part: "nn.Sequential", vae: Any, seed: int, step: int) -> "Tensor":
    import torch

    painted = [_scene(seed, step * BATCH + number) for number in range(BATCH)]
    pictures = _worn(_partly_decoded(vae, [image for _, image in painted]), seed, step)
    scores = part(pictures).split([len(values) for values in WORDS.values()], dim=1)
    truths = [attributes_of(scene) for scene, _ in painted]
    total = torch.zeros(())
    for (name, values), part_scores in zip(WORDS.items(), scores, strict=True):
        wanted = torch.tensor([values.index(truth[name]) for truth in truths])
        total = total + torch.nn.functional.cross_entropy(part_scores, wanted)
    return total


def _instance_loss(part: "nn.Sequential", vae: Any, seed: int, step: int) -> "Tensor":
    """InfoNCE over individuals of one class (van den Oord et al. 2018, arXiv 1807.03748, eq. 4), two pictures of each.

    A third of them are near misses of others; pictures of the plain class are only negatives.
    """
    import torch

    painter = random.Random(rng.derived_seed(seed, "starter", 5, step))
    class_word = painter.choice(list(CLASSES))
    subjects: list[Subject] = []
    while len(subjects) < NUM_INDIVIDUALS:
        subject = random_subject(painter, class_word, held_out=False)
        subjects += [one for one in (subject, *near_misses(subject, painter)) if one not in subjects]
    subjects = subjects[:NUM_INDIVIDUALS]
    views = [_portrait(subject, painter) for subject in (*subjects, *subjects)]
    plain = [_plain(class_word, painter) for _ in range(BATCH - 2 * NUM_INDIVIDUALS)]
    vectors = part(_worn(_partly_decoded(vae, [*views, *plain]), seed, step))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    count = 2 * NUM_INDIVIDUALS
    scores = vectors[:count] @ vectors.T / TEMPERATURE
    scores = scores - 1e4 * torch.eye(count, BATCH)
    wanted = torch.arange(count).roll(NUM_INDIVIDUALS)
    return torch.nn.functional.cross_entropy(scores, wanted)


def attributes_of(scene: Scene) -> dict[str, str]:
    """Return the attributes that the judge should recognise in a scene."""
    return {
        "class": scene.class_word,
        "colour": scene.colour,
        "pattern": scene.pattern,
        "context": scene.context,
    }


def _scene(seed: int, number: int) -> "tuple[Scene, Image.Image]":
    painter = random.Random(rng.derived_seed(seed, "starter", 4, number))
    scene = scenes.random_scene(painter)
    return scene, scenes.render(scene, judges.SIDE_PX, painter)


def _portrait(subject: Subject, painter: random.Random) -> "Image.Image":
    return render_subject(subject, painter.choice(list(CONTEXTS)), judges.SIDE_PX, painter)


def _plain(class_word: str, painter: random.Random) -> "Image.Image":
    scene = scenes.random_scene(painter)
    same = Scene(class_word, scene.colour, scene.pattern, scene.context)
    return scenes.render(same, judges.SIDE_PX, painter)


def decoded(vae: Any, pictures: "Tensor") -> "Tensor":
    """Return the pictures after a pass through the VAE."""
    import torch

    with torch.no_grad(), autocast("cpu", torch.bfloat16, cache=True):
        restored: Tensor = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float().clamp(-1, 1)
    return restored


def _partly_decoded(vae: Any, images: "Sequence[Image.Image]") -> "Tensor":
    """Return the images with every fourth one passed through the VAE."""
    pictures = judges.as_pictures(images)
    pictures[::4] = decoded(vae, pictures[::4])
    return pictures


def _worn(pictures: "Tensor", seed: int, step: int) -> "Tensor":
    """Return the pictures with a little noise and half of them softened: what is judged later is never as clean."""
    import torch

    draws = rng.generator(seed, "starter", 6, step)
    soft = torch.nn.functional.avg_pool2d(pictures, 3, 1, 1, count_include_pad=False)
    is_soft = (torch.rand(len(pictures), 1, 1, 1, generator=draws) < 0.3).to(pictures)
    noise = torch.randn(pictures.shape, generator=draws) * 0.06 * torch.rand(len(pictures), 1, 1, 1, generator=draws)
    return pictures + is_soft * (soft - pictures) + noise


# Validity ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Validity:
    """How reliable the judge is on held-out pictures: shares of right answers, retrieval, and AUC."""

    attributes: dict[str, float]
    retrieval: float
    auc: float

    @property
    def holds(self) -> bool:
        """Return whether every score reaches its bound: 99 %, 90 %, 0.95."""
        return min(self.attributes.values()) >= 0.99 and self.retrieval >= 0.90 and self.auc >= 0.95


def validity(
    judge: judges.Judge, vae: Any | None, seed: int, num_scenes: int = 2000, num_galleries: int = 20
) -> Validity:
    """Measure the judge on pictures it was not trained on; with a `vae`, on the same pictures after a pass through it.

    Retrieval: for each of `num_galleries` classes, 20 held-out individuals of the class, one picture each as the query
    and one in another pose and place as the gallery. AUC: pictures of the plain class against other pictures of the
    individual, by their mean similarity to five pictures of it.
    """
    import torch

    painted = [_scene(seed, 10**9 + number) for number in range(num_scenes)]
    read: list[dict[str, str]] = []
    for first in range(0, num_scenes, 100):
        read += judge.attributes_of(_seen([image for _, image in painted[first : first + 100]], vae))
    truths = [attributes_of(scene) for scene, _ in painted]
    shares = {name: sum(a[name] == b[name] for a, b in zip(read, truths, strict=True)) / num_scenes for name in WORDS}

    found: list[float] = []
    curves: list[float] = []
    for number, class_word in zip(range(num_galleries), 10 * list(CLASSES), strict=False):
        painter = random.Random(rng.derived_seed(seed, "starter", 7, number))
        subjects: list[Subject] = []
        while len(subjects) < RETRIEVAL_GALLERY:
            subject = random_subject(painter, class_word, held_out=True)
            subjects += [] if subject in subjects else [subject]
        queries, gallery = ([_portrait(subject, painter) for subject in subjects] for _ in range(2))
        vectors = [judge.embeddings_of(_seen(images, vae)) for images in (queries, gallery)]
        found.append(measures.retrieval(*vectors))
        references, others = ([_portrait(subjects[0], painter) for _ in range(5)] for _ in range(2))
        plain = [_plain(class_word, painter) for _ in range(20)]
        real = judge.embeddings_of(_seen(references, vae))
        scores = [(judge.embeddings_of(_seen(images, vae)) @ real.T).mean(1) for images in (others, plain)]
        curves.append(measures.area_under_curve(*scores))
    return Validity(shares, float(torch.tensor(found).mean()), float(torch.tensor(curves).mean()))


def _seen(images: "Sequence[Image.Image]", vae: Any | None) -> "Tensor":
    pictures = judges.as_pictures(images)
    return pictures if vae is None else decoded(vae, pictures)
