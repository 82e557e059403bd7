"""Settings without an effect are reported before a run starts, when flags, a file or Python asked for them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.commands.cli import build_parser
from dreambooth.commands.train import asked_training
from dreambooth.config.effects import without_effect
from dreambooth.config.training import TrainingConfig
from dreambooth.records.workspace import RunFolder


@pytest.fixture
def concept_flags(photos: Path) -> list[str]:
    return ["--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog", "--class_prompt", "a dog"]


def told(*flags: str) -> list[str]:
    """Return what the command line says of these flags before it trains."""
    arguments = vars(build_parser().parse_args(["train", *flags]))
    arguments.pop("run_command")
    return without_effect(*asked_training(arguments))


def named(sentences: list[str]) -> set[str]:
    return {sentence.split('"')[1] for sentence in sentences}


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--class_data_dir classes --max_train_steps 9", "class_data_dir"),
        ("--num_class_images 9 --prior_loss_weight 0.5", "num_class_images prior_loss_weight"),
        ("--class_guidance_scale 3 --sample_batch_size 2", "class_guidance_scale sample_batch_size"),
        ("--ema_decay 0.99", "ema_decay"),
        ("--n_save_sample 2 --save_guidance_scale 3", "n_save_sample save_guidance_scale"),
        ("--save_infer_steps 9 --num_probe_images 2", "save_infer_steps num_probe_images"),
        ("--save_sample_negative_prompt blur", "save_sample_negative_prompt"),
        (
            "--save_sample_prompt x --save_sample_negative_prompt b --save_guidance_scale 1",
            "save_sample_negative_prompt",
        ),
        ("--lr_warmup_steps 5", "lr_warmup_steps"),
        ("--lr_warmup_steps 50 --lr_scheduler linear --max_train_steps 50", "lr_warmup_steps lr_scheduler"),
        ("--lr_scheduler cosine --max_train_steps 400", "lr_scheduler"),
        ("--train_text_encoder --text_encoder_stop_step 9 --max_train_steps 9", "text_encoder_stop_step"),
        ("--num_train_epochs 3 --max_train_steps 9", "num_train_epochs"),
        ("--not_cache_latents --num_crop_variants 2", "num_crop_variants"),
        ("--save_min_steps 5 --save_interval 9", "save_min_steps"),
        ("--save_sample_prompt x --stop_when_good --save_interval 5 --max_train_steps 15", "stop_when_good"),
        ("--pretrained_model_name_or_path starter --revision main --variant fp16", "revision variant"),
        ("--lora_rank 8 --lora_targets all", "lora_rank lora_targets"),
        ("--method lora --use_8bit_adam", "use_8bit_adam"),
    ],
    ids=str,
)  # fmt: skip
def test_a_flag_without_effect_is_named(concept_flags: list[str], flags: str, names: str) -> None:
    assert named(told(*concept_flags, *flags.split())) == set(names.split())


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--lr_warmup_steps 0 --max_train_steps 9",
        "--preset recommended --max_train_steps 9",
        "--pretrained_model_name_or_path starter --preset lean --num_class_images 9",
        "--with_prior_preservation --class_data_dir classes --num_class_images 9 --prior_loss_weight 0.5",
        "--save_sample_prompt x --stop_when_good --save_interval 5 --max_train_steps 16 --n_save_sample 1",
        "--method lora --lora_rank 8 --no_use_8bit_adam",
        "--method lora --preset recommended --max_train_steps 9",
        "--use_ema --ema_decay 0.99 --lr_scheduler linear --lr_warmup_steps 3 --max_train_steps 9",
    ],
)
def test_what_has_an_effect_or_was_not_asked_for_is_not_named(concept_flags: list[str], flags: str) -> None:
    assert told(*concept_flags, *flags.split()) == []


def test_flags_for_one_concept_beside_a_list_are_named(concept_flags: list[str], photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "concepts_list.json"
    path.write_text(json.dumps([{"instance_prompt": "a", "instance_data_dir": str(photos)}]))
    sentences = told(*concept_flags, "--concepts_list", str(path))
    assert named(sentences) == {"instance_data_dir", "instance_prompt", "class_prompt"}


def test_a_class_folder_in_a_list_is_named_without_prior_preservation(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "concepts_list.json"
    concept = {"instance_prompt": "a", "class_prompt": "b", "instance_data_dir": str(photos), "class_data_dir": "cls"}
    path.write_text(json.dumps([concept]))
    assert told("--concepts_list", str(path)) == ['"class_data_dir" has no effect: with_prior_preservation is off.']
    assert told("--concepts_list", str(path), "--with_prior_preservation") == []


def test_a_file_counts_for_what_is_no_default_in_it(concept_flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(TrainingConfig(ema_decay=0.9).to_json() | {"concepts": []}))
    assert named(told(*concept_flags, "--config", str(path))) == {"ema_decay"}
    assert named(without_effect(TrainingConfig(ema_decay=0.9, prior_loss_weight=2))) == {
        "ema_decay",
        "prior_loss_weight",
    }


@pytest.mark.parametrize("recipe", [["--preset", "minimum"], ["--pretrained_model_name_or_path", "starter"]])
def test_epochs_that_were_asked_for_replace_a_recipes_steps(
    concept_flags: list[str], recipe: list[str], tmp_path: Path
) -> None:
    def steps_of(*flags: str) -> tuple[int | None, int]:
        arguments = vars(build_parser().parse_args(["train", *concept_flags, *recipe, *flags]))
        arguments.pop("run_command")
        config, _ = asked_training(arguments)
        return config.max_train_steps, config.num_train_epochs

    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"max_train_steps": 30}))
    assert steps_of()[0] in (600, 800)
    assert steps_of("--num_train_epochs", "3") == (None, 3)
    assert steps_of("--num_train_epochs", "3", "--max_train_steps", "9") == (9, 3)
    assert steps_of("--config", str(file)) == (30, 1)
    assert steps_of("--config", str(file), "--num_train_epochs", "3") == (None, 3)


def test_the_command_says_it_before_the_start_and_the_log_keeps_it(
    concept_flags: list[str], tiny_base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path", str(tiny_base_folder),
        *concept_flags, "--resolution=32", "--output_dir", str(run), "--ema_decay=0.9", "--num_train_epochs=2",
        "--train_batch_size=1", "--lr_scheduler=linear", "--lr_warmup_steps=6", "--preset=full_precision",
        "--no_with_prior_preservation", "--no_train_text_encoder", "--save_sample_prompt=",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"The model is in {run / '6'}" in done.stdout, "two epochs of three photos, not the preset's 800 steps"
    log = RunFolder(run).log_path.read_text("utf-8")
    for text in (done.stdout + done.stderr, log):
        assert '"ema_decay" has no effect: use_ema is off.' in text
        assert '"lr_warmup_steps" is too long' in text
    output = done.stdout + done.stderr
    assert output.index("ema_decay") < output.index("Training")
