"""Configurations of a base that are nonsense or without end are refused in words, before anything is built."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth.errors import BaseModelError, ExportError
from dreambooth.export.single_file import read_model
from dreambooth.models.base import load_base
from dreambooth.models.config_limits import LIMITS, refuse_wrong_configs

HOSTILE: list[tuple[str, Any, str]] = [
    ("unet/config.json", {"layers_per_block": 1_000_000}, "from 1 to 8"),
    ("unet/config.json", {"layers_per_block": [2, 2, 2, 10**9]}, "from 1 to 8"),
    ("unet/config.json", {"block_out_channels": [8, 16, 24, 10**9]}, "list of at most 8"),
    ("unet/config.json", {"block_out_channels": [8] * 1000}, "list of at most 8"),
    ("unet/config.json", {"reverse_transformer_layers_per_block": [10**6] * 4}, "from 1 to 16"),
    ("unet/config.json", {"time_embedding_dim": 10**9}, "from 1 to 16,384"),
    ("unet/config.json", {"num_class_embeds": 10**9}, "from 1 to 16,384"),
    ("unet/config.json", {"conv_in_kernel": 10**6}, "from 1 to 15"),
    ("unet/config.json", {"sample_size": None}, "whole number"),
    ("unet/config.json", {"sample_size": True}, "whole number"),
    ("unet/config.json", {"cross_attention_dim": "wide"}, "whole number"),
    ("text_encoder/config.json", {"num_hidden_layers": 10**7}, "from 1 to 100"),
    ("text_encoder/config.json", {"max_position_embeddings": 0}, "from 77"),
    ("vae/config.json", {"scaling_factor": "NaN"}, "a number above 0"),
    ("vae/config.json", {"scaling_factor": float("nan")}, "a number above 0"),
    ("vae/config.json", {"scaling_factor": 0}, "a number above 0"),
    ("vae/config.json", {"layers_per_block": 10**6}, "from 1 to 8"),
    ("scheduler/scheduler_config.json", None, "not a JSON object"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "from 100 to 10,000"),
    ("scheduler/scheduler_config.json", {"beta_end": 1e308}, "at most 0.999"),
    ("scheduler/scheduler_config.json", {"beta_start": -1}, "above 0"),
    ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, '"epsilon" or "v_prediction"'),
    ("scheduler/scheduler_config.json", {"prediction_type": ["epsilon"]}, '"epsilon" or "v_prediction"'),
    ("scheduler/scheduler_config.json", {"beta_schedule": "steep"}, '"scaled_linear"'),
    ("scheduler/scheduler_config.json", {"trained_betas": ["0.1"] * 1000}, "a list of 100 to 10,000 numbers"),
    ("scheduler/scheduler_config.json", {"trained_betas": []}, "a list of 100 to 10,000 numbers"),
]


def written(folder: Path, name: str, change: Any) -> None:
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(change if change is None else values | change))


@pytest.mark.parametrize(("name", "change", "words"), HOSTILE)
def test_a_hostile_configuration_is_refused_in_words(
    tiny_base_folder: Path, tmp_path: Path, name: str, change: Any, words: str
) -> None:
    """As a base and at a conversion."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    written(folder, name, change)
    with pytest.raises(BaseModelError, match=words) as told:
        load_base(str(folder))
    assert str(folder / name) in told.value.what
    with pytest.raises(ExportError, match=words):
        read_model(folder)
    if name.startswith("vae/"):
        with pytest.raises(BaseModelError, match=words):
            load_base(str(tiny_base_folder), vae=str(folder))
        assert load_base(str(folder), vae=str(tiny_base_folder)).vae is not None, "its own is not looked at then"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("text_encoder/config.json", {"layer_norm_eps": "small"}),
        ("text_encoder/config.json", {"num_attention_heads": 3}),
        ("vae/config.json", {"down_block_types": ["DownEncoderBlock2D"] * 400}),
    ],
)
def test_a_configuration_that_does_not_fit_itself_is_told(
    tiny_base_folder: Path, tmp_path: Path, name: str, change: Any
) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    written(folder, name, change)
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base(str(folder))


def test_what_is_used_is_within_the_limits(tiny_base_folder: Path) -> None:
    from dreambooth.models.sd import SD2_CHANGES, SD15_CONFIGS, SD15_SCHEDULER
    from dreambooth.models.sd_file import starter_folder

    for folder in (tiny_base_folder, starter_folder()):
        refuse_wrong_configs(folder)
    for config in (SD15_CONFIGS, SD2_CHANGES, {"scheduler": SD15_SCHEDULER}):
        for part, values in config.items():
            limits = LIMITS[f"{part}/{'scheduler_config' if part == 'scheduler' else 'config'}.json"]
            assert all(limits[name][1](value) for name, value in values.items() if name in limits)


def test_generate_says_so_at_once_on_the_command_line(tiny_base_folder: Path, tmp_path: Path) -> None:
    """A million layers were built for ten minutes; the limit of time is this test's own."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    written(folder, "unet/config.json", {"layers_per_block": 1_000_000})
    command = [sys.executable, "-m", "dreambooth", "generate", "--model", str(folder), "--prompt", "a dog"]
    done = subprocess.run([*command, "--output_dir", str(tmp_path)], capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert '"layers_per_block" is 1000000; it must be a whole number from 1 to 8' in done.stderr
    assert "Traceback" not in done.stderr
