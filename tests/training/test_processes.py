"""Several devices: two processes train as one with the doubled batch.

`accelerate launch` starts several processes on GPUs, on CPUs only through MPI; torch's own launcher sets the same
variables and starts them here.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dreambooth.config.concepts import Concept
from dreambooth.config.training import MethodName, TrainingConfig
from dreambooth.events import StepLoss, read_events
from dreambooth.formats.layout import lora_file
from dreambooth.records.runlog import read_state
from dreambooth.records.workspace import RunFolder
from dreambooth.runs.run import train
from tests.harness.trained import losses_in


@pytest.mark.parametrize("method", ["full", pytest.param("lora", marks=pytest.mark.reliability)])
def test_two_processes_give_the_losses_of_one_with_the_doubled_batch(
    tiny_base_folder: Path, photos: Path, tmp_path: Path, method: MethodName
) -> None:
    shared = [
        "--pretrained_model_name_or_path", str(tiny_base_folder), "--instance_data_dir", str(photos),
        "--instance_prompt", "photo of zwx dog", "--resolution", "32", "--max_train_steps", "3", "--log_interval", "1",
        "--learning_rate", "1e-3", "--num_crop_variants", "1", "--seed", "5", "--save_precision", "fp32",
        "--class_prompt", "photo of dog", "--with_prior_preservation", "--num_class_images", "2",
        "--save_infer_steps", "2", "--method", method,
    ]  # fmt: skip
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "dreambooth",
    ]
    command = [*launch, "train", *shared, "--train_batch_size", "1", "--output_dir", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    config = TrainingConfig.from_json(json.loads((tmp_path / "two" / ".run" / "config.json").read_text()))
    assert config.train_batch_size == 1
    train(
        TrainingConfig(
            pretrained_model_name_or_path=str(tiny_base_folder), seed=5, save_precision="fp32",
            concepts=(Concept("photo of zwx dog", str(photos), "photo of dog"),), resolution=32, max_train_steps=3,
            learning_rate=1e-3, num_crop_variants=1, train_batch_size=2, log_interval=1, with_prior_preservation=True,
            num_class_images=2, save_infer_steps=2, method=method, output_dir=str(tmp_path / "one"),
        )
    )  # fmt: skip
    two, one = (losses_in(tmp_path / name) for name in ("two", "one"))
    assert len(one) == 3
    assert two == pytest.approx(one, rel=1e-5)
    steps = [tmp_path / name / "3" for name in ("two", "one")]
    files = [lora_file(step) or step / "unet" / "diffusion_pytorch_model.safetensors" for step in steps]
    weights = [load_file(file) for file in files]
    assert weights[0].keys() == weights[1].keys()
    assert max((weights[0][name] - tensor).abs().max().item() for name, tensor in weights[1].items()) < 1e-4


@pytest.mark.reliability
def test_a_run_of_two_processes_that_was_killed_goes_on_with_two(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    shared = [
        "--pretrained_model_name_or_path", str(tiny_base_folder), "--instance_data_dir", str(photos),
        "--instance_prompt", "photo of zwx dog", "--resolution", "32", "--max_train_steps", "3", "--log_interval", "1",
        "--learning_rate", "1e-3", "--num_crop_variants", "1", "--seed", "5", "--save_precision", "fp32",
        "--train_batch_size", "1", "--train_text_encoder", "--checkpointing_steps", "2",
    ]  # fmt: skip
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    commands = [
        [*launch, "dreambooth", "train", *shared, "--output_dir", str(whole)],
        [*launch, "tests.harness.ended_amid_steps", *shared, "--output_dir", str(parts)],
        [*launch, "dreambooth", "train", "--resume_from_checkpoint", "latest", "--output_dir", str(parts)],
    ]
    statuses = [subprocess.run(command, capture_output=True, text=True, timeout=300).returncode for command in commands]
    assert statuses[0] == statuses[2] == 0
    assert statuses[1] != 0
    assert RunFolder(parts).steps() == [3]
    for part, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        one, other = (load_file(folder / "3" / part / f"{file}.safetensors") for folder in (whole, parts))
        assert all(one[name].equal(tensor) for name, tensor in other.items())
    assert losses_in(parts) == losses_in(whole)


def test_processes_stop_together_when_one_is_told(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    run = told_in_one_process("stop=2", tiny_base_folder, photos, tmp_path / "run")
    assert run.steps() == [2]
    assert read_state(run).status == "stopped"
    assert run.checkpoint_steps() == [2]


def test_processes_save_lend_and_finish_together_when_one_is_told(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    run = told_in_one_process("save_now=1,lend=2,finish_now=3", tiny_base_folder, photos, tmp_path / "run")
    assert run.steps() == [1, 8]
    assert read_state(run).status == "done"
    assert [event.step for _, event in read_events(run.events_path) if isinstance(event, StepLoss)] == [*range(1, 9)]


def told_in_one_process(wishes: str, base: Path, photos: Path, folder: Path) -> RunFolder:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.harness.told_in_one_process", wishes,
        "--pretrained_model_name_or_path", str(base), "--instance_data_dir", str(photos),
        "--instance_prompt", "photo of zwx dog", "--resolution", "32", "--max_train_steps", "9", "--log_interval", "4",
        "--num_crop_variants", "1", "--seed", "5", "--train_batch_size", "1", "--output_dir", str(folder),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    return RunFolder(folder)
