"""The command line and JSON that the page shows for its settings ask for the very same ones."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import training_config
from dreambooth.config.concepts import Concept
from dreambooth.config.presets import PRESETS, resolve
from dreambooth.config.training import SD15, TrainingConfig
from dreambooth.models.base import STARTER, read_card
from dreambooth.runs.shell_line import CONFIG_FILE, command_line, settings_text


def understood(line: str) -> TrainingConfig:
    """Return the settings that the command line's own parser makes of the line."""
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "dreambooth"]
    arguments = vars(build_parser().parse_args(words[3:]))
    arguments.pop("run_command")
    return training_config(arguments)


def config(photos: Path, base: str, preset: str, **changes: Any) -> TrainingConfig:
    concept = Concept("photo of zwx dog, 'hers' $HOME", str(photos), "photo of dog")
    card = dict(read_card(base).recipes.get("full", {})) | {"max_train_steps": 300}
    explicit = {"pretrained_model_name_or_path": base, "concepts": (concept,), **changes}
    return resolve(explicit, {"full": card}, preset).checked()


@pytest.mark.parametrize("base", [SD15, STARTER])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seed": 7, "learning_rate": 2e-5, "hflip": True, "checkpointing_steps": 0},
        {"save_sample_prompt": "-a dog\nphoto of 'it' & more", "snr_gamma": 5.0, "save_total_limit": 2},
        {"class_guidance_scale": 0.0, "with_prior_preservation": False},
        {"num_class_images": 100, "train_batch_size": 4, "center_crop": False, "snr_gamma": None},
    ],
    ids=["plain", "numbers", "quoting", "zero", "back to defaults"],
)
def test_the_shown_command_line_asks_for_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, preset: str, changes: dict[str, Any]
) -> None:
    wanted = config(photos, base, preset, **changes)
    monkeypatch.chdir(tmp_path)
    Path(CONFIG_FILE).write_text(settings_text(wanted), "utf-8")
    assert understood(command_line(wanted)) == wanted
    assert understood(f"python -m dreambooth train --config {CONFIG_FILE}") == wanted


def test_several_concepts_are_read_from_the_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = config(photos, SD15, "recommended")
    both = dataclasses.replace(one, concepts=(*one.concepts, Concept("photo of ukj cup", str(photos), "photo of cup")))
    monkeypatch.chdir(tmp_path)
    Path(CONFIG_FILE).write_text(settings_text(both), "utf-8")
    assert understood(command_line(both)) == both


def test_flags_are_shown_where_flags_can_say_it(photos: Path) -> None:
    line = command_line(config(photos, SD15, "recommended"))
    assert "--train_text_encoder " in line
    assert "--config" not in line
    line = command_line(config(photos, STARTER, "recommended", center_crop=False))
    assert "--no_center_crop" in line
    assert "--config" not in line
