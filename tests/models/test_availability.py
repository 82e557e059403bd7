"""A base that cannot be had is refused before anything starts, in one sentence, on every route."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.training import SD15, TrainingConfig
from dreambooth.errors import BaseModelError
from dreambooth.models.availability import bytes_to_download
from dreambooth.models.manager import ModelManager
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from tests.harness.jobs_at_work import Stub
from tests.harness.local_hub import environment_of, local_hub

# What a first look at a Hub's model tells, without its weights; then a training from it.
FROM_THE_HUB = """
import json, sys
from dreambooth.commands.cli import main
from dreambooth.config.training import TrainingConfig
from dreambooth.models.availability import bytes_to_download
from dreambooth.models.base import known_layout
config = TrainingConfig(pretrained_model_name_or_path="somebody/tiny")
print(json.dumps([bytes_to_download(config, None), known_layout("somebody/tiny").family, "torch" in sys.modules]))
words = ["--instance_data_dir", sys.argv[1], "--instance_prompt", "photo of zwx dog", "--num_probe_images", "0"]
small = ["--resolution", "32", "--max_train_steps", "1", "--output_dir", sys.argv[2]]
codes = [main(["train", *words, *small, "--pretrained_model_name_or_path", name])
         for name in ("somebody/tnyi", "somebody/tiny")]
print(json.dumps([codes, bytes_to_download(config, None)]))
"""


def settings(base: str, photos: Path, **changes: object) -> TrainingConfig:
    concept = {"instance_data_dir": str(photos), "instance_prompt": "photo of zwx dog"}
    return TrainingConfig.from_json({"pretrained_model_name_or_path": base, "concepts": [concept], **changes})


def test_a_hubs_model_tells_its_family_and_size_before_it_is_downloaded(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    weights = sum(file.stat().st_size for file in tiny_base_folder.glob("*/*.safetensors"))
    with local_hub(tiny_base_folder) as hub:
        done = subprocess.run(
            [sys.executable, "-c", FROM_THE_HUB, str(photos), str(tmp_path / "run")], capture_output=True, text=True,
            env=environment_of(hub.address, tmp_path / "cache"), timeout=180,
        )  # fmt: skip
    first, *_, last = (line for line in done.stdout.splitlines() if line.startswith("["))
    assert json.loads(first) == [weights, "sd1", False], done.stderr
    assert json.loads(last) == [[1, 0], 0], done.stderr
    assert 'The Hub has no model "somebody/tnyi"' in done.stderr
    assert f'"somebody/tiny" is downloaded first: {weights / 1e6:.1f} MB.' in done.stdout
    assert "days on a CPU" not in done.stdout, "it is a small one"


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"pretrained_model_name_or_path": "/no/such folder"}, "There is no base model"),
        ({"pretrained_model_name_or_path": "somebody/tiny"}, "HF_HUB_OFFLINE prevents"),
        ({"pretrained_vae_name_or_path": "somebody/vae"}, 'The VAE "somebody/vae" cannot be loaded'),
        ({"tokenizer_name": "/no/tokenizer"}, 'There is no tokenizer "/no/tokenizer"'),
        ({"class_model_name_or_path": "x", "class_prompt": "photo of dog"}, 'There is no base model "x"'),
    ],
)
def test_nothing_is_queued_or_written_for_a_model_that_cannot_be_had(
    wrong: dict[str, str], told: str, tiny_base_folder: Path, photos: Path, own_home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    flags = {
        "pretrained_model_name_or_path": str(tiny_base_folder), "instance_data_dir": str(photos),
        "instance_prompt": "photo of zwx dog", "output_dir": str(tmp_path / "run"), "resolution": "32",
    } | wrong  # fmt: skip
    prior = ["--with_prior_preservation"] if "class_prompt" in wrong else []
    assert main(["train", *prior, *(part for name, value in flags.items() for part in (f"--{name}", value))]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    changes = {name: value for name, value in wrong.items() if name != "class_prompt"}
    config = settings(str(tiny_base_folder), photos, with_prior_preservation=bool(prior))
    concepts = [vars(config.concepts[0]) | ({"class_prompt": "photo of dog"} if prior else {})]
    jobs = Jobs(Workspace(own_home), ModelManager("cpu"), train=Stub())
    with pytest.raises(BaseModelError, match=told):
        jobs.start(TrainingConfig.from_json({**config.to_json(), "concepts": concepts, **changes}))
    assert jobs.active() is None
    assert Workspace(own_home).runs() == []
    jobs.close()


def test_a_run_whose_base_has_gone_is_not_queued_again(
    tiny_base_folder: Path, photos: Path, own_home: Path, tmp_path: Path
) -> None:
    base, stub = tmp_path / "base", Stub()
    shutil.copytree(tiny_base_folder, base)
    jobs = Jobs(Workspace(own_home), ModelManager("cpu"), train=stub)
    name = jobs.start(settings(str(base), photos))
    jobs.stop(name)
    while jobs.active():
        pass
    shutil.rmtree(base)
    with pytest.raises(BaseModelError, match="There is no base model"):
        jobs.resume(name)
    assert jobs.active() is None
    jobs.close()


def test_a_large_model_on_a_cpu_and_a_download_are_told(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreambooth.device.hardware import Device
    from dreambooth.forecast.offers import cpu_notice
    from dreambooth.runs.start_notices import download_notice

    cpu = Device("cpu", "a CPU", 10**10, 10**10)
    config = TrainingConfig(pretrained_model_name_or_path=SD15)
    assert "takes days on a CPU" in cpu_notice(Workspace(own_home), config, cpu)
    assert cpu_notice(Workspace(own_home), TrainingConfig(pretrained_model_name_or_path="starter"), cpu) == ""
    assert download_notice(config, 4 * 2**30) == f'"{SD15}" is downloaded first: 4.0 GB.'
    assert download_notice(config, 0) == ""
    assert bytes_to_download(TrainingConfig(pretrained_model_name_or_path="starter"), None) == 0
