"""Help that starts with what matters, and mistakes on the command line in one line each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.commands.cli import build_parser, main
from dreambooth.config.fields import GROUP_TITLES, describe
from dreambooth.config.training import TrainingConfig

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = {
    "train --mthod lora": "There is no flag --mthod (did you mean --method?).",
    "train --learning-rate 1 --xyz": "no flag --learning-rate (did you mean --learning_rate?), and no flag --xyz.",
    "train photos/dog": '"photos/dog" is one word too many.',
    "train --resolution big": '--resolution is "big": it must be a whole number.',
    "train --learning_rate 1e": '--learning_rate is "1e": it must be a number.',
    "train --method lorra": '--method is "lorra": did you mean "lora"?',
    "train --preset fast": '--preset is "fast": choose minimum, ',
    "train --lora_rank": "--lora_rank needs a value.",
    "trian": 'COMMAND is "trian": did you mean "train"?',
    # A required flag is missing because it is mistyped: the mistake is named, not what comes of it.
    "generate --modle RUN --output_dir pictures": "There is no flag --modle (did you mean --model?).",
    "generate": "What is missing: --model, --output_dir.",
    "convert RUN out.ckpt --as lor": '--as is "lor": did you mean "lora"?',
    "clean --yess": "There is no flag --yess (did you mean --yes?).",
    "starter build --minuts 3": "There is no flag --minuts (did you mean --minutes?).",
}


@pytest.mark.parametrize(("line", "answer"), MISTAKES.items())
def test_a_mistyped_flag_or_value_is_answered_in_one_line(
    line: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert answer in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (
            ["-m", "dreambooth", "train", "--max_train_step", "5", "--instance_prmpt", "x"],
            "(did you mean --instance_prompt?)",
        ),
        (["app.py", "--prot", "8000"], "There is no flag --prot (did you mean --port?)."),
        (["app.py", "--port", "http"], '--port is "http": it must be a whole number.'),
    ],
)
def test_both_programs_answer_so_in_a_shell(command: list[str], answer: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert answer in done.stderr
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


def test_the_help_of_train_begins_with_the_ten_flags_of_a_first_training(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert text.splitlines()[0] == "usage: python -m dreambooth train [FLAGS]"
    parts = re.split(r"^(\S.*):\n", text, flags=re.MULTILINE)
    groups = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert list(groups) == ["options", "Main settings", *GROUP_TITLES.values(), "Upload"]
    flags = {title: re.findall(r"^  --(\w+)", rows, re.MULTILINE) for title, rows in groups.items()}
    assert flags["Main settings"] == [
        "instance_data_dir", "instance_prompt", "class_prompt", "pretrained_model_name_or_path", "method", "preset",
        "max_train_steps", "save_sample_prompt", "output_dir", "resume_from_checkpoint",
    ]  # fmt: skip
    shown = [flag for names in flags.values() for flag in names]
    assert len(shown) == len(set(shown)) > 80
    assert {info.name for info in describe(TrainingConfig)} <= set(shown)


def test_every_command_has_a_usage_of_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    commands = next(action for action in build_parser()._actions if action.choices).choices
    assert commands is not None
    for name in commands:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        usage, blank, *_ = capsys.readouterr().out.splitlines()
        assert usage.startswith(f"usage: python -m dreambooth {name}")
        assert (blank, len(usage) < 120) == ("", True)


def test_what_looks_like_a_flag_and_is_a_value_stays_one() -> None:
    parse = build_parser().parse_args
    flags = ["generate", "--model", "m", "--output_dir", "o", "--prompt", "--a prompt of two words", "--unet_strength"]
    assert parse([*flags, "-0.5"]).prompt == "--a prompt of two words"
    assert parse(["train", "--max_train_s", "5"]).max_train_steps == 5, "a shortened flag is one"
    assert parse(["train", "--max_train_steps=7"]).max_train_steps == 7
    assert parse(["convert", "--", "--run", "--out"]).model_dir == "--run"
    assert parse(["score", "RUN", "--probe", "3"]).probes == 3
