"""Settings that need less memory, the least harmful change first; and the status of a run that failed."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from dreambooth.config.checks import update_problems
from dreambooth.config.fields import describe
from dreambooth.config.recipes import MIN_PX, leaner_method
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import is_disk_full
from dreambooth.errors import without_secrets
from dreambooth.events import StatusChanged
from dreambooth.models.base import family_name
from dreambooth.records.runlog import RunLog
from dreambooth.records.workspace import RunFolder


def unexpected_end(error: BaseException, config: TrainingConfig, models_dir: Path | None = None) -> StatusChanged:
    """Return the status of a run that this error ended."""
    if is_disk_full(error):
        return StatusChanged(
            "paused",
            "The disk is full.",
            "Everything saved before is complete; the unfinished file was removed.",
            "Free some disk space, then resume the run.",
            cause="disk full",
        )
    if type(error).__name__ == "OutOfMemoryError":
        return StatusChanged(
            "failed",
            "The device ran out of memory.",
            without_secrets(str(error)).split(". ", 1)[0] + ".",
            f"What needs less: {'; '.join(smaller_settings(config, models_dir))}.",
            cause="out of memory",
        )
    return StatusChanged(
        "failed",
        f"The run ended with an unexpected {type(error).__name__}.",
        without_secrets(str(error))[:300],
        "The log has the details.",
    )


def smaller_settings(config: TrainingConfig, models_dir: Path | None = None) -> list[str]:
    """Return what would reduce the memory of these settings, the least harmful first; never empty.

    Another method comes last: it is suggested in words, and never taken automatically.
    """
    ways = [words for _, words in _ways_to_need_less(config, models_dir)]
    if leaner := leaner_method(config):
        ways.append(f"or train {leaner[1]}: --method {leaner[0].method}")
    return ways or ["a device with more memory"]


def smaller_config(config: TrainingConfig, models_dir: Path | None = None) -> TrainingConfig | None:
    """Return these settings with the least harmful change that reduces their memory, None if none is left."""
    least_px = _least_px(config, models_dir)
    for changes, _ in _ways_to_need_less(config, models_dir):
        if changes.get("resolution", least_px) >= least_px:
            return dataclasses.replace(config, **changes)
    return None


def _least_px(config: TrainingConfig, models_dir: Path | None) -> int:
    return MIN_PX[family_name(config.pretrained_model_name_or_path, models_dir)]


def _ways_to_need_less(config: TrainingConfig, models_dir: Path | None) -> list[tuple[dict[str, Any], str]]:
    """Return changes and their descriptions, the least harmful first; none that contradicts the settings.

    A resolution is not lowered below what is useful for the base's family.
    """
    batch = config.train_batch_size
    as_many = {"train_batch_size": 1, "gradient_accumulation_steps": config.gradient_accumulation_steps * batch}
    lower_px = max(config.resolution * 3 // 4 // 64 * 64, 16)
    stays_useful = not lower_px < _least_px(config, models_dir) <= config.resolution
    in_fp32 = config.mixed_precision == "no"
    ways: list[tuple[bool, dict[str, Any], str]] = [
        (config.capture_step, {"capture_step": False}, "no --capture_step"),
        (not config.gradient_checkpointing, {"gradient_checkpointing": True}, "--gradient_checkpointing"),
        (not config.use_8bit_adam, {"use_8bit_adam": True}, "--use_8bit_adam (on an NVIDIA GPU)"),
        (in_fp32, {"mixed_precision": "fp16"}, "--mixed_precision fp16 or bf16"),
        (in_fp32, {"mixed_precision": "bf16"}, "--mixed_precision bf16"),
        (batch > 1, as_many, "--train_batch_size 1, with --gradient_accumulation_steps instead"),
        (batch > 1, {"train_batch_size": 1}, "--train_batch_size 1"),
        (config.use_ema, {"use_ema": False}, "no --use_ema"),
        (config.not_cache_latents, {"not_cache_latents": False}, "no --not_cache_latents"),
        (
            config.train_text_encoder,
            {"train_text_encoder": False, "text_encoder_lr": None, "text_encoder_stop_step": None},
            "no --train_text_encoder",
        ),
        (config.lora_targets != "attention", {"lora_targets": "attention"}, "--lora_targets attention"),
        (stays_useful, {"resolution": lower_px}, f"a --resolution below {config.resolution}"),
    ]
    idle = {info.name for info in describe(TrainingConfig) if info.method not in ("", config.method)}
    possible: dict[str, tuple[dict[str, Any], str]] = {}
    for applies, changes, words in ways:
        if applies and not idle & changes.keys() and not update_problems(dataclasses.replace(config, **changes)):
            # The second entry for the same setting applies if the first is not possible.
            possible.setdefault(next(iter(changes)), (changes, words))
    return [*possible.values()]


def record_end(run: RunFolder, config: TrainingConfig, error: BaseException) -> None:
    """Record in the run's folder what ended it; print it if nothing can be written."""
    try:
        log = RunLog(run, config.max_train_steps or 0)
        log.bug(error)
        log(unexpected_end(error, config))
    except OSError as unwritten:
        print(without_secrets(f"{run.name}: {error}; {unwritten}"), file=sys.stderr)
