"""Notices about a run's settings before it starts, the same on every route; none of them is an error."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

from dreambooth.config.counts import num_steps_of
from dreambooth.config.effects import without_effect
from dreambooth.config.recipes import rate_warning
from dreambooth.config.training import TrainingConfig
from dreambooth.data.photos import num_photos_in
from dreambooth.device.hardware import driver_device, gb
from dreambooth.forecast.offers import cpu_notice, memory_notice
from dreambooth.forecast.shape import read_shape
from dreambooth.formats.other_kinds import distilled_notice
from dreambooth.models.availability import bytes_to_download
from dreambooth.models.base import read_card
from dreambooth.models.origin import origin_of
from dreambooth.records.workspace import Workspace


def setting_notices(config: TrainingConfig, explicit: Collection[str] | None, models_dir: Path) -> list[str]:
    """Return a sentence for each explicit setting without effect, for a rate of another method, and for a base that was
    distilled to few denoising steps.
    """
    base = config.pretrained_model_name_or_path
    origin = origin_of(base, models_dir)
    found = [
        rate_warning(config, read_card(base, models_dir).recipes),
        # A trained model's name is the user's choice.
        distilled_notice(base if origin is None else origin.name),
    ]
    return [*without_effect(config, explicit), *filter(None, found)]


def memory_notices(config: TrainingConfig, models_dir: Path, held_bytes: int = 0) -> list[str]:
    """Return a warning if this device has too little memory; `held_bytes` of it are freed for the run."""
    device = driver_device()
    free_bytes = min(device.total_bytes, device.free_bytes + held_bytes)
    num_steps = num_steps_of(config, num_photos_in(concept.instance_data_dir for concept in config.concepts))
    shape = read_shape(config.pretrained_model_name_or_path, models_dir)
    notice = memory_notice(config, shape, dataclasses.replace(device, free_bytes=free_bytes), num_steps)
    return [notice] if notice else []


def base_notices(config: TrainingConfig, token: str | None, workspace: Workspace) -> list[str]:
    """Return what the models of these settings take: a download, and days on a CPU; raises BaseModelError without them.

    Asks the Hub about models that are not on this machine.
    """
    download = download_notice(config, bytes_to_download(config, token, workspace.models_dir))
    slow = cpu_notice(workspace, config, driver_device())
    return [sentence for sentence in (download, slow) if sentence]


def download_notice(config: TrainingConfig, num_bytes: int | None) -> str:
    """Return that a model is downloaded before the run, and its size; empty if everything is here."""
    if num_bytes == 0:
        return ""
    size = "" if num_bytes is None else f": {gb(num_bytes)} GB" if num_bytes > 10**8 else f": {num_bytes / 1e6:.1f} MB"
    return f'"{config.pretrained_model_name_or_path}" is downloaded first{size}.'
