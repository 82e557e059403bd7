"""The two worlds on which a starter can be trained, with one interface: the plain one at 64 px and the rich at 128."""

import random
from typing import TYPE_CHECKING, Any, Protocol

from dreambooth import rng
from dreambooth.starter import rendering, rich_world, scenes
from dreambooth.starter.atlas import EMBLEMS
from dreambooth.starter.more_places import MORE_CONTEXTS
from dreambooth.starter.more_things import MORE_CLASSES
from dreambooth.starter.places import CONTEXTS
from dreambooth.starter.things import CLASSES, COLOURS

if TYPE_CHECKING:
    from torch import Tensor


class World(Protocol):
    """Scenes by number, each a function of (seed, number): as pictures, captions, and the attributes in captions."""

    choices: dict[str, list[str]]

    def words(self) -> list[str]:
        """Return every word that a caption can contain."""

    def pictures(self, seed: int, numbers: range, size_px: int, device: str = "cpu") -> "tuple[Tensor, Tensor]":
        """Return the scenes as (batch, 3, size, size) in [-1, 1], and the weight of each pixel, (batch, 1, ...)."""

    def captions(self, seed: int, numbers: range) -> list[str]:
        """Return the scenes' captions."""

    def captioned(self, painter: random.Random) -> tuple[str, dict[str, str]]:
        """Return the caption of a drawn scene, and which of `choices` it mentions."""


class PlainWorld:
    """The world of `scenes`, painted picture by picture."""

    choices = {
        "class": list(CLASSES), "colour": list(COLOURS), "pattern": list(scenes.PATTERNS),
        "context": list(CONTEXTS), "accessory": list(scenes.ACCESSORIES),
    }  # fmt: skip

    def words(self) -> list[str]:
        """Return every word that a caption can contain."""
        everything = [place for place, _ in CONTEXTS.values()]
        everything += [*CLASSES, *COLOURS, *scenes.PATTERNS, *scenes.ACCESSORIES, "a photo of wearing"]
        return sorted({word for text in everything for word in text.split()})

    def pictures(self, seed: int, numbers: range, size_px: int, device: str = "cpu") -> "tuple[Tensor, Tensor]":
        """Return the scenes as (batch, 3, size, size) in [-1, 1]; all pixels have the same weight."""
        import torch

        pictures = stacked([self._numbered(seed, number, size_px)[0] for number in numbers])
        return pictures.to(device), torch.ones(1, 1, 1, 1, device=device)

    def captions(self, seed: int, numbers: range) -> list[str]:
        """Return the scenes' captions; the picture is painted too, because the caption is drawn after it."""
        return [self._numbered(seed, number, 8)[1] for number in numbers]

    def captioned(self, painter: random.Random) -> tuple[str, dict[str, str]]:
        """Return the caption of a drawn scene, and which of `choices` it mentions."""
        caption = scenes.training_caption(scenes.random_scene(painter), painter)
        return caption, scenes.attributes_in(caption)

    def _numbered(self, seed: int, number: int, size_px: int) -> tuple[Any, str]:
        painter = random.Random(rng.derived_seed(seed, "starter", 2, number))
        scene = scenes.random_scene(painter)
        picture = scenes.render(scene, size_px, painter)
        return picture, scenes.training_caption(scene, painter)


def stacked(pictures: list[Any]) -> "Tensor":
    """Return images of one size as (batch, 3, size, size) in [-1, 1]."""
    import numpy as np
    import torch

    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1


class RichWorld:
    """The world of `rich_world`, painted many at a time."""

    # How much a pixel counts by what it shows: nothing small, a pattern, an emblem, a detail such as an eye.
    FEATURE_WEIGHTS = (1.0, 2.0, 3.0, 5.0)
    choices = {
        "class": list(MORE_CLASSES), "colour": list(COLOURS), "pattern": list(rich_world.PATTERNS),
        "context": list(MORE_CONTEXTS), "accessory": list(scenes.ACCESSORIES), "second": list(COLOURS),
        "emblem": list(EMBLEMS), "emblem_colour": list(COLOURS),
    }  # fmt: skip

    def words(self) -> list[str]:
        """Return every word that a caption can contain."""
        return rich_world.world_words()

    def pictures(self, seed: int, numbers: range, size_px: int, device: str = "cpu") -> "tuple[Tensor, Tensor]":
        """Return the scenes as (batch, 3, size, size) in [-1, 1], and the weight of each pixel, (batch, 1, ...)."""
        import torch

        drawn = [self.scene(seed, number)[:2] for number in numbers]
        images, features = rendering.render(drawn, size_px, device)
        weights = torch.tensor(self.FEATURE_WEIGHTS, device=device)[features.long()].unsqueeze(1)
        return images.permute(0, 3, 1, 2) / 127.5 - 1, weights

    def captions(self, seed: int, numbers: range) -> list[str]:
        """Return the scenes' captions."""
        return [self.scene(seed, number)[2] for number in numbers]

    def captioned(self, painter: random.Random) -> tuple[str, dict[str, str]]:
        """Return the caption of a drawn scene, and which of `choices` it mentions."""
        scene = rich_world.random_scene(painter)
        caption = rich_world.training_caption(scene, painter)
        return caption, rich_world.attributes_in(scene, caption)

    def scene(self, seed: int, number: int) -> tuple[rich_world.Scene, rich_world.Look, str]:
        """Return a numbered scene with its look and its caption."""
        painter = random.Random(rng.derived_seed(seed, "starter", 32, number))
        scene = rich_world.random_scene(painter)
        return scene, rich_world.random_look(scene, painter), rich_world.training_caption(scene, painter)


WORLDS: dict[str, World] = {"plain": PlainWorld(), "rich": RichWorld()}
