"""Before a run begins, every route tells of a rate of the other method, and of memory that only a LoRA would fit."""

import re
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.recipes import DEFAULTS, rate_warning
from dreambooth.config.training import MethodName, TrainingConfig
from dreambooth.device.hardware import GIB, Device
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.offers import memory_notice
from dreambooth.forecast.shape import SD15_SHAPE
from dreambooth.models.base import read_card
from dreambooth.records.workspace import RunFolder
from dreambooth.runs import start_notices


@pytest.mark.parametrize(
    ("method", "rate", "base", "words"),
    [
        ("lora", 1e-6, "", "a LoRA of this base usually has 2e-05 to 0.001: it will learn very little. It may be a "
         "rate for a full fine-tuning."),
        ("full", 1e-4, "", "a full fine-tuning of this base usually has 1e-07 to 2e-05: the model may break. It may be "
         "a rate for a LoRA."),
        ("lora", 1e-4, "", ""),
        ("full", 5e-6, "", ""),
        # By the card: its own rates are far from those that are usual elsewhere.
        ("full", 4e-4, "starter", ""),
        ("lora", 2e-3, "starter", ""),
        ("lora", 1e-4, "starter", "a LoRA of this base usually has 0.0003 to 0.03"),
        ("full", 1e-6, "starter", "it will learn very little"),
    ],
)  # fmt: skip
def test_a_rate_is_judged_by_the_method_and_the_bases_card(
    method: MethodName, rate: float, base: str, words: str
) -> None:
    recipes = read_card(base).recipes if base else {}
    warning = rate_warning(TrainingConfig(method=method, learning_rate=rate), recipes)
    assert words in warning
    assert bool(warning) == bool(words)


def test_no_default_is_a_rate_of_the_other_method() -> None:
    for (_, method), values in DEFAULTS.items():
        assert rate_warning(TrainingConfig(method=method, **values), {}) == ""


@pytest.fixture
def flags(tiny_base_folder: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the flags of a short run with a rate for LoRAs, on a processor with little memory."""
    memory = Device("cpu", "A small machine", GIB, GIB)
    monkeypatch.setattr(start_notices, "driver_device", lambda: memory)
    return [
        "--pretrained_model_name_or_path", str(tiny_base_folder), "--instance_data_dir", str(photos),
        "--instance_prompt", "photo of zwx dog", "--resolution", "32", "--learning_rate", "1e-4", "--num_crop_variants",
        "1", "--train_batch_size", "1", "--max_train_steps", "1", "--gauge_interval", "0",
    ]  # fmt: skip


RATE = '"learning_rate" is 0.0001, and a full fine-tuning of this base usually has 1e-07 to 2e-05: the model may break.'


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_tells_before_its_first_step(
    flags: list[str], method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    assert main(["train", *flags, "--method", method, "--output_dir", str(run.path)]) == 0
    log, shown = run.log_path.read_text("utf-8"), capsys.readouterr()
    for told in (log, shown.out + shown.err):
        assert told.count(RATE) == (method == "full")
    if method == "full":
        assert log.index(RATE) < log.index("step 1")


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_trial_tells_before_it_begins(flags: list[str], method: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", *flags, "--method", method]) == 0
    assert capsys.readouterr().err.count(RATE) == (method == "full")


def test_a_run_that_does_not_fit_names_the_lora_that_does(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan is told of any base; here as if the small one were SD 1.5, on a card with 6 GiB."""
    card = Device("cuda", "A small card", 6 * GIB, 6 * GIB)
    monkeypatch.setattr(start_notices, "driver_device", lambda: card)
    monkeypatch.setattr(start_notices, "read_shape", lambda *names: SD15_SHAPE)
    monkeypatch.setattr("dreambooth.forecast.memory.precisions", lambda device: ("no", "fp16"))
    told = re.compile(
        r"The run needs about 1\d\.\d GiB of memory, and A small card has 6\.0 GiB free\. "
        r"A LoRA needs about 1\.8 GiB: --method lora --mixed_precision fp16\."
    )
    assert main(["preflight", *flags]) == 0
    assert told.search(capsys.readouterr().err)
    run = RunFolder(tmp_path / "run")
    assert main(["train", *flags, "--output_dir", str(run.path)]) == 0
    assert told.search(run.log_path.read_text("utf-8"))
    assert main(["preflight", *flags, "--method", "lora"]) == 0
    assert "needs about" not in capsys.readouterr().err


def test_nothing_is_said_of_settings_that_fit_and_no_lora_is_named_that_does_not() -> None:
    config = TrainingConfig(train_batch_size=1, train_text_encoder=True)
    need_bytes = memory_need(config, SD15_SHAPE, "cpu").peak_bytes
    assert memory_notice(config, SD15_SHAPE, Device("cpu", "A machine", 2 * need_bytes, 2 * need_bytes)) == ""
    notice = memory_notice(config, SD15_SHAPE, Device("cpu", "A machine", GIB, GIB))
    assert notice.endswith("A machine has 1.0 GiB free.")
    lora = TrainingConfig(method="lora", train_batch_size=1)
    assert memory_notice(lora, SD15_SHAPE, Device("cpu", "A machine", GIB, GIB)).endswith("1.0 GiB free.")
