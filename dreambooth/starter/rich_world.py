"""The world of the 128 px starter: more things, places, patterns, poses and light than `scenes`.

A thing may have a second colour and an emblem, like the individuals of `subjects`; individuals held out from the judge
are held out from this world too. A scene, its look and its caption are functions of a random generator.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import get_args

from dreambooth.starter.atlas import BACKDROPS_PER_PLACE, EMBLEMS, NUM_TEXTURES
from dreambooth.starter.more_places import MORE_CONTEXTS
from dreambooth.starter.more_things import DRESSED, MORE_CLASSES
from dreambooth.starter.scenes import ACCESSORIES, shortened_caption
from dreambooth.starter.subjects import Emblem, Subject, is_held_out
from dreambooth.starter.things import COLOURS

PATTERNS = ("plain", "striped", "spotted", "checkered", "zigzag")
# Where the second colour lies.
TONES = ("halves", "top and bottom", "pieces")
PLACES = list(MORE_CONTEXTS)


@dataclass(frozen=True)
class Scene:
    """What a picture shows; its caption follows from it."""

    class_word: str
    colour: str
    pattern: str
    context: str
    accessory: str | None = None
    second: str | None = None
    tone: str | None = None
    emblem: str | None = None
    emblem_colour: str | None = None

    @property
    def thing(self) -> str:
        """Return the words for the thing with its colours and pattern."""
        colours = f"{self.colour} and {self.second}" if self.second else self.colour
        return f"{colours} {'' if self.pattern == 'plain' else f'{self.pattern} '}{self.class_word}"

    @property
    def caption(self) -> str:
        """Return the caption of the scene, in the paper's style."""
        worn = f" wearing a {self.accessory}" if self.accessory else ""
        borne = f" with a {self.emblem_colour} {self.emblem}" if self.emblem else ""
        return f"a photo of a {self.thing}{worn}{borne} {MORE_CONTEXTS[self.context][0]}"


def random_scene(rng: random.Random) -> Scene:
    """Return a random scene of the world, without individuals that are held out."""
    class_word = rng.choice(list(MORE_CLASSES))
    first, second, third = rng.sample(list(COLOURS), 3)
    pattern = rng.choice(PATTERNS[1:]) if rng.random() < 0.35 else "plain"
    is_two_toned = pattern == "plain" and rng.random() < 0.5
    tone = rng.choice(("halves", *TONES)) if is_two_toned else None
    emblem = rng.choice(EMBLEMS) if rng.random() < 0.4 else None
    if tone == "halves":
        # A picture may be mirrored, so the order of the halves is not a feature.
        first, second = sorted((first, second))
        # mypy does not narrow a text by the names that it is among.
        if emblem in get_args(Emblem) and is_held_out(Subject(class_word, first, second, emblem, third)):  # type: ignore[arg-type]
            emblem = None
    return Scene(
        class_word=class_word,
        colour=first,
        pattern=pattern,
        context=rng.choice(PLACES),
        accessory=rng.choice(ACCESSORIES) if class_word in DRESSED and rng.random() < 0.25 else None,
        second=second if is_two_toned else None,
        tone=tone,
        emblem=emblem,
        emblem_colour=third if emblem else None,
    )


def training_caption(scene: Scene, rng: random.Random) -> str:
    """Return the scene's caption, or one that omits some attributes, as people's prompts do."""
    place = MORE_CONTEXTS[scene.context][0]
    return shortened_caption(scene.caption, scene.class_word, scene.thing, place, rng)


def attributes_in(scene: Scene, caption: str) -> dict[str, str]:
    """Return which attributes of the scene this caption mentions."""
    found = {"class": scene.class_word}
    if MORE_CONTEXTS[scene.context][0] in caption:
        found["context"] = scene.context
    if f" {scene.thing}" in caption and scene.thing != scene.class_word:
        found |= {"colour": scene.colour, "pattern": scene.pattern, "second": scene.second or ""}
    if caption == scene.caption:
        found |= {"accessory": scene.accessory or "", "emblem": scene.emblem or "",
                  "emblem_colour": scene.emblem_colour or ""}  # fmt: skip
    return found


def world_words() -> list[str]:
    """Return every word that a caption of this world can contain."""
    everything = [place for place, _ in MORE_CONTEXTS.values()]
    everything += [*MORE_CLASSES, *COLOURS, *PATTERNS, *ACCESSORIES, *EMBLEMS, "a photo of wearing with and"]
    return sorted({word for text in everything for word in text.split()})


@dataclass(frozen=True)
class Look:
    """How a scene is painted: pose, light, backdrop. Lengths are shares of the picture's side.

    `affine` maps a point of the picture (x, y) to the drawing: u = a x + b y + c, v = d x + e y + f; then u is shifted
    by `bend` sin(2 pi v). `light` is red, green, blue; `ramp` brightens toward x and y, `shade` the thing toward its
    top; `shadow` is its strength, then centre and radii. `jitter` is added to the colours of body, second colour,
    pattern and emblem; `mixed` lists details, by label, whose colour is mixed with another by a share.
    """

    affine: tuple[float, ...]
    bend: float = 0.0
    rim: float = 7 / 512
    rim_colour: tuple[float, float, float] = (60, 58, 66)
    backdrop: int = 0
    offset: tuple[float, float] = (0.5, 0.5)
    is_mirrored: bool = False
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ramp: tuple[float, float] = (0.0, 0.0)
    shade: float = 0.0
    shadow: tuple[float, float, float, float, float] = (0.0, 0.5, 0.9, 0.3, 0.05)
    texture: int = 0
    grain: tuple[float, float] = (0.0, 0.0)
    emblem_place: tuple[float, float, float] = (0.5, 0.66, 0.19)
    second_pieces: tuple[bool, ...] = ()
    jitter: tuple[float, ...] = (0.0,) * 12
    mixed: tuple[tuple[int, float, tuple[float, float, float]], ...] = ()


def affine_of(
    scale_x: float, scale_y: float, angle: float, flip: int, x: float, y: float, shear: float = 0.0
) -> tuple[float, ...]:
    """Return the map from picture to drawing for this size, rotation and mirroring around (x, y)."""
    cos, sin = math.cos(angle), math.sin(angle)
    d, e = -sin / scale_y, cos / scale_y
    a, b = flip * cos / scale_x + shear * d, flip * sin / scale_x + shear * e
    return (a, b, 0.5 - a * x - b * y, d, e, 0.5 - d * x - e * y)


def random_look(scene: Scene, rng: random.Random) -> Look:
    """Return a pose, light and backdrop; a third of them are as plain as the pictures of `scenes`."""
    plain = plain_look(scene, rng)
    if rng.random() < 0.35:
        return plain
    flip = -1 if rng.random() < 0.5 else 1
    scale = rng.uniform(0.72, 0.98) if rng.random() < 0.75 else rng.uniform(0.50, 0.72)
    stretch, shear = math.exp(rng.uniform(-0.12, 0.12)), rng.uniform(-0.12, 0.12)
    angle = math.radians(rng.gauss(0, 10))
    slack = 0.06 + 0.4 * max(0.85 - scale, 0)
    x, y = 0.5 + rng.uniform(-slack, slack), 0.54 + rng.uniform(-0.05, 0.05) + 0.3 * max(0.7 - scale, 0)
    level = rng.uniform(0.82, 1.06)
    is_grained = rng.random() < 0.4
    return replace(
        plain,
        affine=affine_of(scale * stretch, scale / stretch, angle, flip, x, y, shear),
        bend=rng.uniform(-0.025, 0.025),
        rim=rng.choice((0.0, 5 / 512, 7 / 512, 7 / 512, 10 / 512)),
        rim_colour=rng.choice(((60, 58, 66), (60, 58, 66), (30, 28, 34), (96, 70, 58), (70, 84, 110))),
        light=(level * rng.uniform(0.95, 1.03), level, level * rng.uniform(0.93, 1.03)),
        ramp=(rng.uniform(-0.12, 0.12), rng.uniform(-0.12, 0.12)),
        shade=rng.uniform(-0.05, 0.22),
        shadow=(rng.choice((0.0, 0.25, 0.4)), x, y + 0.46 * scale, 0.42 * scale, 0.07),
        texture=rng.randrange(NUM_TEXTURES),
        grain=(rng.uniform(0, 0.035), rng.uniform(0, 0.05)) if is_grained else (0.0, 0.0),
        emblem_place=(0.5 + rng.uniform(-0.04, 0.04), 0.65 + rng.uniform(-0.06, 0.06), rng.uniform(0.13, 0.20)),
        jitter=tuple(rng.uniform(-12, 12) for _ in range(12)),
    )


def plain_look(scene: Scene, rng: random.Random) -> Look:
    """Return a pose and light like those of `scenes`, without texture and shadow."""
    place = PLACES.index(scene.context) * BACKDROPS_PER_PLACE + rng.randrange(BACKDROPS_PER_PLACE)
    scale, angle, level = rng.uniform(0.80, 0.96), math.radians(rng.uniform(-10, 10)), rng.uniform(0.90, 1.04)
    x, y = 0.5 + rng.uniform(-0.06, 0.06), 0.54 + rng.uniform(-0.04, 0.04)
    return Look(
        affine_of(scale, scale, angle, -1 if rng.random() < 0.5 else 1, x, y),
        backdrop=place,
        offset=(rng.random(), rng.random()),
        is_mirrored=rng.random() < 0.5,
        second_pieces=tuple(rng.random() < 0.5 for _ in range(23)),
        light=(level, level, level),
    )
