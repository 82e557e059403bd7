"""Evaluation at fixed noise while a run trains.

The loss of a single step depends more on the timestep that was drawn than on the state of the training. Here pictures,
noise and timesteps are the same in every evaluation, so that only the model can make a difference. Three numbers: the
loss on the photos as they are trained; the loss on held-out views of them (the gap is memorisation, and no photo has to
be held back); and how far the predictions on class images have drifted from the base's. Nothing here draws from a
random stream that training uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dreambooth import rng
from dreambooth.config.training import TrainingConfig
from dreambooth.data.dataset import CLASS, INSTANCE, ConceptPhotos, Crop, Pick
from dreambooth.events import FixedNoiseLosses
from dreambooth.models.family import PictureSize
from dreambooth.training import objective
from dreambooth.training.batches import EncodedCrop, LatentPool
from dreambooth.training.captions import CaptionConditions
from dreambooth.training.predictions import predicted

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from dreambooth.models.base import Base

NUM_PAIRS = 8  # pictures of each kind, each at a timestep of its own
ZOOM = 0.85  # side of an unseen crop, as a share of the photo's square

DriftOn = Literal["class pictures", "photos by the class prompt", "photos without a prompt"]


@dataclass(frozen=True)
class EvaluationPictures:
    """The evaluated pictures: clean latents (pictures, channels, height, width), and a caption for each.

    `sizes` are those of the seen, the unseen and the drift pictures, one after the other.
    """

    seen: "Tensor"
    unseen: "Tensor"
    captions: tuple[str, ...]
    drift: "Tensor"
    drift_captions: tuple[str, ...]
    sizes: tuple[PictureSize, ...]
    drift_on: DriftOn


def evaluation_pictures(
    config: TrainingConfig, seed: int, concepts: Sequence[ConceptPhotos], pool: LatentPool, scaling_factor: float
) -> EvaluationPictures:
    """Choose and encode the pictures; the VAE has to be on the device."""
    import torch

    def clean(crops: list[EncodedCrop]) -> "Tensor":
        return torch.stack([crop.mean for crop in crops]) * scaling_factor

    photos = [(number, photo) for number, one in enumerate(concepts) for photo in range(len(one.instance))]
    chosen = [photos[number % len(photos)] for number in range(NUM_PAIRS)]
    picks = [
        Pick(concept, photo, number // len(photos) % pool.num_variants)
        for number, (concept, photo) in enumerate(chosen)
    ]
    seen = [pool.encoded(INSTANCE, pick) for pick in picks]
    views = [
        _unseen_view(pool, pick, config, seed, number, is_mirrored=not config.hflip and number % 2 == 0)
        for number, pick in enumerate(picks)
    ]
    unseen = [pool.encode(view, size) for view, size in views]
    sizes = tuple(crop.size for crop in (*seen, *unseen))
    captions = tuple(pool.caption(INSTANCE, pick) for pick in picks)
    of_class = [(number, photo) for number, one in enumerate(concepts) for photo in range(len(one.class_images))]
    if of_class:
        class_picks = [Pick(*of_class[number * len(of_class) // NUM_PAIRS], 0) for number in range(NUM_PAIRS)]
        drift = [pool.encoded(CLASS, pick) for pick in class_picks]
        drift_captions = tuple(pool.caption(CLASS, pick) for pick in class_picks)
        sizes += tuple(crop.size for crop in drift)
        return EvaluationPictures(
            clean(seen), clean(unseen), captions, clean(drift), drift_captions, sizes, "class pictures"
        )
    prompts = tuple(config.concepts[pick.concept].class_prompt or "" for pick in picks)
    drift_on: DriftOn = "photos by the class prompt" if all(prompts) else "photos without a prompt"
    sizes += sizes[: len(seen)]
    return EvaluationPictures(clean(seen), clean(unseen), captions, clean(seen), prompts, sizes, drift_on)


def _unseen_view(
    pool: LatentPool, pick: Pick, config: TrainingConfig, seed: int, number: int, *, is_mirrored: bool
) -> "tuple[Image.Image, PictureSize]":
    """Return a view that training never shows: the photo mirrored, or a smaller crop of it at another place."""
    import torch

    x, y, across, down = torch.rand(4, generator=rng.generator(seed, "gauges", number)).tolist()
    if config.center_crop:
        x = y = 0.5
    if is_mirrored:
        return pool.view(INSTANCE, pick, Crop(x, y, True), config.resolution)
    side_px = round(config.resolution / ZOOM)
    left, top = (round(share * (side_px - config.resolution)) for share in (across, down))
    larger, size = pool.view(INSTANCE, pick, Crop(x, y, False), side_px)
    side = config.resolution
    offset = (size.offset[0] + top, size.offset[1] + left)
    return larger.crop((left, top, left + side, top + side)), PictureSize(size.original, offset, (side, side))


class FixedNoiseEvaluation:
    """Evaluates the model at noise and timesteps that never change; made while the model is still the base."""

    def __init__(
        self,
        pictures: EvaluationPictures,
        base: "Base",
        conditions: CaptionConditions,
        alpha_bar: "Tensor",
        prediction_type: str,
        autocast_dtype: "torch.dtype | None",
        seed: int,
    ) -> None:
        import torch

        self._pictures, self._base, self._conditions = pictures, base, conditions
        self._alpha_bar, self._autocast_dtype = alpha_bar.to(pictures.seen.device), autocast_dtype
        self._kind = objective.checked_prediction_type(prediction_type)
        num_pairs, device = len(pictures.seen), pictures.seen.device
        levels = (torch.arange(num_pairs) + 0.5) / num_pairs
        # One timestep from each stratum of the schedule; photos and views of them share noise and timestep.
        self._timesteps = (levels * len(alpha_bar)).long().to(device)
        shape = (2, *pictures.seen.shape)
        noise = torch.randn(shape, generator=rng.generator(seed, "gauges", num_pairs, 0)).to(device)
        self._photo_noise, self._class_noise = noise[0], noise[1]
        self._by_base = self._predictions()[2]

    def losses(self, step: int) -> FixedNoiseLosses:
        """Return the losses of the model as it is; changes nothing, and waits for the device once."""
        import torch

        pictures = self._pictures
        seen, unseen, on_class = self._predictions()
        level = self._alpha_bar[self._timesteps]
        of_photos = [
            (prediction - objective.target(latents, self._photo_noise, level, self._kind)).square().mean()
            for prediction, latents in ((seen, pictures.seen), (unseen, pictures.unseen))
        ]
        drift = (on_class - self._by_base).square().mean()
        seen_loss, unseen_loss, moved = torch.stack([*of_photos, drift]).tolist()
        return FixedNoiseLosses(step, seen_loss, unseen_loss, moved, pictures.drift_on)

    def _predictions(self) -> "tuple[Tensor, ...]":
        """Return the model's predictions on photos, unseen views and class pictures, all computed together."""
        import torch

        pictures = self._pictures
        with torch.no_grad():
            captions = [*pictures.captions, *pictures.captions, *pictures.drift_captions]
            condition = self._conditions(captions, pictures.sizes)
        predictions = predicted(
            self._base,
            condition,
            torch.cat([pictures.seen, pictures.unseen, pictures.drift]),
            torch.cat([self._photo_noise, self._photo_noise, self._class_noise]),
            self._timesteps.repeat(3),
            self._alpha_bar,
            self._autocast_dtype,
        )
        return predictions.chunk(3)
