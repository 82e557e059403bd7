"""Batches: what a step trains on, as a function of (seed, example number).

Examples are counted over the whole run, across micro-batches and processes: example k has the same photo, crop, noise
and timestep whether it comes in a batch of four, in four accumulated micro-batches, or on one of four devices.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth import rng
from dreambooth.config.training import TrainingConfig
from dreambooth.data.buckets import bucket_of, bucketed_pick
from dreambooth.data.class_images import kept_latents
from dreambooth.data.dataset import (
    CLASS,
    INSTANCE,
    CaptionedPhoto,
    ConceptPhotos,
    Crop,
    Pick,
    class_pick,
    crop_variant,
    cropped,
    instance_pick,
    picture_size,
    pixels,
    visit_number,
)
from dreambooth.data.masks import read_mask
from dreambooth.data.photos import PHOTO_READER, read_photo
from dreambooth.events import OnProgress
from dreambooth.models.family import PictureSize, TensorFields
from dreambooth.training import objective

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

    from dreambooth.models.base import Base

FRESH_CROPS = 2**31  # so many variants that a crop hardly ever comes twice
GOLDEN_RATIO = 0.6180339887498949
TEACHER_DRAWS = 8  # noises and timesteps for which the base's word on a class image is kept, in turn


@dataclass(frozen=True)
class Batch(TensorFields):
    """The photos of a micro-batch first, then their class images.

    latents and noise: (batch, channels, height / 8, width / 8) fp32; timesteps: (batch,) int64; captions: one each.
    teacher: the base's predictions on the class images, if they are their target; place_weights: (batch, 1, height / 8,
    width / 8), if the pixels of an image are weighted; sizes: where each crop comes from. of_class: the class images as
    a batch of their own, if photos have the sizes of buckets, since class images are square.
    """

    latents: "Tensor"
    noise: "Tensor"
    timesteps: "Tensor"
    captions: tuple[str, ...]
    num_instance: int
    sizes: tuple[PictureSize, ...]
    teacher: "Tensor | None" = None
    place_weights: "Tensor | None" = None
    of_class: "Batch | None" = None

    def by_size(self) -> "tuple[Batch, ...]":
        """Return the batches, of one size each, that go through one forward."""
        return (self,) if self.of_class is None else (self, self.of_class)


@dataclass(frozen=True)
class EncodedCrop:
    """A crop's posterior, mean and spread each (channels, height / 8, width / 8) and unscaled, and its size."""

    mean: "Tensor"
    spread: "Tensor"
    size: PictureSize


@dataclass(frozen=True)
class Example:
    """One image of a batch: what it shows, how often the run showed it before, and its position in random streams."""

    role: int
    pick: Pick
    visit: int
    position: tuple[int, ...]


class LatentPool:
    """The VAE's posterior (mean and spread) of each crop of each image; each step draws a sample from it.

    Kingma & Welling 2013 (arXiv 1312.6114). With caching every crop is encoded once beforehand and the VAE can leave
    the device; without, each is encoded at its step.
    """

    def __init__(
        self,
        config: TrainingConfig,
        seed: int,
        concepts: Sequence[ConceptPhotos],
        base: "Base",
        device: "torch.device",
        reader: int = PHOTO_READER,
    ) -> None:
        self._config, self._seed, self._concepts, self._base, self._device = config, seed, concepts, base, device
        self._reader = reader
        self._cached: dict[tuple[int, Pick], EncodedCrop] = {}
        self._last_image: tuple[Path, Image.Image] | None = None
        self.num_variants = FRESH_CROPS if config.not_cache_latents else config.num_crop_variants
        self.num_class_variants = FRESH_CROPS if config.not_cache_latents else (2 if config.hflip else 1)

    def fill(self, report: OnProgress, should_stop: Callable[[], bool]) -> None:
        """Encode every crop; `report` gets (done, total)."""
        wanted = [
            (role, Pick(concept, photo, variant))
            for concept, pictures in enumerate(self._concepts)
            for role, count, num_variants in (
                (INSTANCE, len(pictures.instance), self.num_variants),
                (CLASS, len(pictures.class_images), self.num_class_variants),
            )
            for photo in range(count)
            for variant in range(num_variants)
        ]
        for done, (role, pick) in enumerate(wanted):
            if should_stop():
                return
            report(done, len(wanted))
            self._cached[role, pick] = self._encoded(role, pick)
        report(len(wanted), len(wanted))

    def encoded(self, role: int, pick: Pick) -> EncodedCrop:
        """Return the posterior of an image's crop, and where the crop comes from."""
        cached = self._cached.get((role, pick))
        return self._encoded(role, pick) if cached is None else cached

    def caption(self, role: int, pick: Pick) -> str:
        """Return the caption of the image."""
        return self._photo(role, pick).caption

    def size_px(self, role: int, pick: Pick) -> tuple[int, int]:
        """Return the (height, width) of an image's crops: class images are square whatever the photos are."""
        side_px = self._config.resolution
        if role == INSTANCE and self._config.buckets:
            return bucket_of(self._photo(role, pick).size, side_px)
        return side_px, side_px

    def view(self, role: int, pick: Pick, crop: Crop, size_px: tuple[int, int]) -> "tuple[Image.Image, PictureSize]":
        """Return a crop of an image that need not be one of the pool's, (height, width), and where it comes from."""
        photo = self._photo(role, pick)
        image = self._image(photo.path)
        return cropped(image, crop, size_px, photo.focus), picture_size(image.size, crop, size_px, photo.focus)

    def encode(self, image: "Image.Image", size: PictureSize) -> EncodedCrop:
        """Return the posterior of an image whose sides are multiples of 8."""
        found = self._base.family.encode(self._base.vae, pixels(image)[None])
        return EncodedCrop(found.mean[0].to(self._device), found.std[0].to(self._device), size)

    def painted(self, pick: Pick) -> "Tensor":
        """Return the mask of a photo's crop at the latents' size, 0 to 1, (1, height / 8, width / 8)."""
        import numpy as np
        import torch

        photo, crop = self._photo(INSTANCE, pick), self._crop(INSTANCE, pick)
        assert photo.mask is not None, "asked of photos with a mask"
        view = cropped(read_mask(photo.mask, photo.size), crop, self.size_px(INSTANCE, pick), photo.focus)
        values = torch.from_numpy(np.array(view, dtype=np.float32)) / 255
        return torch.nn.functional.avg_pool2d(values[None], 8).to(self._device)

    def _image(self, path: Path) -> "Image.Image":
        # A phone's photo takes a second to decode, and its crops are requested one after the other.
        if self._last_image is None or self._last_image[0] != path:
            self._last_image = path, read_photo(path, self._reader).image
        return self._last_image[1]

    def _photo(self, role: int, pick: Pick) -> CaptionedPhoto:
        pictures = self._concepts[pick.concept]
        return (pictures.instance if role == INSTANCE else pictures.class_images)[pick.photo]

    def _crop(self, role: int, pick: Pick) -> Crop:
        return crop_variant(
            self._seed, pick.concept, pick.photo, pick.variant,
            center_crop=self._config.center_crop, hflip=self._config.hflip, is_class=role == CLASS,
        )  # fmt: skip

    def _encoded(self, role: int, pick: Pick) -> EncodedCrop:
        config, crop, photo = self._config, self._crop(role, pick), self._photo(role, pick)
        kept = kept_latents(photo.path) if role == CLASS and config.keep_class_latents else None
        if kept is not None and kept.shape[-1] * 8 == config.resolution:
            # They are the image itself: without spread, and mirrored directly.
            mean = (kept.flip(-1) if crop.flip else kept).to(self._device) / self._base.vae.config.scaling_factor
            side = config.resolution
            return EncodedCrop(mean, mean.new_zeros(mean.shape), PictureSize((side, side), (0, 0), (side, side)))
        return self.encode(*self.view(role, pick, crop, self.size_px(role, pick)))


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of a micro-step from the pool."""

    config: TrainingConfig
    seed: int
    pool: LatentPool
    concepts: Sequence[ConceptPhotos]
    scaling_factor: float
    num_train_timesteps: int
    rank: int
    num_processes: int
    teacher: "dict[tuple[int, ...], Tensor]" = field(default_factory=dict)
    subject_weights: "dict[Pick, Tensor]" = field(default_factory=dict)

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return what this process trains on in this micro-step of this update."""
        config = self.config
        first = (step * config.gradient_accumulation_steps + micro_step) * self.num_processes + self.rank
        numbers = range(first * config.train_batch_size, (first + 1) * config.train_batch_size)
        photos = [self.example(INSTANCE, k) for k in numbers]
        of_class = [self.example(CLASS, k) for k in numbers] if config.with_prior_preservation else []
        if config.buckets and of_class:
            # Separate even if the bucket is the square: processes with sharded weights must do equally many forwards.
            return dataclasses.replace(self._batch(photos), of_class=self._batch(of_class))
        return self._batch([*photos, *of_class])

    def _batch(self, examples: Sequence[Example]) -> Batch:
        import torch

        latents, sizes = self.latents(examples)
        noise = torch.stack([self.noise(example, latents.shape[1:]) for example in examples])
        timesteps = torch.tensor([self.timestep(example) for example in examples])
        teacher = [self.teacher[example.position] for example in examples if example.position in self.teacher]
        return Batch(
            latents=latents,
            noise=noise.to(latents.device),
            timesteps=timesteps.to(latents.device),
            captions=tuple(self.caption(example) for example in examples),
            num_instance=sum(example.role == INSTANCE for example in examples),
            sizes=sizes,
            teacher=torch.stack(teacher) if teacher else None,
            place_weights=self._place_weights(examples, latents) if self.config.background_weight != 1 else None,
        )

    def example(self, role: int, k: int) -> Example:
        """Return example k of this role.

        If a teacher's predictions replace the noise, a class image has the same few draws in turn.
        """
        concepts, pool = self.concepts, self.pool
        if role == INSTANCE and self.config.buckets:
            buckets = [
                [pool.size_px(role, Pick(number, photo, 0)) for photo in range(len(pictures.instance))]
                for number, pictures in enumerate(concepts)
            ]
            batch_size = self.config.train_batch_size
            return Example(role, *bucketed_pick(self.seed, k, batch_size, buckets, pool.num_variants), (k, role))
        if role == INSTANCE:
            sizes = [len(pictures.instance) for pictures in concepts]
            return Example(
                role, instance_pick(self.seed, k, sizes, pool.num_variants), visit_number(k, sizes), (k, role)
            )
        sizes = [len(pictures.class_images) for pictures in concepts]
        pick, visit = class_pick(self.seed, k, sizes, pool.num_class_variants), visit_number(k, sizes)
        if not self.config.teacher_prior:
            return Example(role, pick, visit, (k, role))
        draw = visit % TEACHER_DRAWS
        return Example(role, pick, draw, (pick.concept, pick.photo, pick.variant, draw, role))

    def latents(self, examples: Sequence[Example]) -> "tuple[Tensor, tuple[PictureSize, ...]]":
        """Return latents drawn from the pictures' posteriors, (batch, channels, height / 8, width / 8), and sizes."""
        import torch

        crops = [self.pool.encoded(example.role, example.pick) for example in examples]
        drawn = [self._drawn(example, crop) for example, crop in zip(examples, crops, strict=True)]
        return torch.stack(drawn), tuple(crop.size for crop in crops)

    def _drawn(self, example: Example, crop: EncodedCrop) -> "Tensor":
        import torch

        generator = rng.generator(self.seed, "posterior", *example.position)
        noise = torch.randn(crop.mean.shape, generator=generator).to(crop.mean.device)
        return (crop.mean + crop.spread * noise) * self.scaling_factor

    def noise(self, example: Example, shape: "torch.Size") -> "Tensor":
        """Return the noise of an image on the CPU; with noise_offset, a photo's is shifted as a whole."""
        import torch

        noise = torch.randn(shape, generator=rng.generator(self.seed, "noise", *example.position))
        if example.role == CLASS or not self.config.noise_offset:
            return noise
        generator = rng.generator(self.seed, "noise", *example.position, 1)
        return objective.offset_noise(
            noise, torch.randn((shape[0], 1, 1), generator=generator), self.config.noise_offset
        )

    def timestep(self, example: Example) -> int:
        """Return the timestep of an image: drawn uniformly, or the next in its photo's own stratified sequence."""
        import torch

        if not (self.config.stratified_timesteps or len(example.position) > 2):
            generator = rng.generator(self.seed, "timesteps", *example.position)
            return int(torch.randint(self.num_train_timesteps, (1,), generator=generator))
        pick, pictures = example.pick, self.concepts[example.pick.concept]
        num_pictures = len(pictures.instance if example.role == INSTANCE else pictures.class_images)
        generator = rng.generator(self.seed, "timesteps", pick.concept, example.role, 0)
        start = float(torch.rand(1, generator=generator, dtype=torch.float64)) + pick.photo / num_pictures
        return stratified(start, example.visit, self.num_train_timesteps)

    def caption(self, example: Example) -> str:
        """Return the caption of an image, empty if it is dropped (Ho & Salimans 2022, 2207.12598, alg. 1)."""
        import torch

        if self.config.caption_dropout:
            generator = rng.generator(self.seed, "captions", *example.position)
            if float(torch.rand(1, generator=generator)) < self.config.caption_dropout:
                return ""
        return self.pool.caption(example.role, example.pick)

    def _place_weights(self, examples: Sequence[Example], latents: "Tensor") -> "Tensor":
        import torch

        even = latents.new_ones((1, *latents.shape[-2:]))
        weights = [even if one.role == CLASS else self._photo_weights(one.pick) for one in examples]
        return torch.stack(weights)

    def _photo_weights(self, pick: Pick) -> "Tensor":
        return self.subject_weights[pick] if pick in self.subject_weights else self.painted_weights(pick)

    def painted_weights(self, pick: Pick) -> "Tensor":
        """Return the weight of each pixel of a photo's crop according to its mask, (1, height / 8, width / 8)."""
        return objective.place_weights(self.pool.painted(pick), self.config.background_weight)


def stratified(start: float, visit: int, num_timesteps: int) -> int:
    """Return the timestep of a photo's visit: any sequence of visits covers all noise levels nearly evenly.

    A Kronecker sequence, t = T frac(start + visit * golden ratio), the most even of its kind (Niederreiter 1992, Random
    Number Generation and Quasi-Monte Carlo Methods, section 3.1). Photos with evenly spaced starts cover them in each
    pass as well.
    """
    return int(num_timesteps * ((start + visit * GOLDEN_RATIO) % 1.0))
