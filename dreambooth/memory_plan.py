"""How much memory a run will take at its most, told before it starts and without its weights.

The step is walked unit by unit, forward and backward, as the base's configuration lays it out (`models.shape`); what
else a run does (class pictures, crops, samples, saves) are phases beside it, and the largest counts. On the CPU the
need is the rise of the process over what it held before loading; on a GPU what torch's allocator reserves, without the
context's own share.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth.config import TrainingConfig
from dreambooth.hardware import Device, precisions
from dreambooth.models.shape import TOKENS, ModelShape, Unit, skip_values, text_units, unet_units

DeviceKind = Literal["cuda", "mps", "cpu"]

FP32, HALF = 4, 2
# Two moments of each weight in 32 bits, and in 8 (with their scales, one per 256 weights).
MOMENT_BYTES, MOMENT_8BIT_BYTES = 8.0, 2.04
SAMPLES_AT_A_TIME = 4
# Left free for what else the device does when a plan is chosen.
MARGIN = 0.05


@dataclass(frozen=True)
class Constants:
    """What measurements add to the counts; `measured` says on what and when, nothing when they are not measured yet.

    `fixed_bytes` is there whatever is trained; `slack` is what the allocator holds per byte of activations;
    `workspace` how many of a unit's widest tensors are at work beside what is kept; `inference` and `vae` the same for
    a forward without gradients and for the VAE's widest picture.
    """

    measured: str
    fixed_bytes: int
    slack: float
    workspace: float
    inference: float
    vae: float


CONSTANTS: dict[DeviceKind, Constants] = {
    "cpu": Constants("", 60 << 20, 1.0, 1.0, 2.0, 3.5),
    "cuda": Constants("", 64 << 20, 1.0, 1.0, 2.0, 3.5),
    "mps": Constants("", 64 << 20, 1.0, 1.0, 2.0, 3.5),
}


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes held at the moment of most memory, by what they are, and which phase of the run that is."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    other: int
    phase: str
    measured: str

    @property
    def peak_bytes(self) -> int:
        """Return all of them together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.other


# What a run needs ----------------------------------------------------------------------------------------------------


def memory_need(config: TrainingConfig, shape: ModelShape, device_kind: DeviceKind) -> MemoryNeed:
    """Return what these settings take at their peak on this kind of device; takes milliseconds and needs no torch."""
    return max(_phases(config, shape, device_kind), key=lambda need: need.peak_bytes)


def _phases(config: TrainingConfig, shape: ModelShape, kind: DeviceKind) -> Iterator[MemoryNeed]:
    constants = CONSTANTS[kind]
    learning = shape.num_unet + (shape.num_text_encoder if config.train_text_encoder else 0)
    everything = shape.num_unet + shape.num_text_encoder + shape.num_vae
    weights = _resident_weights(config, shape, kind)
    state = learning * (MOMENT_8BIT_BYTES if config.use_8bit_adam else MOMENT_BYTES)
    state += learning * FP32 if config.use_ema else 0

    def need(
        phase: str, weights: float, gradients: float, optimizer: float, activations: float, other: float = 0.0
    ) -> MemoryNeed:
        return MemoryNeed(
            weights=round(weights),
            gradients=round(gradients),
            optimizer=round(optimizer),
            activations=round(activations * constants.slack),
            other=round(other + constants.fixed_bytes),
            phase=phase,
            measured=constants.measured,
        )

    # Before the first step all parts are there in fp32.
    if config.with_prior_preservation:
        pictures = _inference_values(shape, config.resolution, config.sample_batch_size, constants)
        yield need("class pictures", everything * FP32, 0, 0, pictures * _inference_bytes(kind))
    gradients, activations = _step_peak(config, shape, kind)
    yield need("step", weights, gradients, state, activations)
    yield need("update", weights, 0 if _in_backward(config) else learning * _weight_bytes(config), state, 0)
    if config.save_sample_prompt:
        at_a_time = min(config.n_save_sample, SAMPLES_AT_A_TIME)
        pictures = _inference_values(shape, config.resolution, at_a_time, constants)
        pictures *= _inference_bytes(kind)
        copies = shape.num_unet * HALF if kind == "cuda" else 0
        averages = learning * FP32 if config.use_ema and kind == "cpu" else 0
        yield need("samples", weights + _parked(config, shape, kind), 0, state, pictures, copies + averages)
    if kind == "cpu":
        stored = HALF if config.save_precision != "fp32" else FP32
        averages = learning * FP32 if config.use_ema else 0
        yield need("saving", weights, 0, state, 0, shape.num_unet * stored + averages)


def _resident_weights(config: TrainingConfig, shape: ModelShape, kind: DeviceKind) -> int:
    """Return the bytes of the weights that are on the device while steps are made."""
    text_encoder = FP32 if kind == "cpu" else 0
    if config.train_text_encoder:
        text_encoder = _weight_bytes(config)
    vae = FP32 if kind == "cpu" or config.not_cache_latents else 0
    return shape.num_unet * _weight_bytes(config) + shape.num_text_encoder * text_encoder + shape.num_vae * vae


def _parked(config: TrainingConfig, shape: ModelShape, kind: DeviceKind) -> int:
    """Return the bytes of the weights that come to the device for samples only."""
    if kind == "cpu":
        return 0
    text_encoder = 0 if config.train_text_encoder else shape.num_text_encoder
    return FP32 * (text_encoder + (0 if config.not_cache_latents else shape.num_vae))


def _weight_bytes(config: TrainingConfig) -> int:
    return HALF if getattr(config, "weight_precision", "fp32") == "bf16" else FP32


def _in_backward(config: TrainingConfig) -> bool:
    return bool(getattr(config, "update_in_backward", False))


def _inference_bytes(kind: DeviceKind) -> int:
    return HALF if kind == "cuda" else FP32


def _inference_values(shape: ModelShape, pixels: int, num_pictures: int, constants: Constants) -> float:
    """Return the values at work when pictures are made: the UNet's under guidance, or the VAE's of one picture."""
    latent_px = pixels // shape.latent_scale
    widest = max(unit.widest for unit in unet_units(shape.unet, latent_px))
    unet = 2 * num_pictures * (skip_values(shape.unet, latent_px) + constants.inference * widest)
    widths: list[int] = list(shape.vae["block_out_channels"])
    return max(unet, constants.vae * widths[min(1, len(widths) - 1)] * pixels**2)


# A step --------------------------------------------------------------------------------------------------------------


def _step_peak(config: TrainingConfig, shape: ModelShape, kind: DeviceKind) -> tuple[float, float]:
    """Return bytes of gradients and of activations at the moment when they are most together."""
    batch = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    latent_px = config.resolution // shape.latent_scale
    units = text_units(shape.text_encoder, TOKENS) if config.train_text_encoder else []
    units = [*units, *unet_units(shape.unet, latent_px)]
    workspace = CONSTANTS[kind].workspace
    kept = [_kept_bytes(unit, config, kind) for unit in units]
    inner = [_saved_bytes(unit, config, kind) * batch + _copied_weights(unit, config) for unit in units]
    width = FP32 if config.mixed_precision == "no" and _weight_bytes(config) == FP32 else HALF
    at_work = [workspace * unit.widest * batch * width for unit in units]

    # Forward: what is kept adds up, and so do the half-precision weights that autocast remembers.
    live, cached, most = 0.0, 0.0, (0.0, 0.0)
    gradient_bytes = _weight_bytes(config)
    learning = sum(unit.num_weights for unit in units) * gradient_bytes
    standing = learning if config.gradient_accumulation_steps > 1 else 0.0
    for unit, keeps, works in zip(units, kept, at_work, strict=True):
        recomputed = config.gradient_checkpointing and unit.boundary_values is not None
        live += keeps * batch + (0 if recomputed else _copied_weights(unit, config))
        cached += _copied_weights(unit, config) if recomputed and not _in_backward(config) else 0
        most = max(most, (standing, live + cached + works), key=sum)
    # Backward: activations go, gradients come, and recomputed units are whole once more.
    gradients = standing
    for unit, keeps, whole, works in zip(
        reversed(units), reversed(kept), reversed(inner), reversed(at_work), strict=True
    ):
        recomputed = config.gradient_checkpointing and unit.boundary_values is not None
        own = unit.num_weights * gradient_bytes
        gradients += 0 if standing or _in_backward(config) else own
        here = gradients + (own if _in_backward(config) else 0)
        most = max(most, (here, live + (whole if recomputed else 0) + works), key=sum)
        live -= keeps * batch + (0 if recomputed else _copied_weights(unit, config))
    return most


def _kept_bytes(unit: Unit, config: TrainingConfig, kind: DeviceKind) -> int:
    """Return what one picture's forward through the unit keeps until its backward."""
    if config.gradient_checkpointing and unit.boundary_values is not None:
        return unit.boundary_values * (FP32 if config.mixed_precision == "no" else HALF)
    return _saved_bytes(unit, config, kind)


def _saved_bytes(unit: Unit, config: TrainingConfig, kind: DeviceKind) -> int:
    if config.mixed_precision == "no":
        return FP32 * (unit.norm_values + unit.product_values)
    # CUDA's autocast normalises in fp32, and each product then takes a copy of its own; the CPU's stays in bf16.
    norms, copies = (FP32, HALF) if kind == "cuda" else (HALF, 0)
    return norms * unit.norm_values + HALF * unit.product_values + copies * unit.copied_values


def _copied_weights(unit: Unit, config: TrainingConfig) -> int:
    """Return the bytes of the unit's weights in half precision, as autocast makes them from fp32 masters."""
    if config.mixed_precision == "no" or _weight_bytes(config) == HALF:
        return 0
    return HALF * unit.weight_values


# A plan that fits ----------------------------------------------------------------------------------------------------


def fastest_plan(config: TrainingConfig, shape: ModelShape, device: Device) -> TrainingConfig:
    """Return these settings with the fastest memory configuration that fits the device; the leanest where none does.

    What makes the result another one (photos, rates, sizes, batch, the text encoder) stays as asked.
    """
    room = device.free_bytes * (1 - MARGIN)
    plans = _plans(config, precisions(device))
    needs = [memory_need(plan, shape, device.kind).peak_bytes for plan in plans]
    fitting = [plan for plan, need in zip(plans, needs, strict=True) if need <= room]
    return fitting[0] if fitting else plans[needs.index(min(needs))]


def _plans(config: TrainingConfig, able: tuple[str, ...]) -> list[TrainingConfig]:
    """Return memory configurations, the fastest first: each one pays for less memory with time."""
    precision = config.mixed_precision
    if "fp16" in able:  # a GPU
        precision = "bf16" if "bf16" in able else "fp16"
    plan = dataclasses.replace(config, mixed_precision=precision, use_8bit_adam=False, gradient_checkpointing=False)
    plans = [plan]
    changes: tuple[dict[str, Any], ...] = ({"use_8bit_adam": True}, {"gradient_checkpointing": True})
    for change in changes:
        plan = dataclasses.replace(plan, **change)
        plans.append(plan)
    return plans
