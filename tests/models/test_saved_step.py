"""Saved steps are read in one place: one full model is there at a time, and nothing that was deleted or replaced."""

import dataclasses
import functools
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.errors import BaseModelError
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, resident
from dreambooth.pictures.painter import compare, generate
from dreambooth.pictures.settings_text import text_of_picture
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.runs.jobs import Jobs
from dreambooth.runs.run import start_records
from dreambooth.scoring import bleed
from dreambooth.scoring import run as score
from tests.harness.jobs_at_work import finished
from tests.harness.tiny import tiny_base
from tests.harness.trained import quick_settings


class Unets:
    """The UNets that are alive, and the most that ever were when one was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from diffusers import UNet2DConditionModel

        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most, self.made = 0, 0
        real = UNet2DConditionModel.__init__

        @functools.wraps(real)
        def counted(unet: Any, *given: Any, **named: Any) -> None:
            real(unet, *given, **named)
            self._alive.add(unet)
            self.made += 1
            self.most = max(self.most, self.alive)

        monkeypatch.setattr(UNet2DConditionModel, "__init__", counted)

    @property
    def alive(self) -> int:
        """Return how many there are."""
        return len(self._alive)


@pytest.fixture
def unets(monkeypatch: pytest.MonkeyPatch) -> Unets:
    return Unets(monkeypatch)


@pytest.fixture
def jobs(tmp_path: Path, tiny_base_folder: Path) -> Iterator[Jobs]:
    workspace = Workspace(tmp_path / "data")
    shutil.copytree(tiny_base_folder, workspace.models_dir / "tiny")
    jobs = Jobs(workspace, ModelManager("cpu"))
    yield jobs
    jobs.close()


@pytest.fixture
def config(jobs: Jobs, photos: Path) -> TrainingConfig:
    return quick_settings(Path("tiny"), photos, save_interval=1, save_infer_steps=1, seed=3, num_crop_variants=1)


def test_one_full_model_is_there_whatever_is_asked_of_the_app(
    jobs: Jobs, config: TrainingConfig, unets: Unets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train, Generate, Score, what else changed, pictures of other steps, and Train again."""
    monkeypatch.setattr(score, "NUM_PROBES", 1)
    monkeypatch.setattr(bleed, "NUM_PICTURES", 1)
    name = jobs.start(config, "dog")
    assert finished(jobs, name).status == "done"
    steps = [str(jobs.view(name).path / str(step)) for step in (1, 2)]
    request = GenerationConfig(prompt="photo of zwx dog", num_images_per_prompt=1, num_inference_steps=1, seed=5)
    counts = {}
    assert len(list(jobs.generate(steps[0], request))) == 1
    counts["generate"] = unets.alive
    assert [one.step for one in jobs.score(name, download=False).steps] == [0, 1, 2]
    counts["score"] = unets.alive
    assert jobs.bleed(name, download=False)
    counts["bleed"] = unets.alive
    order = jobs.order_comparison(name, [0, 1, 2], request)
    assert len(list(jobs.pictures.follow(order))) == 4
    counts["compare"] = unets.alive
    again = jobs.start(config, "again")
    assert finished(jobs, again).status == "done"
    assert counts == dict.fromkeys(counts, 1)
    assert unets.most == 1


def test_another_strength_leaves_one_full_model(jobs: Jobs, config: TrainingConfig, unets: Unets) -> None:
    """While the two are mixed both are in memory; before them goes what was there."""
    name = jobs.start(config, "dog")
    step = str(finished(jobs, name).path / "2")
    request = {"prompt": "photo of zwx dog", "num_images_per_prompt": 1, "num_inference_steps": 1, "seed": 5}
    for strength in (1.0, 0.5, 0.25):
        assert len(list(jobs.generate(step, GenerationConfig(**request, unet_strength=strength)))) == 1
        assert unets.alive == 1
    assert unets.most == 2


def test_what_is_there_is_not_read_again_and_what_was_replaced_is(tmp_path: Path, unets: Unets) -> None:
    manager = ModelManager("cpu")
    step = tiny_base(tmp_path / "dog" / "2", seed=2)
    source = ModelSource(str(step))
    unets.made = 0  # making the folder made one
    with manager.lease("generation", wait=False):
        before = resident(manager, source).unet.conv_in.weight.clone()
        (step / "samples").mkdir()
        (step / "samples" / "0.png").write_bytes(b"")
        resident(manager, source)
        assert unets.made == 1
        shutil.rmtree(step)
        with pytest.raises(BaseModelError, match='"dog/2" is not there'):
            resident(manager, source)
        tiny_base(step, seed=4)
        assert not before.equal(resident(manager, source).unet.conv_in.weight), "it has the same name, and is another"
        (step / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        with pytest.raises(BaseModelError):
            resident(manager, source)


def test_a_base_of_the_models_folder_that_was_deleted_is_not_served_from_memory(jobs: Jobs, tmp_path: Path) -> None:
    request = GenerationConfig(prompt="photo of dog", num_images_per_prompt=1, num_inference_steps=1, seed=5)
    assert len(list(jobs.generate("tiny", request))) == 1
    shutil.rmtree(tmp_path / "data" / "models" / "tiny")
    with pytest.raises(BaseModelError):
        list(jobs.generate("tiny", request))


def test_in_a_comparison_the_base_alone_has_no_strength(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "dog")
    config = TrainingConfig(
        pretrained_model_name_or_path=str(tiny_base_folder), concepts=(Concept("dog", str(photos)),)
    )
    start_records(config, run)
    (tiny_base(run.step_folder(2), seed=2) / "args.json").write_text(json.dumps(config.to_json()))
    whole = GenerationConfig(prompt="photo of dog", num_images_per_prompt=1, num_inference_steps=1, seed=5)
    weak = dataclasses.replace(whole, unet_strength=0, text_encoder_strength=0)
    of_base, of_step, _ = compare(run.path, weak, tmp_path / "made", steps=[0, 2])
    assert "strength" not in text_of_picture(of_base)
    assert "UNet strength: 0" in text_of_picture(of_step)
    (alone,) = generate(tiny_base_folder, whole, tmp_path / "alone")
    assert Image.open(of_base).tobytes() == Image.open(alone).tobytes()
