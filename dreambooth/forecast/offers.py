"""What a run will take, computed before it starts: steps, minutes, memory and disk, for the form and the presets."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth.config.counts import num_steps_of
from dreambooth.config.presets import PRESETS, method_asked_for, preset, recommended_num_steps, resolve
from dreambooth.config.recipes import leaner_method
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import Device, gb
from dreambooth.durable import free_bytes
from dreambooth.forecast.counts import counts_of_shape
from dreambooth.forecast.disk import disk_need
from dreambooth.forecast.memory import fastest_plan, memory_need, room_bytes
from dreambooth.forecast.pace import expected_seconds, known_pace, usual_pace
from dreambooth.forecast.shape import ModelShape, read_shape
from dreambooth.formats.json_file import read_object
from dreambooth.models.base import STARTER, family_name, read_card
from dreambooth.records.workspace import Workspace

# The starter is too small to need memory savings; CPUs do not compute in fp16.
IN_FULL = {"mixed_precision": "no", "use_8bit_adam": False, "weight_precision": "fp32"}
# The smallest UNets distilled from SD 1.5 have 320 million weights, the starter's has 7.
MIN_UNET_FOR_A_GPU = 10**8
FROM_FAST_TO_LEAN = ("recommended", "minimum", "lean", "leanest")


@dataclass(frozen=True)
class Forecast:
    """What a run of these settings will take here; seconds are None if no similar run was timed on this device.

    is_measured: whether the planner's constants were measured on similar runs, on such a device.
    """

    config: TrainingConfig
    num_photos: int
    seconds: float | None
    need_bytes: int
    device: Device
    disk_bytes: int
    disk_free_bytes: int
    shape: ModelShape
    is_measured: bool = True
    # For the starter: how long it takes on two cores that nothing else uses.
    usual_seconds: float | None = None

    @property
    def fits(self) -> bool:
        """Return whether the device has enough memory."""
        return self.need_bytes <= room_bytes(self.device)


@dataclass(frozen=True)
class Offer:
    """A preset with what it will take."""

    name: str
    forecast: Forecast


def proposed_config(
    base: str,
    preset_name: str,
    kind: str,
    num_photos: int,
    explicit: Mapping[str, Any],
    device: Device | None = None,
) -> TrainingConfig:
    """Return the settings the form proposes: the user's, then the base's card, then the preset for this device."""
    card, method = read_card(base), method_asked_for(explicit)
    known: dict[str, Any] = {"resolution": card.native_px}
    on_cpu = device is not None and device.kind == "cpu"
    if card.is_toy or (on_cpu and preset(preset_name, method)["mixed_precision"] == "fp16"):
        known |= IN_FULL
    if not card.is_toy:
        # The form sends the kind as text; it is one from its list.
        known["max_train_steps"] = recommended_num_steps(kind, num_photos)  # type: ignore[arg-type]
    recipes: dict[str, dict[str, Any]] = {method: known | dict(card.recipes.get(method, {}))}
    return resolve({"pretrained_model_name_or_path": base, **explicit}, recipes, preset_name, family_name(base))


def forecast(workspace: Workspace, config: TrainingConfig, num_photos: int, device: Device) -> Forecast:
    """Return what a run of these settings will take; does not raise for settings that cannot be run."""
    steps = num_steps_of(config, num_photos)
    config = dataclasses.replace(config, max_train_steps=steps)
    shape = read_shape(config.pretrained_model_name_or_path, workspace.models_dir)
    pace, usual = known_pace(workspace, config), usual_pace(workspace, config)
    missing = class_images_to_make(workspace, config)
    need = memory_need(config, shape, device.kind)
    return Forecast(
        config=config,
        num_photos=num_photos,
        seconds=None if pace is None else expected_seconds(pace, config, num_photos, missing),
        need_bytes=need.peak_bytes,
        device=device,
        disk_bytes=disk_need(config, counts_of_shape(shape), steps).written_bytes,
        disk_free_bytes=free_bytes(workspace.data_dir),
        shape=shape,
        is_measured=bool(need.measured),
        usual_seconds=None if usual is None else expected_seconds(usual, config, num_photos, missing),
    )


def offers(
    workspace: Workspace, base: str, kind: str, num_photos: int, explicit: Mapping[str, Any], device: Device
) -> list[Offer]:
    """Return every preset with what it will take on this device."""
    return [
        Offer(name, forecast(workspace, proposed_config(base, name, kind, num_photos, explicit, device),
                             num_photos, device))
        for name in PRESETS
    ]  # fmt: skip


def fitting(offered: list[Offer], wish: str) -> str:
    """Return the wanted preset if it fits, else the fastest one that does; the leanest if none does."""
    fit = [offer.name for offer in offered if offer.forecast.fits]
    return next((name for name in (wish, *FROM_FAST_TO_LEAN) if name in fit), FROM_FAST_TO_LEAN[-1])


@dataclass(frozen=True)
class Leaner:
    """Settings of another method that fit where those of the requested one do not, and its result in words."""

    outcome: str
    plan: TrainingConfig
    need_bytes: int


def leaner_offer(config: TrainingConfig, shape: ModelShape, device: Device) -> Leaner | None:
    """Return the method that fits the device where these settings do not, at its fastest; None if none does."""
    leaner = leaner_method(config)
    if leaner is None:
        return None
    other, outcome = leaner
    plan = fastest_plan(other, shape, device)
    need_bytes = memory_need(plan, shape, device.kind).peak_bytes
    return Leaner(outcome[0].upper() + outcome[1:], plan, need_bytes) if need_bytes <= room_bytes(device) else None


def memory_notice(config: TrainingConfig, shape: ModelShape, device: Device, num_steps: int | None = None) -> str:
    """Return the notice for settings that need more memory than is free, with the method that needs less; else ''."""
    need_bytes = memory_need(config, shape, device.kind, num_steps).peak_bytes
    if need_bytes <= room_bytes(device):
        return ""
    text = (
        f"The run needs about {gb(need_bytes)} GiB of memory, and {device.name} has {gb(device.free_bytes)} GiB free."
    )
    leaner = leaner_offer(config, shape, device)
    if leaner is None:
        return text
    plan = leaner.plan
    flags = [f"--method {plan.method}", f"--mixed_precision {plan.mixed_precision}"]
    flags += ["--gradient_checkpointing"] * plan.gradient_checkpointing
    return f"{text} {leaner.outcome} needs about {gb(leaner.need_bytes)} GiB: {' '.join(flags)}."


def cpu_notice(workspace: Workspace, config: TrainingConfig, device: Device) -> str:
    """Return the notice that a CPU takes days for this model's size, unless a similar run was timed here; else ''."""
    if device.kind != "cpu" or known_pace(workspace, config) is not None:
        return ""
    if read_shape(config.pretrained_model_name_or_path, workspace.models_dir).num_unet < MIN_UNET_FOR_A_GPU:
        return ""
    return f"A training of this size takes days on a CPU: use a GPU, or try {STARTER}, which takes minutes."


def class_images_to_make(workspace: Workspace, config: TrainingConfig) -> int:
    """Return how many class images of the concepts do not exist yet, whatever base made the existing ones."""
    if not config.with_prior_preservation:
        return 0
    there: dict[str, int] = {}
    for note in workspace.class_images_dir.glob("*/info.json"):
        try:
            prompt = str(read_object(note)["prompt"])
        except (OSError, ValueError, KeyError):
            continue
        there[prompt] = max(there.get(prompt, 0), len(list(note.parent.glob("*.png"))))
    prompts = [concept.class_prompt or "" for concept in config.concepts] or [""]
    return sum(max(config.num_class_images - there.get(prompt, 0), 0) for prompt in prompts)
