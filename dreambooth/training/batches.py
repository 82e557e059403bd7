"""What a step trains on, as a function of (seed, example number).

Examples are counted over the whole run, across micro-batches and processes: example k has the same photo, crop, noise
and timestep whether it comes in a batch of four, in four accumulated micro-batches, or on one of four devices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth import rng
from dreambooth.config import TrainingConfig
from dreambooth.data.dataset import ConceptPhotos, Pick, class_pick, crop_variant, cropped, instance_pick, pixels
from dreambooth.data.photos import read_photo

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

INSTANCE, CLASS = 0, 1
FRESH_CROPS = 2**31  # so many variants that a crop hardly ever comes twice


@dataclass(frozen=True)
class Batch:
    """The photos of a micro-batch first, then their class pictures.

    latents and noise: (batch, channels, height / 8, width / 8) fp32; timesteps: (batch,) int64; captions: one each.
    """

    latents: "Tensor"
    noise: "Tensor"
    timesteps: "Tensor"
    captions: tuple[str, ...]
    num_instance: int


class LatentPool:
    """The VAE's posterior (mean and spread) of each crop of each picture; the sample of it is drawn at each step.

    Kingma & Welling 2013 (arXiv 1312.6114). With caching every crop is encoded once beforehand and the VAE can leave
    the device; without, each is encoded when its step comes.
    """

    def __init__(
        self, config: TrainingConfig, seed: int, concepts: Sequence[ConceptPhotos], vae: Any, device: "torch.device"
    ) -> None:
        self._config, self._seed, self._concepts, self._vae, self._device = config, seed, concepts, vae, device
        self._cached: dict[tuple[int, Pick], tuple[Tensor, Tensor]] = {}
        self._last_image: tuple[Path, Image.Image] | None = None
        self.num_variants = FRESH_CROPS if config.not_cache_latents else config.num_crop_variants
        self.num_class_variants = FRESH_CROPS if config.not_cache_latents else (2 if config.hflip else 1)

    def fill(self, report: Callable[[int, int], None], should_stop: Callable[[], bool]) -> None:
        """Encode every crop; `report` is told (done, total)."""
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

    def posterior(self, role: int, pick: Pick) -> "tuple[Tensor, Tensor]":
        """Return mean and standard deviation, each (channels, height / 8, width / 8), not yet scaled."""
        cached = self._cached.get((role, pick))
        return self._encoded(role, pick) if cached is None else cached

    def caption(self, role: int, pick: Pick) -> str:
        """Return the caption of the picture."""
        caption: str = self._photo(role, pick).caption
        return caption

    def _image(self, path: Path) -> "Image.Image":
        # A phone's photo takes a second to decode, and its crops are asked for one after the other.
        if self._last_image is None or self._last_image[0] != path:
            self._last_image = path, read_photo(path).image
        return self._last_image[1]

    def _photo(self, role: int, pick: Pick) -> Any:
        pictures = self._concepts[pick.concept]
        return (pictures.instance if role == INSTANCE else pictures.class_images)[pick.photo]

    def _encoded(self, role: int, pick: Pick) -> "tuple[Tensor, Tensor]":
        import torch

        config = self._config
        crop = crop_variant(
            self._seed, pick.concept, pick.photo, pick.variant,
            center_crop=config.center_crop, hflip=config.hflip, is_class=role == CLASS,
        )  # fmt: skip
        photo = self._photo(role, pick)
        image = cropped(self._image(photo.path), crop, config.resolution, photo.focus)
        with torch.no_grad():
            parameter = next(self._vae.parameters())
            posterior = self._vae.encode(pixels(image)[None].to(parameter)).latent_dist
        return posterior.mean[0].float().to(self._device), posterior.std[0].float().to(self._device)


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

    def batch(self, step: int, micro_step: int) -> Batch:
        """Return what this process trains on in this micro-step of this update."""
        import torch

        config = self.config
        first = (step * config.gradient_accumulation_steps + micro_step) * self.num_processes + self.rank
        numbers = range(first * config.train_batch_size, (first + 1) * config.train_batch_size)
        roles = (INSTANCE, CLASS) if config.with_prior_preservation else (INSTANCE,)
        examples = [(role, k, self._pick(role, k)) for role in roles for k in numbers]

        latents = torch.stack([self._latents(role, k, pick) for role, k, pick in examples])
        noise = [
            torch.randn(latents.shape[1:], generator=rng.generator(self.seed, "noise", k, role))
            for role, k, _ in examples
        ]
        timesteps = [
            torch.randint(self.num_train_timesteps, (1,), generator=rng.generator(self.seed, "timesteps", k, role))
            for role, k, _ in examples
        ]
        return Batch(
            latents=latents,
            noise=torch.stack(noise).to(latents.device),
            timesteps=torch.cat(timesteps).to(latents.device),
            captions=tuple(self.pool.caption(role, pick) for role, _, pick in examples),
            num_instance=len(numbers),
        )

    def _pick(self, role: int, k: int) -> Pick:
        if role == INSTANCE:
            sizes = [len(pictures.instance) for pictures in self.concepts]
            return instance_pick(self.seed, k, sizes, self.pool.num_variants)
        sizes = [len(pictures.class_images) for pictures in self.concepts]
        return class_pick(self.seed, k, sizes, self.pool.num_class_variants)

    def _latents(self, role: int, k: int, pick: Pick) -> "Tensor":
        import torch

        mean, spread = self.pool.posterior(role, pick)
        draw = torch.randn(mean.shape, generator=rng.generator(self.seed, "posterior", k, role)).to(mean.device)
        return (mean + spread * draw) * self.scaling_factor
