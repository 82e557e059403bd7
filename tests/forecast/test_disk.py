"""R7: what a run will take on the disk is told before it starts, close to what it really takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.training import TrainingConfig
from dreambooth.errors import DreamBoothError
from dreambooth.events import Controls, Event, PhaseProgress
from dreambooth.forecast import disk
from dreambooth.forecast.counts import counts_of_base
from dreambooth.models.base import load_base
from dreambooth.runs.run import resume, train
from tests.harness.trained import quick_settings


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> Callable[..., TrainingConfig]:
    def made(**changes: Any) -> TrainingConfig:
        values = {
            "output_dir": str(tmp_path / "run"), "seed": 1, "max_train_steps": 6, "num_crop_variants": 1,
            "save_interval": 100,
        }  # fmt: skip
        return quick_settings(tiny_base_folder, photos, **(values | changes))

    return made


def size_bytes(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train_text_encoder": True},
        {"use_ema": True},
        {"save_interval": 2},
        {"save_precision": "fp32", "save_interval": 3},
        {"checkpoints_total_limit": 2},
    ],
    ids=str,
)
def test_the_estimate_is_close_to_what_the_run_takes(
    config: Callable[..., TrainingConfig], changes: dict[str, Any]
) -> None:
    """R7: within a tenth, over six settings, of the weights' bytes that lie there at the fullest moment."""
    settings = config(**{"checkpointing_steps": 2, "checkpoints_total_limit": 1} | changes)
    folder = Path(str(settings.output_dir))
    peak_states = 0

    def watch(event: Event) -> None:
        nonlocal peak_states
        if isinstance(event, PhaseProgress):
            peak_states = max(peak_states, size_bytes(folder, ".run/state/[0-9]*/*.safetensors"))

    train(settings, on_event=watch)
    base = load_base(settings.pretrained_model_name_or_path)
    need = disk.disk_need(settings, counts_of_base(base), 6)
    assert size_bytes(folder, "[0-9]*/*/*.safetensors") == pytest.approx(need.num_models * need.model_bytes, rel=0.1)
    # A watcher sees the states between two saves, when the one too many is gone.
    assert peak_states == pytest.approx((need.num_states - 1) * need.state_bytes, rel=0.1)


@pytest.mark.parametrize("own", [{}, {"lora_targets": "all", "use_ema": True}, {"save_precision": "fp32"}], ids=str)
def test_the_estimate_of_a_lora_is_close_to_its_files(
    config: Callable[..., TrainingConfig], own: dict[str, Any]
) -> None:
    """Its steps are the factors alone, and its states those with their moments."""
    settings = config(method="lora", lora_rank=8, train_text_encoder=True, save_interval=2, max_train_steps=4, **own)
    folder = train(settings).parent
    need = disk.disk_need(settings, counts_of_base(load_base(settings.pretrained_model_name_or_path)), 4)
    assert size_bytes(folder, "[0-9]*/*.safetensors") == pytest.approx(need.num_models * need.model_bytes, rel=0.1)
    assert size_bytes(folder, ".run/state/4/*.safetensors") == pytest.approx(need.state_bytes, rel=0.1)
    assert not [*folder.glob("[0-9]*/unet")]


def test_a_run_that_will_not_fit_is_refused_with_numbers_before_anything_is_made(
    config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: one MiB short is short; one more is enough."""
    settings = config(with_prior_preservation=True, num_class_images=2, save_infer_steps=2)
    base = load_base(settings.pretrained_model_name_or_path)
    need = disk.disk_need(settings, counts_of_base(base), 6).total_bytes
    monkeypatch.setattr(disk, "free_bytes", lambda path: need - (1 << 20))
    events: list[Event] = []
    with pytest.raises(DreamBoothError, match=r"needs 1\.\d GiB of disk, and 1\.\d GiB are free"):
        train(settings, on_event=events.append)
    assert not any(isinstance(event, PhaseProgress) and event.phase == "class images" for event in events)
    monkeypatch.setattr(disk, "free_bytes", lambda path: need)
    assert train(config(output_dir=f"{settings.output_dir}-2")).name == "6"


def test_a_resumed_run_needs_room_only_for_what_is_not_there_yet(
    config: Callable[..., TrainingConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7: one MiB short is told without settings to change, which a resumed run keeps; one more is enough."""
    settings, controls = config(save_interval=2, train_text_encoder=True), Controls()
    folder = Path(str(settings.output_dir))

    def stop(event: Event) -> None:
        if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", 4):
            controls.stop.set()

    monkeypatch.setattr(disk, "free_bytes", lambda path: 1 << 40)
    train(settings, controls=controls, on_event=stop)
    base = load_base(settings.pretrained_model_name_or_path)
    need = disk.disk_need(settings, counts_of_base(base), 6)
    left = need.total_bytes - size_bytes(folder, "[24]/**/*.*") - size_bytes(folder, ".run/state/4/*")
    assert left < need.total_bytes - 6 * 10**6
    monkeypatch.setattr(disk, "free_bytes", lambda path: left - (1 << 20))
    with pytest.raises(DreamBoothError, match=r"To continue, .* more disk space") as refused:
        resume(folder)
    assert "save_interval" not in refused.value.todo
    monkeypatch.setattr(disk, "free_bytes", lambda path: left + 4096)
    assert resume(folder).name == "6"
