"""Weights that two processes share: the losses of one process with the doubled batch, half the memory, exact resume."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError, DreamBoothError, TrainingError
from dreambooth.models.base import load_base
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import train
from dreambooth.training.run_identity import RunIdentity, require_same_run
from tests.harness.tiny import tiny_sdxl_base
from tests.harness.trained import losses_in

STEPS = 5


def config_of(base: Path, photos: Path, folder: Path) -> TrainingConfig:
    return TrainingConfig(
        pretrained_model_name_or_path=str(base), concepts=(Concept("photo of zwx dog", str(photos)),), resolution=32,
        max_train_steps=STEPS, log_interval=1, learning_rate=1e-3, num_crop_variants=1, seed=5, save_precision="fp32",
        train_text_encoder=True, train_batch_size=1, checkpointing_steps=0, save_interval=3, gauge_interval=4,
        save_sample_prompt="photo of zwx dog", n_save_sample=1, save_infer_steps=2, shard_weights=True,
        output_dir=str(folder),
    )  # fmt: skip


def files_of(run: Path) -> dict[str, bytes]:
    """Return models and samples, byte for byte."""
    files = [file for file in run.rglob("*") if file.suffix in (".safetensors", ".png") and ".run" not in file.parts]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


@pytest.mark.reliability
def test_two_processes_that_share_the_weights_train_as_one_in_half_the_memory_and_resume_exactly(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    config = config_of(tiny_base_folder, photos, tmp_path / "one")
    (tmp_path / "settings.json").write_text(json.dumps(dataclasses.replace(config, output_dir=None).to_json()))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.harness.sharded_runs", str(tmp_path), "--config", str(tmp_path / "settings.json"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr

    train(dataclasses.replace(config, shard_weights=False, train_batch_size=2))
    whole, parts, one = (tmp_path / name for name in ("whole/run", "parts/run", "one"))
    assert losses_in(whole) == pytest.approx(losses_in(one), rel=1e-4)
    assert len(losses_in(one)) == STEPS
    assert RunFolder(whole).steps() == [3, STEPS]
    shared, alone = (load_base(str(folder / str(STEPS))).unet.state_dict() for folder in (whole, one))
    assert max((shared[name] - tensor).abs().max().item() for name, tensor in alone.items()) < 1e-3

    for rank in (0, 1):
        held = json.loads((tmp_path / f"{rank}.json").read_text())
        assert held["weights"] < 0.51 * held["all weights"]
        assert held["states"] < 0.51 * 2 * held["all weights"]

    assert files_of(parts) == files_of(whole)
    assert losses_in(parts) == losses_in(whole)


@pytest.mark.reliability
def test_sdxl_trains_both_text_encoders_with_shared_weights_through_the_command_line(
    photos: Path, tmp_path: Path
) -> None:
    base = tiny_sdxl_base(tmp_path / "base")
    asked = [
        "train", "--pretrained_model_name_or_path", base, "--instance_data_dir", photos, "--instance_prompt",
        "photo of zwx dog", "--train_text_encoder", "--resolution", "32", "--max_train_steps", "2", "--learning_rate",
        "1e-3", "--num_crop_variants", "1", "--gauge_interval", "0", "--seed", "5", "--save_precision", "fp32",
    ]  # fmt: skip
    shared = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "dreambooth"]
    for name, start, options in (
        ("one", ["dreambooth"], ["--train_batch_size", "2"]),
        ("two", shared, ["--train_batch_size", "1", "--shard_weights"]),
    ):
        command = [sys.executable, "-m", *start, *asked, *options, "--output_dir", tmp_path / name]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    one, two = (load_base(str(tmp_path / name / "2")) for name in ("one", "two"))
    for part, module in one.modules().items():
        theirs = getattr(two, part).state_dict()
        far = max((theirs[name] - weight).abs().max().item() for name, weight in module.state_dict().items())
        assert far < 1e-3, part


def test_one_process_has_nobody_to_share_with(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DreamBoothError, match="needs several processes"):
        train(config_of(tiny_base_folder, photos, tmp_path / "run"))


@pytest.mark.parametrize(
    "change",
    [{"use_8bit_adam": True}, {"use_ema": True}, {"capture_step": True}, {"compile_unet": True},
     {"mixed_precision": "fp16"}, {"update_in_backward": True, "max_grad_norm": 0.0}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_what_works_on_whole_weights_is_refused(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    config = config_of(tiny_base_folder, photos, tmp_path)
    with pytest.raises(ConfigError, match=rf"{next(iter(change))}.*\(shard_weights is on\)"):
        dataclasses.replace(config, **change).checked()  # type: ignore[arg-type]


def test_a_state_of_another_number_of_processes_is_refused() -> None:
    two, one = (RunIdentity({}, "", {"processes": number}) for number in ("2", "1"))
    assert require_same_run(4, two, two, {}) == []
    with pytest.raises(TrainingError, match="that of 2 processes, and these are 1"):
        require_same_run(4, two, one, {})
    assert require_same_run(4, RunIdentity({}, "", {}), one, {}) == [], "from before it was noted"
