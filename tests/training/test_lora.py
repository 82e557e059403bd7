"""LoRA as a method of training: factors beside a base that stays what it was, and their file as a saved step."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.training import Precision, TrainingConfig
from dreambooth.device.precision import dtype_of
from dreambooth.errors import BaseModelError, ConfigError
from dreambooth.events import StepLoss
from dreambooth.formats.lora_keys import DOWN, UP
from dreambooth.models.adapter import Adapter, fitted
from dreambooth.models.base import load_base
from dreambooth.models.fingerprint import weights_fingerprint
from dreambooth.models.lora_file import read_lora
from dreambooth.models.manager import ModelManager
from dreambooth.models.saved_step import ModelSource, load, resident
from dreambooth.pictures.generation import generate_images
from dreambooth.training.method import parameters_of
from dreambooth.training.trainer import Trainer
from tests.harness.trained import Run

Make = Callable[..., Run]
BOTH = {"method": "lora", "train_text_encoder": True}


def factors_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return the factors by their names in the file, as they are now."""
    named = {name: one for part in trainer._learner.weights.values() for name, one in part.items()}
    return {name: one.detach().clone() for name, one in named.items()}


@pytest.mark.parametrize("targets", ["attention", "linear", "all"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_factor_moves_and_the_base_does_not(make: Make, targets: str, checkpointing: bool) -> None:
    run = make(**BOTH, lora_targets=targets, max_train_steps=3, gradient_checkpointing=checkpointing)
    trainer = Trainer(run.config, run.materials, run.context)
    before, base = factors_of(trainer), run.materials.base
    fingerprint = weights_fingerprint(base.unet, *base.text_encoders(), base.vae)
    assert all(not one.any() for name, one in before.items() if name.endswith(UP))
    trainer.run()
    after = factors_of(trainer)
    # down moves from the second step on: until then up is zero, and with it down's gradient.
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert weights_fingerprint(base.unet, *base.text_encoders(), base.vae) == fingerprint
    num_unet = {"attention": 128, "linear": 192, "all": 278}[targets]
    num_text = {"attention": 8, "linear": 12, "all": 12}[targets]
    assert len(after) == 2 * (num_unet + num_text)


def test_only_the_settings_parts_learn(make: Make) -> None:
    run = make(method="lora")
    trainer = run.train_anew()
    assert set(trainer._learner.weights) == {"unet"}
    assert not any(name.startswith("lora_te") for name in factors_of(trainer))


def test_checkpointing_and_accumulation_change_no_numbers(make: Make) -> None:
    plain = make(**BOTH, max_train_steps=3)
    plain.train()
    checkpointed = make(**BOTH, max_train_steps=3, gradient_checkpointing=True)
    checkpointed.train()
    assert checkpointed.losses == plain.losses


@pytest.mark.reliability
def test_a_compiled_unet_learns_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as for any backend; the one that writes C++ takes minutes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = make(**BOTH, max_train_steps=3), make(**BOTH, max_train_steps=3, compile_unet=True)
    plain.train()
    compiled.train()
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-3)


@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_base_is_in_half_precision_and_the_factors_are_not(make: Make, precision: Precision) -> None:
    full, half = make(**BOTH, max_train_steps=1), make(**BOTH, max_train_steps=1, mixed_precision=precision)
    full.train()
    trainer = half.train_anew()
    base = half.materials.base
    assert {one.dtype for one in base.unet.parameters()} == {dtype_of(precision)}
    assert {one.dtype for one in parameters_of(trainer._learner.weights)} == {torch.float32}
    assert half.losses[0] == pytest.approx(full.losses[0], rel=0.05)


def test_with_its_hooks_off_the_model_is_the_base_bit_for_bit(make: Make, tiny_base_folder: Path) -> None:
    run = make(**BOTH, max_train_steps=3, lora_targets="all")
    run.train()
    plain = load_base(str(tiny_base_folder))
    request = _request()
    (wanted,) = generate_images(plain, request)
    base = load_base(str(tiny_base_folder))
    factors = read_lora(_file(run, 3)).factors
    adapter = Adapter(base, fitted(base, factors).modules)
    (with_lora,) = generate_images(base, request)
    assert with_lora.image.tobytes() != wanted.image.tobytes()
    adapter.detach()
    (without,) = generate_images(base, request)
    assert torch.equal(without.latents, wanted.latents)


def _request() -> Any:
    from dreambooth.config.generation import GenerationConfig

    return GenerationConfig(prompt="photo of zwx dog", num_inference_steps=2, num_images_per_prompt=1, seed=1)


def _file(run: Run, step: int) -> Path:
    (file,) = run.folder.step_folder(step).glob("*.safetensors")
    return file


def test_a_saved_step_is_a_file_with_its_card_settings_and_samples(make: Make, tiny_base_folder: Path) -> None:
    run = make(**BOTH, save_interval=2, max_train_steps=3, save_sample_prompt="photo of zwx dog", n_save_sample=1)
    run.train()
    assert run.folder.steps() == [2, 3]
    folder = run.folder.step_folder(3)
    assert {entry.name for entry in folder.iterdir()} == {"args.json", "card.json", "run-3.safetensors", "samples"}
    assert TrainingConfig.from_json(json.loads((folder / "args.json").read_text())) == run.config
    card = json.loads((folder / "card.json").read_text())["lora"]
    assert card["base"] == str(tiny_base_folder)
    assert card["family"] == "sd1"
    assert card["fingerprint"] == load_base(str(tiny_base_folder)).fingerprint


def test_the_file_holds_the_factors_that_were_trained_and_is_made_of_the_average(make: Make) -> None:
    run = make(**BOTH, max_train_steps=3, save_precision="fp32")
    wanted = factors_of(run.train_anew())
    found = read_lora(_file(run, 3))
    for name, one in found.factors.items():
        assert torch.equal(one.down, wanted[name + DOWN])
        assert torch.equal(one.up, wanted[name + UP])
    assert found.metadata["ss_output_name"] == "run-3"
    averaged = make(**BOTH, max_train_steps=3, save_precision="fp32", use_ema=True, ema_decay=0.9)
    trainer = averaged.train_anew()
    (shadow, *_) = trainer._learner.ema.shadow_params
    name = next(iter(trainer._learner.weights["unet"]))
    assert torch.equal(read_lora(_file(averaged, 3)).factors[name.removesuffix(DOWN)].down, shadow)


def test_merged_is_what_the_hooks_compute(make: Make) -> None:
    run = make(**BOTH, max_train_steps=3, lora_targets="all", save_precision="fp32")
    run.train()
    source = ModelSource(str(run.folder.step_folder(3)))
    merged = load(source)
    (wanted,) = generate_images(merged, _request())
    manager = ModelManager("cpu")
    with manager.lease("generation", wait=False):
        (found,) = generate_images(resident(manager, source), _request())
    assert (found.latents - wanted.latents).abs().max() < 1e-4 * wanted.latents.abs().max()


def test_samples_of_a_step_are_what_generation_makes_of_it(make: Make) -> None:
    from PIL import Image

    run = make(**BOTH, max_train_steps=2, save_sample_prompt="photo of zwx dog", n_save_sample=1, save_precision="fp32")
    run.train()
    folder = run.folder.step_folder(2)
    sample = Image.open(folder / "samples" / "0.png")
    manager = ModelManager("cpu")
    request = dataclasses.replace(
        _request(), seed=run.config.seed, num_inference_steps=run.config.save_infer_steps,
        guidance_scale=run.config.save_guidance_scale,
    )  # fmt: skip
    with manager.lease("generation", wait=False):
        (made,) = generate_images(resident(manager, ModelSource(str(folder))), request)
    assert made.image.tobytes() == sample.convert("RGB").tobytes()


def test_another_strength_or_step_loads_no_model_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from dreambooth.models import saved_step
    from dreambooth.models.strength import Strength

    run = make(**BOTH, save_interval=1, max_train_steps=2)
    run.train()
    loads = []
    original = saved_step.load_base

    def counted(*names: str, **options: Any) -> Any:
        loads.append(names)
        return original(*names, **options)

    monkeypatch.setattr(saved_step, "load_base", counted)
    manager = ModelManager("cpu")
    pictures = []
    whole = Strength()
    for step, strength in ((2, whole), (2, Strength(0.5, 1)), (1, whole), (2, Strength(0, 0)), (2, whole)):
        source = ModelSource(str(run.folder.step_folder(step)), strength)
        with manager.lease("generation", wait=False):
            (made,) = generate_images(resident(manager, source), _request())
        pictures.append(made.latents)
    assert len(loads) == 1
    assert torch.equal(pictures[0], pictures[4])
    assert len({str(one.sum().item()) for one in pictures}) == 4


def test_a_changed_or_missing_base_is_one_sentence_that_names_the_flag(
    make: Make, tiny_base_folder: Path, tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_base_folder, base)
    run = make(method="lora", pretrained_model_name_or_path=str(base), max_train_steps=1)
    run.train()
    source = ModelSource(str(run.folder.step_folder(1)))
    assert load(source).fingerprint
    base.rename(tmp_path / "moved")
    with pytest.raises(BaseModelError, match="--base"):
        load(source)
    assert load(dataclasses.replace(source, base=str(tmp_path / "moved"))).unet
    other = load_base(str(tiny_base_folder))
    with torch.no_grad():
        next(other.unet.parameters()).add_(1)
    from dreambooth.models.saving import write_model

    write_model(base, other, torch.float32)
    with pytest.raises(BaseModelError, match="Its weights have changed"):
        load(source)


@pytest.mark.parametrize(
    "changes",
    [
        {"update_in_backward": True, "max_grad_norm": 0.0}, {"shard_weights": True},
        {"weight_precision": "bf16", "update_in_backward": True, "mixed_precision": "bf16", "max_grad_norm": 0.0},
    ],
    ids=["updates in backward", "sharding", "bf16 weights"],
)  # fmt: skip
def test_what_saves_memory_that_a_lora_does_not_take_is_refused(make: Make, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="method is lora"):
        make(method="lora", **changes)


def test_a_lora_as_base_is_merged_first_and_said(make: Make, photos: Path, tmp_path: Path) -> None:
    from dreambooth.commands.cli import main

    first = make(**BOTH, max_train_steps=2, save_precision="fp32")
    first.train()
    step = first.folder.step_folder(2)
    # As a run on the disk: its folder is a run's by its settings.
    (first.folder.records / "config.json").write_text(json.dumps(first.config.to_json()))
    words = [
        "--instance_data_dir",
        str(photos),
        "--instance_prompt",
        "photo of zwx cup",
        "--class_prompt",
        "photo of cup",
    ]
    small = ["--resolution", "32", "--max_train_steps", "1", "--train_batch_size", "1", "--seed", "3"]
    out = tmp_path / "second"
    asked = [*words, *small, "--pretrained_model_name_or_path", str(step), "--output_dir", str(out)]
    assert main(["train", *asked, "--learning_rate", "1e-9", "--save_precision", "fp32"]) == 0
    assert "It is a LoRA: it is merged into its own base first." in (out / ".run" / "log.txt").read_text("utf-8")
    taught, merged = load_base(str(out / "1")).unet.state_dict(), load(ModelSource(str(step))).unet.state_dict()
    assert all(torch.allclose(taught[name], merged[name], atol=1e-6) for name in merged)


def test_a_training_goes_on_from_a_saved_step_at_a_higher_rank(make: Make) -> None:
    first = make(**BOTH, max_train_steps=3, lora_rank=4, save_precision="fp32")
    first.train()
    file = _file(first, 3)
    changes = {"initial_lora": str(file.parent), "lora_rank": 6, "save_precision": "fp32"}
    second = make(**BOTH, **changes, max_train_steps=1, learning_rate=1e-9, text_encoder_lr=1e-9)
    second.train()
    found, begun = read_lora(_file(second, 1)).factors, read_lora(file).factors
    assert found.keys() == begun.keys()
    assert all(torch.allclose(found[name].product(), begun[name].product(), atol=1e-6) for name in found)
    assert {len(one.down) for one in found.values()} == {6}


def test_a_resumed_run_needs_no_file_that_it_began_with(make: Make, tmp_path: Path) -> None:
    first = make(**BOTH, max_train_steps=1, lora_rank=4)
    first.train()
    file = _file(first, 1).rename(tmp_path / "first.safetensors")
    second = make(**BOTH, initial_lora=str(file), lora_rank=4, max_train_steps=3, checkpointing_steps=1)
    wanted = factors_of(second.train_anew())
    file.unlink()
    second.context = dataclasses.replace(second.context, is_resumed=True)
    found = factors_of(second.train_anew(second.newest_state()))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_masks_weigh_a_loras_loss_and_a_resumed_run_finds_the_same(make: Make) -> None:
    changes = {**BOTH, "max_train_steps": 3}
    without = factors_of(make(**changes).train_anew())
    wanted = factors_of(make(**changes, background_weight=0.2).train_anew())
    assert not all(torch.equal(without[name], wanted[name]) for name in wanted)
    run = make(**changes, background_weight=0.2)
    run.press = lambda event: run.controls.stop.set() if isinstance(event, StepLoss) else None
    run.train_anew()
    assert len(run.losses) == 1
    run.controls.stop.clear()
    run.press = lambda event: None
    found = factors_of(run.train_anew(run.newest_state()))
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"lora_rank": 2}, "must be at least 4"), ({"train_text_encoder": False}, "--train_text_encoder")],
)
def test_a_lora_that_a_training_cannot_go_on_from_is_refused(
    make: Make, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    first = make(**BOTH, max_train_steps=1, lora_rank=4)
    first.train()
    file = _file(first, 1).rename(tmp_path / "first.safetensors")
    with pytest.raises(ConfigError, match=told):
        make(**(BOTH | {"initial_lora": str(file), "lora_rank": 4} | changes)).train()
