"""The command line: flags as the seed script has them, words for mistakes, and a stop that saves."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth.commands.cli import build_parser, main
from dreambooth.commands.train import training_config
from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import ConfigError

SEED_FLAGS = """
    pretrained_model_name_or_path pretrained_vae_name_or_path revision tokenizer_name instance_data_dir class_data_dir
    instance_prompt class_prompt save_sample_prompt save_sample_negative_prompt n_save_sample save_guidance_scale
    save_infer_steps pad_tokens with_prior_preservation prior_loss_weight num_class_images output_dir seed resolution
    center_crop train_text_encoder train_batch_size sample_batch_size num_train_epochs max_train_steps
    gradient_accumulation_steps gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps use_8bit_adam
    adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token hub_model_id logging_dir
    log_interval save_interval save_min_steps mixed_precision not_cache_latents hflip local_rank concepts_list
    read_prompts_from_txts
"""


def config_of(*flags: str) -> TrainingConfig:
    arguments = vars(build_parser().parse_args(["train", *flags]))
    arguments.pop("run_command")
    return training_config(arguments)


@pytest.fixture
def concept_flags(photos: Path) -> list[str]:
    return [
        "--instance_data_dir",
        str(photos),
        "--instance_prompt",
        "photo of zwx dog",
        "--class_prompt",
        "photo of dog",
    ]


@pytest.mark.parametrize(
    "flags",
    [["--update_in_backward"], ["--weight_precision", "bf16"], ["--shard_weights"]],
    ids=lambda flags: flags[0],
)
def test_the_automatic_plan_goes_with_what_was_asked_for(concept_flags: list[str], flags: list[str]) -> None:
    starts = ["--preset", "auto", "--pretrained_model_name_or_path", "starter", *concept_flags, *flags]
    config = config_of(*starts)
    assert getattr(config, flags[0].removeprefix("--")) in (True, "bf16")
    with pytest.raises(ConfigError, match="resolution: is 36"):
        config_of(*starts, "--resolution", "36")
    with pytest.raises(ConfigError, match="seed"):
        config_of(*starts, "--seed", "-1")


def test_the_automatic_plan_of_a_lora_is_a_loras(concept_flags: list[str]) -> None:
    config = config_of("--preset", "auto", "--method", "lora", *concept_flags)
    assert (config.learning_rate, config.text_encoder_lr, config.max_grad_norm) == (1e-4, 5e-5, 1.0)
    whole = {info.name: info.default for info in describe(TrainingConfig) if info.method == "full"}
    assert {name: getattr(config, name) for name in whole} == whole


def test_every_flag_of_the_seed_script_is_there() -> None:
    train = next(a for a in build_parser()._actions if a.choices).choices["train"]  # type: ignore[index,union-attr]
    known = {option.lstrip("-") for action in train._actions for option in action.option_strings}
    assert [flag for flag in SEED_FLAGS.split() if flag not in known] == []


def test_an_absent_boolean_is_off_and_a_preset_turns_it_on(concept_flags: list[str]) -> None:
    assert not config_of(*concept_flags).train_text_encoder
    config = config_of(*concept_flags, "--preset", "minimum")
    assert config.train_text_encoder
    assert config.gradient_checkpointing
    assert config.save_sample_prompt == "photo of zwx dog"


BOOLEANS = [info.name for info in describe(TrainingConfig) if info.type is bool]


@pytest.mark.parametrize("name", BOOLEANS)
def test_what_a_card_or_preset_or_file_turns_on_is_turned_off_by_flag(
    concept_flags: list[str], tmp_path: Path, tiny_base_folder: Path, name: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base_folder, base)
    options = {"with_prior_preservation": ("teacher_prior", "keep_class_latents"), "train_text_encoder": ()}
    on = {name: True} | dict.fromkeys(options.get(name, ()), True)
    needs = {"teacher_prior": "with_prior_preservation", "keep_class_latents": "with_prior_preservation"}
    on |= {needs[name]: True} if name in needs else {}
    (base / "card.json").write_text(json.dumps({"native_px": 32, "recipe": on}))
    (tmp_path / "settings.json").write_text(json.dumps(on))
    common = [*concept_flags, "--save_sample_prompt", "x", "--max_grad_norm", "0", "--resolution", "64"]
    for recipe in (["--pretrained_model_name_or_path", str(base)], ["--config", str(tmp_path / "settings.json")]):
        assert getattr(config_of(*common, *recipe), name) is True
        off = config_of(*common, *recipe, f"--no_{name}")
        assert getattr(off, name) is False
        assert not any(getattr(off, option) for option in options.get(name, ())), "options go with their switch"
    assert getattr(config_of(*common, *recipe, f"--no_{name}", f"--{name}"), name) is True, "the last one counts"


def test_a_presets_switches_are_turned_off_by_flag_and_help_shows_how(
    concept_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    off = ["--no_train_text_encoder", "--no_use_8bit_adam", "--no_with_prior_preservation"]
    config = config_of(*concept_flags, "--preset", "recommended", *off)
    assert not any(getattr(config, flag.removeprefix("--no_")) for flag in off)
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--train_text_encoder, --no_train_text_encoder\n" in capsys.readouterr().out


def test_the_starters_card_counts_more_than_the_preset_and_less_than_a_flag(concept_flags: list[str]) -> None:
    starter = ["--pretrained_model_name_or_path", "starter", "--preset", "recommended"]
    assert config_of(*concept_flags, *starter).resolution == 64
    assert config_of(*concept_flags, *starter, "--resolution", "32").resolution == 32


def test_a_config_file_with_a_flag_over_it(concept_flags: list[str], photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config_of(*concept_flags, "--learning_rate", "3e-6", "--seed", "4").to_json()))
    config = config_of("--config", str(path), "--seed", "9")
    assert (config.learning_rate, config.seed) == (3e-6, 9)
    assert config.concepts[0].instance_data_dir == str(photos)


def test_several_concepts_from_a_file(photos: Path, tmp_path: Path) -> None:
    path = tmp_path / "concepts_list.json"
    path.write_text(json.dumps([{"instance_prompt": "a", "instance_data_dir": str(photos)}] * 2))
    assert len(config_of("--concepts_list", str(path)).concepts) == 2


def test_a_token_on_the_command_line_is_refused(concept_flags: list[str]) -> None:
    with pytest.raises(ConfigError, match="process list"):
        config_of(*concept_flags, "--hub_token", "hf_secret")


def test_mistakes_are_sentences_and_exit_with_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    wrong = ["train", "--instance_data_dir", str(tmp_path / "no"), "--instance_prompt", "x", "--resolution", "9"]
    assert main(wrong) == 1
    error = capsys.readouterr().err
    assert "resolution: is 9" in error
    assert "is not a folder" in error
    assert "Traceback" not in error
    assert main(["convert"]) == 1
    assert "MODEL_DIR: is missing" in capsys.readouterr().err
    assert main(["generate", "--model", "nowhere", "--prompt", "x", "--output_dir", str(tmp_path)]) == 1
    assert "no base model" in capsys.readouterr().err


def test_train_convert_generate_in_a_shell(
    concept_flags: list[str], tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--pretrained_model_name_or_path", str(tiny_base_folder), "--resolution", "32", "--max_train_steps", "2"]
    assert main(["train", *concept_flags, *flags, "--train_batch_size", "1", "--output_dir", str(run)]) == 0
    assert f"The model is in {run / '2'}" in capsys.readouterr().out
    assert main(["convert", "--model_path", str(run), "--checkpoint_path", str(tmp_path / "m.ckpt"), "--half"]) == 0
    assert (tmp_path / "m.ckpt").stat().st_size > 1_000_000
    pictures = tmp_path / "pictures"
    request = ["--prompt", "photo of zwx dog", "--num_images_per_prompt", "2", "--num_inference_steps", "2"]
    assert main(["generate", "--model", str(run), *request, "--output_dir", str(pictures)]) == 0
    assert len(list(pictures.glob("*.png"))) == 2


def test_an_interrupted_training_saves_and_says_so(
    concept_flags: list[str], tiny_base_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = [
        "--pretrained_model_name_or_path",
        str(tiny_base_folder),
        "--resolution",
        "32",
        "--max_train_steps",
        "9999",
    ]
    command = [sys.executable, "-m", "dreambooth", "train", *concept_flags, *flags, "--output_dir", str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    events = run / ".run" / "events.jsonl"
    end_s = time.monotonic() + 120
    while time.monotonic() < end_s and not (events.exists() and "StepLoss" in events.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "Stopping after the current step, which is saved" in error
    assert "Stopped and saved" in out + error
    assert json.loads((run / ".run" / "state.json").read_text())["status"] == "stopped"
    assert any(entry.name.isdecimal() for entry in run.iterdir())


@pytest.mark.parametrize("command", ["train", "generate", "convert", "doctor", "starter", "demo"])
def test_help_is_quick_to_ask_for(command: str) -> None:
    code = f"import sys; sys.argv = ['x', '{command}', '--help']\n" + (
        "from dreambooth.commands.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n"
        "    sys.exit(end.code or ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
