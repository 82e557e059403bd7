"""Evaluation at fixed noise during a training.

The loss of a single step depends more on the drawn timestep than on the state of the training. Here images, noise and
timesteps are the same in every evaluation, so that only the model makes a difference. Three numbers: the loss on the
photos as they are trained; the loss on held-out views of them (the gap is memorisation, and no photo has to be held
back); and how far the predictions on class images have drifted from the base's. Nothing here draws from a random stream
that training uses.
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
    """The evaluated images: clean latents (channels, height, width) each, and a caption for each.

    `sizes` are those of the seen, the unseen and the drift images, one after the other.
    """

    seen: "tuple[Tensor, ...]"
    unseen: "tuple[Tensor, ...]"
    captions: tuple[str, ...]
    drift: "tuple[Tensor, ...]"
    drift_captions: tuple[str, ...]
    sizes: tuple[PictureSize, ...]
    drift_on: DriftOn


def evaluation_pictures(
    config: TrainingConfig, seed: int, concepts: Sequence[ConceptPhotos], pool: LatentPool, scaling_factor: float
) -> EvaluationPictures:
    """Choose and encode the images; the VAE must be on the device."""

    def clean(crops: list[EncodedCrop]) -> "tuple[Tensor, ...]":
        return tuple(crop.mean * scaling_factor for crop in crops)

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
    height, width = pool.size_px(INSTANCE, pick)
    if is_mirrored:
        return pool.view(INSTANCE, pick, Crop(x, y, True), (height, width))
    larger_px = round(height / ZOOM), round(width / ZOOM)
    left, top = round(across * (larger_px[1] - width)), round(down * (larger_px[0] - height))
    larger, size = pool.view(INSTANCE, pick, Crop(x, y, False), larger_px)
    offset = (size.offset[0] + top, size.offset[1] + left)
    return larger.crop((left, top, left + width, top + height)), PictureSize(size.original, offset, (height, width))


class FixedNoiseEvaluation:
    """Evaluates the model at fixed noise and timesteps; created while the model is still the base."""

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
        num_pairs, device = len(pictures.seen), pictures.seen[0].device
        self._alpha_bar, self._autocast_dtype = alpha_bar.to(device), autocast_dtype
        self._kind = objective.checked_prediction_type(prediction_type)
        levels = (torch.arange(num_pairs) + 0.5) / num_pairs
        # One timestep from each stratum of the schedule; photos and views of them share noise and timestep.
        self._timesteps = (levels * len(alpha_bar)).long().to(device)
        most = max(one.numel() for one in (*pictures.seen, *pictures.drift))
        noise = torch.randn((2, num_pairs, most), generator=rng.generator(seed, "gauges", num_pairs, 0)).to(device)
        # For images of several sizes, smaller ones use the first numbers.
        self._photo_noise, self._class_noise = (
            tuple(row[: one.numel()].view(one.shape) for row, one in zip(rows, ones, strict=True))
            for rows, ones in zip(noise, (pictures.seen, pictures.drift), strict=True)
        )
        self._by_base = self._predictions()[2]

    def losses(self, step: int) -> FixedNoiseLosses:
        """Return the losses of the current model; changes nothing, and waits for the device once."""
        import torch

        pictures = self._pictures
        seen, unseen, on_class = self._predictions()
        of_photos = [
            self._error(predictions, [self._target(number, latents) for number, latents in enumerate(clean)])
            for predictions, clean in ((seen, pictures.seen), (unseen, pictures.unseen))
        ]
        drift = self._error(on_class, self._by_base)
        seen_loss, unseen_loss, moved = torch.stack([*of_photos, drift]).tolist()
        return FixedNoiseLosses(step, seen_loss, unseen_loss, moved, pictures.drift_on)

    def _target(self, number: int, latents: "Tensor") -> "Tensor":
        level = self._alpha_bar[self._timesteps[number : number + 1]]
        return objective.target(latents[None], self._photo_noise[number][None], level, self._kind)[0]

    def _error(self, predictions: "Sequence[Tensor]", wanted: "Sequence[Tensor]") -> "Tensor":
        """Return the mean squared error over images, each with the same weight whatever its size."""
        import torch

        errors = [(one - other).square().mean() for one, other in zip(predictions, wanted, strict=True)]
        return torch.stack(errors).mean()

    def _predictions(self) -> "tuple[list[Tensor], list[Tensor], list[Tensor]]":
        """Return the model's predictions on photos, unseen views and class images, those of one size together."""
        import torch

        pictures = self._pictures
        with torch.no_grad():
            captions = [*pictures.captions, *pictures.captions, *pictures.drift_captions]
            condition = self._conditions(captions, pictures.sizes)
        clean = [*pictures.seen, *pictures.unseen, *pictures.drift]
        noise = [*self._photo_noise, *self._photo_noise, *self._class_noise]
        timesteps = self._timesteps.repeat(3)
        predictions: dict[int, Tensor] = {}
        for shape in dict.fromkeys(one.shape for one in clean):
            same = [number for number, one in enumerate(clean) if one.shape == shape]
            found = predicted(
                self._base, condition[same],
                torch.stack([clean[number] for number in same]), torch.stack([noise[number] for number in same]),
                timesteps[same], self._alpha_bar, self._autocast_dtype,
            )  # fmt: skip
            predictions |= dict(zip(same, found, strict=True))
        in_order = [predictions[number] for number in range(len(clean))]
        third = len(clean) // 3
        return in_order[:third], in_order[third : 2 * third], in_order[2 * third :]
