"""Losses at fixed noise: they say what they claim, change nothing, and a resumed run tells the same ones."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.training import TrainingConfig
from dreambooth.events import (
    Event,
    FixedNoiseLosses,
    LossReader,
    Resumed,
    event_to_line,
    fixed_noise_losses_of,
    memorisation_of,
)
from dreambooth.training.materials import Materials
from tests.harness.killed_runs import Killed, killing_at
from tests.harness.trained import Run, quick_settings

Settings = Callable[..., TrainingConfig]


@pytest.fixture
def settings(tiny_base_folder: Path, photos: Path) -> Settings:
    def made(**changes: Any) -> TrainingConfig:
        values = {"max_train_steps": 4, "gauge_interval": 2, "checkpointing_steps": 1}
        return quick_settings(tiny_base_folder, photos, **(values | changes))

    return made


def trained(config: TrainingConfig, folder: Path, *, resumed: bool = False) -> tuple[list[Event], Materials]:
    run = Run(config, folder)
    run.train(run.newest_state() if resumed else None)
    return run.events, run.materials


def looks(events: list[Event]) -> list[FixedNoiseLosses]:
    return [event for event in events if isinstance(event, FixedNoiseLosses)]


@pytest.mark.parametrize(
    "changes", [{}, {"train_text_encoder": True, "with_prior_preservation": True, "use_ema": True}]
)
def test_looking_changes_no_bit_of_the_training(settings: Settings, tmp_path: Path, changes: dict[str, Any]) -> None:
    _, seen = trained(settings(**changes, gauge_interval=1), tmp_path / "looked")
    _, unseen = trained(settings(**changes, gauge_interval=0), tmp_path / "not")
    for part in ("unet", "text_encoder"):
        theirs = getattr(unseen.base, part).state_dict()
        for name, weights in getattr(seen.base, part).state_dict().items():
            assert torch.equal(weights, theirs[name]), name


def test_looks_come_at_step_0_at_every_interval_and_at_saves(settings: Settings, tmp_path: Path) -> None:
    events, _ = trained(settings(max_train_steps=5, save_interval=3), tmp_path)
    assert [look.step for look in looks(events)] == [0, 2, 3, 4, 5]
    assert looks(events)[0].drift == 0.0
    assert looks(events)[-1].drift > 0
    assert {look.drift_on for look in looks(events)} == {"photos by the class prompt"}
    assert looks(trained(settings(max_train_steps=1, gauge_interval=0), tmp_path / "none")[0]) == []


def test_losses_at_fixed_noise_are_those_worked_out_by_hand(settings: Settings, tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    materials = Run(settings(with_prior_preservation=True), tmp_path).materials
    base, fixed_noise = materials.base, materials.fixed_noise
    assert fixed_noise is not None
    found = fixed_noise.losses(0)
    timesteps = torch.tensor([62, 187, 312, 437, 562, 687, 812, 937])  # the middles of eight equal parts of 1000
    assert fixed_noise._timesteps.tolist() == timesteps.tolist()
    noisy = DDPMScheduler.from_config(base.noise_scheduler_config).add_noise(
        torch.stack(fixed_noise._pictures.seen), torch.stack(fixed_noise._photo_noise), timesteps
    )
    with torch.no_grad():
        prediction = base.unet(
            noisy, timesteps, materials.conditions(["photo of zwx dog"] * 8, fixed_noise._pictures.sizes[:8]).states
        ).sample
    assert found.seen == pytest.approx(
        (prediction - torch.stack(fixed_noise._photo_noise)).square().mean().item(), rel=1e-4
    )
    assert (found.drift, found.drift_on) == (0.0, "class pictures")
    assert found.unseen != found.seen
    with torch.no_grad():
        base.unet.conv_out.bias += 0.5
    assert fixed_noise.losses(1).drift == pytest.approx(0.25, rel=1e-4)


def test_a_resumed_run_tells_the_losses_of_the_run_that_never_ended(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(with_prior_preservation=True, teacher_prior=True, max_train_steps=6)
    whole, _ = trained(config, tmp_path / "whole")
    with killing_at(monkeypatch, 5), pytest.raises(Killed):
        trained(config, tmp_path / "killed")
    rest, _ = trained(config, tmp_path / "killed", resumed=True)
    assert looks(rest) == [look for look in looks(whole) if look.step > 4]


def test_looks_are_read_once_each_and_memorisation_starts_at_nothing(tmp_path: Path) -> None:
    first = FixedNoiseLosses(0, 0.5, 0.6, 0.0, "class pictures")
    lost, again = dataclasses.replace(first, step=50, seen=9.0), dataclasses.replace(first, step=50, seen=0.2)
    events: list[tuple[float, Event]] = [(0.0, event) for event in (first, lost, Resumed(25), again)]
    assert fixed_noise_losses_of(events) == [first, again]
    assert memorisation_of([first, again]) == pytest.approx([0.0, 0.3])
    assert memorisation_of([]) == []
    path = tmp_path / "events.jsonl"
    reader = LossReader(path)
    assert reader.at_fixed_noise() == []
    path.write_text("".join(event_to_line(event, 1.0) for _, event in events[:2]))
    assert reader.at_fixed_noise() == [first, lost]
    with path.open("a") as file:
        file.write("".join(event_to_line(event, 1.0) for _, event in events[2:]))
    assert reader.at_fixed_noise() == [first, again]
