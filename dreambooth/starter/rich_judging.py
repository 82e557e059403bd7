"""Training of the judge of the 128 px starter: what a picture shows, and how like its individual it is.

Individuals are distinguished as by the plain world's judge. In addition the likeness of a picture with a lost detail is
trained to fall with the loss, so that 1 is the likeness of a clean picture.
"""

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from dreambooth import rng
from dreambooth.scoring.judge import Judge
from dreambooth.starter import rendering, rich_world
from dreambooth.starter.atlas import EMBLEMS
from dreambooth.starter.degradations import DEGRADATIONS, LOSSES, WITH_EYES, blurred, portrait, random_individual
from dreambooth.starter.more_places import MORE_CONTEXTS
from dreambooth.starter.more_things import MORE_CLASSES
from dreambooth.starter.things import COLOURS

if TYPE_CHECKING:
    from torch import Tensor

NONE = "none"
RICH_WORDS = {
    "class": list(MORE_CLASSES), "colour": list(COLOURS), "pattern": list(rich_world.PATTERNS),
    "context": list(MORE_CONTEXTS), "second": [NONE, *COLOURS], "emblem": [NONE, *EMBLEMS],
    "emblem_colour": [NONE, *COLOURS],
}  # fmt: skip
BATCH = 32
NUM_INDIVIDUALS, NUM_PLAIN = 12, 8
TEMPERATURE = 0.1
CALIBRATION_SHARE = 4.0
NOISE = 0.03


def rich_attributes_of(scene: rich_world.Scene) -> dict[str, str]:
    """Return the attributes that the judge should recognise in a scene."""
    return {
        "class": scene.class_word, "colour": scene.colour, "pattern": scene.pattern, "context": scene.context,
        "second": scene.second or NONE, "emblem": scene.emblem or NONE, "emblem_colour": scene.emblem_colour or NONE,
    }  # fmt: skip


def rich_attribute_loss(judge: Judge, seed: int, step: int) -> "Tensor":
    """Return the sum of cross entropies of all attributes on scenes of the world."""
    import torch

    painter = random.Random(rng.derived_seed(seed, "starter", 33, step))
    drawn = [rich_world.random_scene(painter) for _ in range(BATCH)]
    pictures = _pictures(
        [(scene, rich_world.random_look(scene, painter)) for scene in drawn], [0.0] * BATCH, judge, seed, step
    )
    scores = judge.attributes(pictures).split([len(values) for values in RICH_WORDS.values()], dim=1)
    truths = [rich_attributes_of(scene) for scene in drawn]
    total = torch.zeros((), device=scores[0].device)
    for (name, values), part in zip(RICH_WORDS.items(), scores, strict=True):
        wanted = torch.tensor([values.index(truth[name]) for truth in truths]).to(part.device)
        total = total + torch.nn.functional.cross_entropy(part, wanted)
    return total


def rich_instance_loss(judge: Judge, seed: int, step: int) -> "Tensor":
    """InfoNCE over individuals of one class (arXiv 1807.03748, eq. 4), and the error of likeness under degradation.

    The batch has two clean pictures of each individual, one degraded by a random kind and strength, and plain things of
    the class as negatives.
    """
    import torch

    painter = random.Random(rng.derived_seed(seed, "starter", 34, step))
    class_word = painter.choice(list(MORE_CLASSES))
    people = [random_individual(painter, class_word, held_out=False) for _ in range(NUM_INDIVIDUALS)]
    looks = rich_world.random_look
    clean = [portrait(one, painter.choice(rich_world.PLACES), painter, looks) for _ in range(2) for one in people]
    kinds = [kind for kind in DEGRADATIONS if class_word in WITH_EYES or not kind.startswith("eye")]
    lost, targets, blurs = [], [], []
    for one in people:
        kind, strength = painter.choice(kinds), painter.random()
        scene, look = portrait(one, painter.choice(rich_world.PLACES), painter, looks)
        lost.append(DEGRADATIONS[kind](one, scene, look, strength))
        # Another emblem is another one at any strength.
        targets.append(1 - LOSSES[kind] * (1 if kind == "another emblem" else strength))
        blurs.append(strength if kind == "blurred" else 0.0)
    plain = [replace(rich_world.random_scene(painter), class_word=class_word, accessory=None) for _ in range(NUM_PLAIN)]
    painted = [*clean, *lost, *((scene, looks(scene, painter)) for scene in plain)]
    blurs = [*[0.0] * len(clean), *blurs, *[0.0] * NUM_PLAIN]
    pictures = _pictures(painted, blurs, judge, seed, step)
    vectors = torch.nn.functional.normalize(judge.instance(pictures), dim=1)
    first, second, degraded_rows, others = vectors.split([NUM_INDIVIDUALS] * 3 + [NUM_PLAIN])
    both = torch.cat([first, second])
    scores = both @ torch.cat([both, others]).T / TEMPERATURE
    scores = scores - 1e4 * torch.eye(*scores.shape, device=scores.device)
    told_apart = torch.nn.functional.cross_entropy(
        scores, torch.arange(len(both), device=both.device).roll(NUM_INDIVIDUALS)
    )
    wanted = torch.tensor(targets).to(vectors)
    likeness = [(degraded_rows * one).sum(1) for one in (first, second)]
    off = sum(((found - wanted).square().mean() for found in likeness), torch.zeros_like(told_apart))
    return told_apart + CALIBRATION_SHARE * off


def _pictures(painted: list[rendering.Painted], blurs: list[float], judge: Judge, seed: int, step: int) -> "Tensor":
    """Return the pictures in [-1, 1], blurred to this degree, with a little noise: what is judged later is never as
    clean.
    """
    import torch
    from PIL import Image

    device = next(judge.instance.parameters()).device
    images, _ = rendering.render(painted, judge.side_px, str(device))
    pictures = images.permute(0, 3, 1, 2) / 127.5 - 1
    for place, blur in enumerate(blurs):
        if blur:
            pictures[place] = judge.pictures([blurred(Image.fromarray(images[place].cpu().numpy()), blur)])[0]
    draws = rng.generator(seed, "starter", 35, step)
    level = NOISE * torch.rand(len(pictures), 1, 1, 1, generator=draws)
    return pictures + (level * torch.randn(pictures.shape, generator=draws)).to(pictures)
