"""Memory for generation during a training: class images, samples, and forward passes without gradients."""

from dataclasses import dataclass

from dreambooth.config.training import TrainingConfig
from dreambooth.forecast.constants import CONSTANTS, Constants, DeviceKind
from dreambooth.forecast.counts import FP32, HALF, WIDTH, Counts
from dreambooth.forecast.shape import ModelShape, skip_values, unet_units


@dataclass(frozen=True)
class Stages:
    """The bytes of weights in each stage of generation: text encoding, denoising and decoding."""

    words: float
    denoising: float
    decoding: float


def class_images(config: TrainingConfig, shape: ModelShape, counts: Counts, kind: DeviceKind) -> tuple[float, float]:
    """Return the bytes of weights and of activations at the peak of generating class images.

    On a GPU each part is loaded in half precision while it is needed, on other devices all of them in fp32.
    """
    parts = Stages(*[counts.total * FP32] * 3)
    if kind == "cuda":
        parts = Stages(counts.text_encoder * HALF, counts.unet * HALF, counts.vae * _vae_bytes(shape, kind))
    return most_in_pictures(parts, shape, config.resolution, config.sample_batch_size, kind)


def beside_samples(config: TrainingConfig, counts: Counts, kind: DeviceKind) -> Stages:
    """Return the bytes of the weights that move to the device for samples, less those that leave it meanwhile."""
    if kind == "cpu":
        return Stages(0, 0, 0)
    unet = counts.unet * WIDTH[config.base_precision] if config.parks_unet else 0
    text_encoder = 0 if config.train_text_encoder else counts.text_encoder * frozen_text_encoder(config)
    return Stages(text_encoder - unet, 0, (0 if config.not_cache_latents else counts.vae * FP32) - unet)


def most_in_pictures(
    parts: Stages, shape: ModelShape, pixels: int, num_pictures: int, kind: DeviceKind
) -> tuple[float, float]:
    """Return the bytes of weights and of activations in the most demanding stage of generation.

    The UNet processes all images with guidance at once, the VAE one image after the other.
    """
    constants, number = CONSTANTS[kind], HALF if kind == "cuda" else FP32
    widths: list[int] = list(shape.vae["block_out_channels"])
    decoded = constants.vae * widths[min(1, len(widths) - 1)] * pixels**2
    denoised = forward_values(shape, pixels, 2 * num_pictures, constants)
    stages = [
        (parts.words, 0.0), (parts.denoising, denoised * number), (parts.decoding, decoded * _vae_bytes(shape, kind)),
    ]  # fmt: skip
    return max(stages, key=sum)


def _vae_bytes(shape: ModelShape, kind: DeviceKind) -> int:
    """Return the bytes of the VAE's activations in decoding: SDXL's overflow half precision."""
    needs_range = any(part.needs_range for part in shape.layout.parts) and shape.vae.get("force_upcast") is not False
    return HALF if kind == "cuda" and not needs_range else FP32


def forward_values(shape: ModelShape, pixels: int, batch: int, constants: Constants) -> float:
    """Return the values in use in a UNet's forward that keeps nothing for backward."""
    latent_px = pixels // shape.latent_scale
    widest = max(unit.widest for unit in unet_units(shape.unet, latent_px))
    return batch * (skip_values(shape.unet, latent_px) + constants.inference * widest)


def frozen_text_encoder(config: TrainingConfig) -> int:
    """Return the bytes of a weight of a frozen text encoder."""
    return WIDTH[config.base_precision] if config.has_frozen_base else FP32
