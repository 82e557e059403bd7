"""The peak memory of a run, computed before it starts and without its weights.

A step is simulated unit by unit, forward and backward, as the base's configuration lays it out (`models.shape`); what
else a run does (class images, crops, samples) are separate phases, and the largest counts. On the CPU the need is the
growth of the process over its size before loading, including the copy of the weights from which a model is written
while training continues; on a GPU it is what torch's allocator reserves, without the CUDA context.
"""

import dataclasses
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from dreambooth.config.checks import update_problems
from dreambooth.config.counts import num_saves_before_last
from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import LARGE_BYTES, Device, precisions
from dreambooth.forecast.constants import CONSTANTS, DeviceKind
from dreambooth.forecast.counts import (
    FP32,
    HALF,
    WIDTH,
    Counts,
    average_bytes,
    counts_of_shape,
    learning_units,
    moment_bytes,
    num_learning,
    saved_bytes,
    weight_bytes,
)
from dreambooth.forecast.pictures import (
    beside_samples,
    class_images,
    forward_values,
    frozen_text_encoder,
    most_in_pictures,
)
from dreambooth.forecast.shape import TOKENS, ModelShape, Unit

# How many samples go through one forward.
SAMPLES_AT_A_TIME = 4
# Latent pixels in a forward without gradients for evaluation, including the base's as teacher: two images of SD 1.5, so
# that evaluation never needs more memory than a training step.
PLACES_AT_ONCE = 2 * 64 * 64
# Left free for other uses of the device when a plan is chosen.
MARGIN = 0.05
# oneDNN keeps its bf16 kernels on the CPU, one for each shape.
BF16_KERNEL_BYTES = 48 << 20
# The process's memory on the CPU with all libraries imported, before it loads a model.
LIBRARY_BYTES = 430 * 10**6


@dataclass(frozen=True)
class MemoryNeed:
    """The bytes in use at the peak, by purpose, and in which phase of the run that is.

    measured: on what the planner's constants for such a run were measured; empty if no such run was.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    other: int
    phase: str
    measured: str

    @property
    def peak_bytes(self) -> int:
        """The sum of all of them."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.other


# What a run needs ----------------------------------------------------------------------------------------------------


def memory_need(
    config: TrainingConfig, shape: ModelShape, device_kind: DeviceKind, num_steps: int | None = None
) -> MemoryNeed:
    """Return the peak memory of these settings on this kind of device; takes milliseconds and needs no torch.

    `num_steps` is that of a run that counts epochs; while it is unknown, models are assumed to be saved during the
    training.
    """
    return max(_phases(config, shape, device_kind, num_steps), key=lambda need: need.peak_bytes)


def _phases(config: TrainingConfig, shape: ModelShape, kind: DeviceKind, num_steps: int | None) -> Iterator[MemoryNeed]:
    constants = CONSTANTS[kind]
    counts = counts_of_shape(shape)
    learning = num_learning(config, counts)
    weights = _resident_weights(config, counts, kind)
    state = learning * (moment_bytes(config) + average_bytes(config))
    is_measured = (shape.layout.family, config.method) in constants.measured_of
    kernels = BF16_KERNEL_BYTES if kind == "cpu" and config.mixed_precision == "bf16" else 0

    def need(
        phase: str, weights: float, gradients: float, optimizer: float, activations: float, other: float = 0.0
    ) -> MemoryNeed:
        return MemoryNeed(
            weights=round(weights * constants.slack),
            gradients=round(gradients * constants.slack),
            optimizer=round(optimizer * constants.slack),
            activations=round(activations),
            other=round(other + constants.fixed_bytes + kernels),
            phase=phase,
            measured=constants.measured if is_measured else "",
        )

    # Before the first step all parts are there, on the CPU at once.
    width = WIDTH[config.base_precision] if config.has_frozen_base else FP32
    if kind == "cpu" and width < FP32 and not config.with_prior_preservation:
        # Each is put into the other format before the next is read; a part's weights may share one memory, which is
        # free when the last of them is.
        whole = counts.unet * (FP32 + width)
        yield need("loading", max(whole, _resident_weights(config, counts, kind)), 0, 0, 0)
    elif kind == "cpu":
        yield need("loading", counts.total * FP32, 0, 0, 0)
        if width < FP32:
            yield need("half precision", counts.total * FP32 + counts.unet * width, 0, 0, 0)
    if config.with_prior_preservation:
        held, at_work = class_images(config, shape, counts, kind)
        yield need("class images", held, 0, 0, at_work)
    if config.teacher_prior:
        examples = max(1, PLACES_AT_ONCE // (config.resolution // 8) ** 2)
        values = forward_values(shape, config.resolution, examples, constants)
        yield need("teacher", weights, 0, 0, values * (FP32 if config.mixed_precision == "no" else HALF))
    gradients, activations = _step_peak(config, shape, kind)
    # A graph has a memory pool of its own, and its warm-up steps used the common one.
    recorded = gradients + activations if config.capture_step else 0
    copied = learning * saved_bytes(config) if kind == "cpu" and _saves_on_the_way(config, num_steps) else 0
    left = min(constants.left_bytes, counts.total * FP32 // 3)
    idle = max(left - gradients - state, 0)
    yield need("step", weights, gradients, state, activations, recorded + copied + idle)
    gathered = 0 if config.update_in_backward else learning * weight_bytes(config)
    units = learning_units(config, shape, _num_tokens(config))
    updating = max(max(_update_bytes(unit, config, kind)) for unit in units)
    yield need("update", weights, gathered, state, 0, updating + copied)
    if config.sample_prompts:
        at_a_time = 1 if config.update_in_backward else min(config.n_save_sample, SAMPLES_AT_A_TIME)
        averages = learning * average_bytes(config) if kind == "cpu" else 0
        beside = beside_samples(config, counts, kind)
        held, at_work = most_in_pictures(beside, shape, config.resolution, at_a_time, kind)
        yield need("samples", weights + held, 0, state, at_work, averages)
    if config.gauge_interval and config.use_ema and kind == "cpu":
        # The weights are set aside while the moving average is evaluated.
        values = forward_values(shape, config.resolution, 2, constants) * FP32
        yield need("looks", weights, 0, state, values, learning * FP32 + copied)


def _resident_weights(config: TrainingConfig, counts: Counts, kind: DeviceKind) -> int:
    """Return the bytes of the weights that are on the device during steps."""
    width = WIDTH[config.base_precision]
    text_encoder = width if config.train_text_encoder else (frozen_text_encoder(config) if kind == "cpu" else 0)
    vae = FP32 if kind == "cpu" or config.not_cache_latents else 0
    beside = num_learning(config, counts) * weight_bytes(config) if config.has_frozen_base else 0
    return counts.unet * width + counts.text_encoder * text_encoder + counts.vae * vae + beside


def _saves_on_the_way(config: TrainingConfig, num_steps: int | None) -> bool:
    """Return whether models are written during training, from a copy of the weights; the last one needs none."""
    num_steps = config.max_train_steps if num_steps is None else num_steps
    return num_steps is None or num_saves_before_last(config, 0, num_steps) > 0


# A step --------------------------------------------------------------------------------------------------------------


def _step_peak(config: TrainingConfig, shape: ModelShape, kind: DeviceKind) -> tuple[float, float]:
    """Return the bytes of gradients (and their updates) and of activations at the moment of their largest sum.

    On the CPU they share glibc's heap and fragment it: memory freed by one kind does not fit the other, so the heap
    grows to the sum of both. Tensors from `LARGE_BYTES` on are outside it, and are allocated and freed individually.
    """
    batch = config.train_batch_size * (2 if config.with_prior_preservation else 1)
    units = learning_units(config, shape, _num_tokens(config))
    costs = [_unit_cost(unit, config, kind, batch) for unit in units]
    standing = sum(cost.standing for cost in costs)
    if kind == "cpu":
        # Twice during backward: what one weight's update frees in a fragmented heap does not fit the next.
        times = 2 if config.update_in_backward else 1
        standing += times * max(_update_bytes(unit, config, kind)[0] for unit in units)

    # Forward: what is kept adds up. Backward: it is freed as gradients come, and recomputed units are kept once more.
    live, most = 0.0, (0.0, 0.0)
    for cost in costs:
        live += cost.kept
        most = max(most, (standing, live + cost.at_work), key=sum)
    gradients = standing
    for cost in reversed(costs):
        gradients += cost.coming
        most = max(most, (gradients + cost.update, live + cost.recomputed + cost.at_work), key=sum)
        live -= cost.kept
    constants = CONSTANTS[kind]
    return most[0], most[1] * (constants.recomputing if config.gradient_checkpointing else constants.keeping)


def _num_tokens(config: TrainingConfig) -> int:
    """Return the length of prompts in tokens: one per word, two around them, and some more for an identifier."""
    prompts = [prompt for concept in config.concepts for prompt in (concept.instance_prompt, concept.class_prompt)]
    if config.pad_tokens or not config.concepts:
        return TOKENS
    return min(4 + max(len((prompt or "").split()) for prompt in prompts), TOKENS)


@dataclass(frozen=True)
class _Cost:
    """A unit's bytes in a step: kept from forward to backward, recomputed in backward, and temporary.

    Its gradients are `standing` from one step to the next, or `coming` in backward; `update` is what updating its
    largest weight inside backward takes.
    """

    kept: float
    recomputed: float
    at_work: float
    standing: float
    coming: float
    update: float


def _unit_cost(unit: Unit, config: TrainingConfig, kind: DeviceKind, batch: int) -> _Cost:
    in_fp32 = config.mixed_precision == "no"
    number = FP32 if in_fp32 else HALF
    copied = 0 if in_fp32 or config.weight_precision == "bf16" else HALF * unit.weight_values
    whole = batch * _saved_bytes(unit, config, kind) + copied
    is_recomputed = config.gradient_checkpointing and unit.boundary_values is not None
    gradient = 0 if config.update_in_backward else unit.num_weights * weight_bytes(config)
    standing = gradient if config.gradient_accumulation_steps > 1 else 0
    if kind == "cpu" and not standing:
        standing = gradient - min(gradient, _large_bytes(unit, config))
    return _Cost(
        kept=batch * number * (unit.boundary_values or 0) if is_recomputed else whole,
        recomputed=whole if is_recomputed else 0,
        at_work=CONSTANTS[kind].workspace * batch * number * unit.widest,
        standing=standing,
        coming=gradient - standing,
        update=_update_bytes(unit, config, kind)[1] if config.update_in_backward else 0,
    )


def _large_bytes(unit: Unit, config: TrainingConfig) -> int:
    """Return the bytes of the weights that are too large for the CPU's heap."""
    sizes = (values * weight_bytes(config) for values in unit.large_weights)
    return sum(size for size in sizes if size >= LARGE_BYTES)


def _update_bytes(unit: Unit, config: TrainingConfig, kind: DeviceKind) -> tuple[int, int]:
    """Return what is held in fp32 beside weights, gradients and moments while one weight is updated.

    The first is for the largest weight in the CPU's heap, the second for the largest outside it.
    """
    # bitsandbytes has no CPU kernel: both moments, the gradient, and the step in two parts.
    copies = 5 if config.has_8bit_moments and kind == "cpu" else 0
    if config.update_in_backward:
        # Its gradient, twice if it is not in fp32, and the weight before and after.
        copies = max(copies + 2, 4)
    sizes = [FP32 * values for values in unit.large_weights]
    apart = [size for size in sizes if kind != "cpu" or size >= LARGE_BYTES]
    in_heap = [size for size in sizes if size not in apart]
    return copies * max(in_heap, default=0), copies * max(apart, default=0)


def _saved_bytes(unit: Unit, config: TrainingConfig, kind: DeviceKind) -> int:
    """Return what one image's forward through the unit keeps for backward."""
    if config.mixed_precision == "no":
        return FP32 * (unit.norm_values + unit.product_values)
    # CUDA's autocast normalises in fp32, and each product then takes its own copy; the CPU's stays in bf16.
    norms, copies = (FP32, HALF) if kind == "cuda" else (HALF, 0)
    return norms * unit.norm_values + HALF * unit.product_values + copies * unit.copied_values


# A plan that fits ----------------------------------------------------------------------------------------------------


def room_bytes(device: Device) -> float:
    """Return how much of a device's memory a run may use; on the CPU less what the libraries take."""
    libraries = LIBRARY_BYTES if device.kind == "cpu" else 0
    return max(device.free_bytes * (1 - MARGIN) - libraries, 0)


def fastest_plan(
    config: TrainingConfig,
    shape: ModelShape,
    device: Device,
    kept: Collection[str] = (),
    num_steps: int | None = None,
) -> TrainingConfig:
    """Return these settings with the fastest memory configuration that fits the device; the leanest if none does.

    What would change the result (photos, rates, sizes, batch, the text encoder) stays as asked, and so do the settings
    named in `kept`. `num_steps` is that of a run that counts epochs, if known.
    """
    room = room_bytes(device)
    plans = _plans(config, precisions(device), kept) or [config]
    needs = [memory_need(plan, shape, device.kind, num_steps).peak_bytes for plan in plans]
    fitting = [plan for plan, need in zip(plans, needs, strict=True) if need <= room]
    return fitting[0] if fitting else plans[needs.index(min(needs))]


def _plans(config: TrainingConfig, able: tuple[str, ...], kept: Collection[str]) -> list[TrainingConfig]:
    """Return memory configurations, the fastest first: each saves memory at the cost of time or precision."""
    on_gpu, has_bf16 = "fp16" in able, "bf16" in able
    half = "bf16" if has_bf16 or config.shard_weights else "fp16"
    precision = half if on_gpu and half in able else "no"
    changes: list[dict[str, Any]] = [
        {
            "mixed_precision": precision, "use_8bit_adam": False, "gradient_checkpointing": False,
            "update_in_backward": False, "weight_precision": "fp32", "max_tensor_grad_norm": None,
        },
        {"use_8bit_adam": True},
        {"gradient_checkpointing": True, "capture_step": False},
        # It cannot be combined with a loss scale, so a card without bf16 computes in fp32 here.
        {
            "update_in_backward": True, "max_grad_norm": 0.0, "capture_step": False,
            "mixed_precision": precision if precision != "fp16" else "no",
            "max_tensor_grad_norm": config.max_tensor_grad_norm,
        },
    ]  # fmt: skip
    if "update_in_backward" in kept and config.update_in_backward:
        changes[0] |= changes.pop()
    changes += [{"weight_precision": "bf16", "mixed_precision": "bf16"}] if has_bf16 else []
    if config.has_frozen_base and has_bf16:
        changes.append({"mixed_precision": "bf16"})
    # Settings that only another method reads change nothing.
    idle = {info.name for info in describe(TrainingConfig) if info.method not in ("", config.method)}
    kept = {*kept, *idle}
    changes = [changes[0], *(change for change in changes[1:] if not idle & change.keys())]
    if config.shard_weights:
        # Neither 8-bit moments nor updates inside backward work with sharded weights.
        changes = [changes[0], {"gradient_checkpointing": True}]
    plans = []
    for change in changes:
        config = dataclasses.replace(config, **{name: value for name, value in change.items() if name not in kept})
        plans.append(config)
    return [plan for plan in plans if not update_problems(plan)]
