"""The loop against a plain PyTorch loop, and each of its switches."""

import dataclasses
import itertools
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.concepts import Concept
from dreambooth.config.training import TrainingConfig
from dreambooth.durable import remove_folder
from dreambooth.errors import TrainingError
from dreambooth.events import Event, ModelSaved, Notice, PhaseProgress, SamplesMade, StepLoss
from dreambooth.models.base import load_base
from dreambooth.training import objective
from dreambooth.training.updates import GatheredUpdates
from tests.harness.trained import Run, moved

Make = Callable[..., Run]


def plain_loop(run: Run, num_steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Train the same batches in ten lines of PyTorch, with diffusers' scheduler in place of our objective."""
    from diffusers import DDPMScheduler

    base, config = load_base(run.config.pretrained_model_name_or_path), run.config
    scheduler = DDPMScheduler.from_config(base.noise_scheduler_config)
    parameters = [*base.unet.parameters(), *(base.text_encoder.parameters() if config.train_text_encoder else ())]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay)
    losses = []
    for step in range(num_steps):
        batch = run.materials.batches.batch(step, 0)
        ids = base.tokenizer(list(batch.captions), padding="longest", return_tensors="pt").input_ids
        noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = base.unet(noisy, batch.timesteps, base.text_encoder(ids)[0]).sample
        instance, prior = (
            (prediction[part] - batch.noise[part]).square().mean()
            for part in (slice(batch.num_instance), slice(batch.num_instance, None))
        )
        loss = instance + config.prior_loss_weight * prior if config.with_prior_preservation else instance
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, base.unet.state_dict()


def test_class_pictures_have_a_guidance_scale_of_their_own(make: Make) -> None:
    run = make(with_prior_preservation=True, class_guidance_scale=1.5)
    (info,) = run.folder.path.parent.glob("data/class_images/*/info.json")
    assert json.loads(info.read_text())["guidance_scale"] == 1.5


@pytest.mark.parametrize("with_prior", [False, True])
def test_the_loop_is_a_plain_adamw_loop(make: Make, with_prior: bool) -> None:
    run = make(with_prior_preservation=with_prior, prior_loss_weight=0.7, train_text_encoder=True)
    expected_losses, expected_weights = plain_loop(run, 2)
    assert run.train() == 2
    assert run.losses == pytest.approx(expected_losses, rel=1e-4)
    for name, tensor in run.weights().items():
        torch.testing.assert_close(tensor, expected_weights[name], rtol=1e-3, atol=1e-5)


def test_the_weights_really_move_and_the_vae_does_not(make: Make) -> None:
    run = make(train_text_encoder=True)
    unet, text_encoder, vae = run.weights(), run.weights("text_encoder"), run.weights("vae")
    run.train()
    assert moved(unet, run.weights()) == len(unet)
    assert moved(text_encoder, run.weights("text_encoder")) > 30
    assert moved(vae, run.weights("vae")) == 0


def test_a_frozen_text_encoder_stays_as_it_was(make: Make) -> None:
    run = make()
    before = run.weights("text_encoder")
    run.train()
    assert moved(before, run.weights("text_encoder")) == 0


def test_a_stopped_text_encoder_stays_and_the_unet_goes_on(make: Make) -> None:
    short = make(train_text_encoder=True, max_train_steps=1)
    short.train()
    long = make(train_text_encoder=True, max_train_steps=3, text_encoder_stop_step=1)
    long.train()
    assert moved(short.weights("text_encoder"), long.weights("text_encoder")) == 0
    assert moved(short.weights(), long.weights()) > 600
    assert any("text encoder is no longer trained" in event.text for event in long.events if isinstance(event, Notice))


def test_the_text_encoders_own_rate(make: Make) -> None:
    run = make(train_text_encoder=True, text_encoder_lr=1e-9, max_train_steps=1)
    before = run.weights("text_encoder")
    run.train()
    change = max((before[name] - after).abs().max().item() for name, after in run.weights("text_encoder").items())
    assert 0 <= change < 2e-9 + 1e-7


def test_accumulated_micro_batches_are_one_larger_batch(make: Make) -> None:
    options = {"with_prior_preservation": True, "max_train_steps": 2, "max_grad_norm": 0.0}
    whole = make(train_batch_size=4, **options)
    pieces = make(train_batch_size=1, gradient_accumulation_steps=4, **options)
    assert whole.train() == pieces.train() == 2, "a step is an update"
    assert pieces.losses == pytest.approx(whole.losses, rel=1e-5)
    for name, tensor in pieces.weights().items():
        torch.testing.assert_close(tensor, whole.weights()[name], rtol=1e-3, atol=2e-5)


def test_v_prediction_trains_on_v(tmp_path: Path, make: Make) -> None:
    from tests.harness.tiny import tiny_base

    run = make(
        pretrained_model_name_or_path=str(tiny_base(tmp_path / "v", prediction_type="v_prediction")), max_train_steps=1
    )
    batch, base = run.materials.batches.batch(0, 0), load_base(str(tmp_path / "v"))
    level = run.materials.alpha_bar[batch.timesteps].view(-1, 1, 1, 1)
    noisy = level.sqrt() * batch.latents + (1 - level).sqrt() * batch.noise
    velocity = level.sqrt() * batch.noise - (1 - level).sqrt() * batch.latents
    states = run.materials.conditions(batch.captions, batch.sizes).states
    prediction = base.unet(noisy, batch.timesteps, states).sample
    run.train()
    assert run.losses[0] == pytest.approx((prediction - velocity).square().mean().item(), rel=1e-4)


def test_the_schedule_counts_updates(make: Make) -> None:
    run = make(
        lr_scheduler="linear", lr_warmup_steps=0, learning_rate=1e-3, max_train_steps=4, gradient_accumulation_steps=2
    )
    run.train()
    rates = [event.learning_rate for event in run.events if isinstance(event, StepLoss)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_clipping_bounds_the_update() -> None:
    for max_norm, expected in ((0.0, [3.0, 4.0]), (1.0, [0.6, 0.8])):
        parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
        optimizer = torch.optim.SGD(parameters, lr=1.0)
        config = TrainingConfig(max_grad_norm=max_norm)
        updates = GatheredUpdates(config, optimizer, torch.amp.GradScaler("cpu", enabled=False), 1)
        total = 3 * parameters[0].sum() + 4 * parameters[1].sum()
        updates.backward(total, 0)
        assert bool(updates.apply(total.detach()))
        assert [-parameter.item() for parameter in parameters] == pytest.approx(expected, abs=1e-5)


def test_eight_bit_adamw_steps(make: Make) -> None:
    plain, eight = make(), make(use_8bit_adam=True)
    before = eight.weights()
    plain.train()
    eight.train()
    assert moved(before, eight.weights()) > 600
    assert eight.losses[0] == pytest.approx(plain.losses[0])
    difference = max((eight.weights()[name] - tensor).abs().max().item() for name, tensor in plain.weights().items())
    assert difference < 4e-3, "two steps of rate 1e-3 differ by at most two steps each way"


@pytest.mark.usefixtures("plain_kernels")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_fp32_masters(make: Make, precision: str) -> None:
    full, half = make(max_train_steps=1), make(max_train_steps=1, mixed_precision=precision)
    full.train()
    half.train()
    assert all(tensor.dtype == torch.float32 for tensor in half.weights().values())
    assert half.losses[0] == pytest.approx(full.losses[0], rel=0.05)
    assert half.losses[0] != full.losses[0]


def test_checkpointing_changes_memory_not_numbers(make: Make) -> None:
    plain, checkpointed = make(train_text_encoder=True), make(train_text_encoder=True, gradient_checkpointing=True)
    plain.train()
    checkpointed.train()
    assert checkpointed.losses == pytest.approx(plain.losses, rel=1e-6)


def test_the_moving_average_is_what_is_saved(make: Make) -> None:
    run = make(use_ema=True, ema_decay=0.9, save_precision="fp32", max_train_steps=3)
    run.train()
    saved = load_base(str(run.folder.step_folder(3))).unet.state_dict()
    assert moved(saved, run.weights()) > 600


def test_without_caching_every_visit_has_its_own_crop(make: Make) -> None:
    run = make(not_cache_latents=True, max_train_steps=2)
    first, again = run.materials.batches.batch(0, 0), run.materials.batches.batch(0, 0)
    assert torch.equal(first.latents, again.latents)
    assert run.train() == 2


def test_step_folders_hold_a_model_its_settings_and_samples(make: Make, tiny_base_folder: Path) -> None:
    run = make(save_interval=2, max_train_steps=5, save_sample_prompt="photo of zwx dog", n_save_sample=2)
    run.train()
    assert run.folder.steps() == [2, 4, 5]
    assert {step: len(files) for step, files in run.folder.samples().items()} == {0: 2, 2: 2, 4: 2, 5: 2}
    assert not (run.folder.path / "0" / "model_index.json").exists()
    args = json.loads((run.folder.step_folder(4) / "args.json").read_text())
    assert TrainingConfig.from_json(args) == run.config
    contents = {entry.name for entry in run.folder.step_folder(4).iterdir()}
    assert contents == {
        "args.json", "card.json", "model_index.json", "samples", "scheduler", "text_encoder", "tokenizer", "unet", "vae"
    }  # fmt: skip
    hidden = {entry.name for entry in run.folder.path.iterdir() if entry.name.startswith(".")}
    assert hidden <= {run.folder.records.name}, "nothing left half-done"
    saved = load_base(str(run.folder.step_folder(5)))
    for name, tensor in run.weights().items():
        assert torch.equal(saved.unet.state_dict()[name], tensor.half().float()), name


def test_samples_disturb_nothing(make: Make) -> None:
    quiet, talkative = make(max_train_steps=3), make(max_train_steps=3, save_sample_prompt="a dog", save_interval=1)
    quiet.train()
    talkative.train()
    assert talkative.losses == quiet.losses


def test_buttons_save_sample_and_stop(make: Make) -> None:
    run = make(max_train_steps=50, save_sample_prompt="a dog", n_save_sample=1)
    buttons = {1: run.controls.sample_now, 2: run.controls.save_now, 3: run.controls.stop}

    def press(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done in buttons:
            buttons.pop(event.done).set()

    run.press = press
    assert run.train() == 3
    assert run.folder.steps() == [2, 3]
    assert sorted(run.folder.samples()) == [0, 1, 2]


def test_pictures_asked_for_before_a_save_of_the_same_step_move_into_it(make: Make) -> None:
    run = make(max_train_steps=9, save_sample_prompt="a dog", n_save_sample=1)

    def press(event: Event) -> None:
        if isinstance(event, PhaseProgress) and event.phase == "training" and event.done == 1:
            run.controls.sample_now.set()
        if isinstance(event, SamplesMade) and event.step == 1:
            run.controls.stop.set()

    run.press = press
    run.train()
    assert run.folder.steps() == [1]
    assert len(run.folder.samples()[1]) == 1
    assert any(isinstance(event, ModelSaved) and event.step == 1 for event in run.events)


def test_files_of_others_in_a_step_folder_come_along_at_its_save_and_samples_survive_a_failed_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(max_train_steps=2, save_interval=1, save_sample_prompt="a dog", n_save_sample=1)
    samples = run.folder.step_folder(1) / "samples"

    def litter(event: Event) -> None:
        if isinstance(event, SamplesMade) and event.step == 1:
            (samples.parent / ".ipynb_checkpoints").mkdir(exist_ok=True)
            (samples.parent / "Thumbs.db").write_bytes(b"x")

    run.press = litter
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rmdir", lambda path: os.rmdir(f"{path}/no such"))
        with pytest.raises(FileNotFoundError):
            run.train()
    assert [file.name for file in samples.iterdir()] == ["0.png"]
    remove_folder(run.folder.checkpoints)
    assert run.train() == 2
    assert {"samples", "Thumbs.db", ".ipynb_checkpoints", "unet"} <= {one.name for one in samples.parent.iterdir()}


def test_a_diverged_run_is_stopped_with_its_cause(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = make(max_train_steps=5), itertools.count()

    def overflow(*arguments: Any) -> objective.Losses:
        losses = original(*arguments)
        return losses if next(calls) == 0 else dataclasses.replace(losses, total=losses.total * float("nan"))

    original = objective.prior_preservation
    monkeypatch.setattr(objective, "prior_preservation", overflow)
    with pytest.raises(TrainingError, match="learning rate"):
        run.train()


def test_a_micro_batch_leaves_no_graph_behind(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(max_train_steps=2, gradient_accumulation_steps=2)
    graphs: list[weakref.ref[Any]] = []

    class Mark:
        """Lives as long as the node of a graph that holds it."""

    def marked(*arguments: Any) -> objective.Losses:
        assert [graph() for graph in graphs] == [None] * len(graphs)
        losses = original(*arguments)
        mark = losses.total.grad_fn.metadata["mark"] = Mark()
        graphs.append(weakref.ref(mark))
        return losses

    original = objective.prior_preservation
    monkeypatch.setattr(objective, "prior_preservation", marked)
    run.train()
    assert len(graphs) == 4


def test_several_concepts_are_mixed_evenly_each_with_its_own_class(make: Make, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "cat.png").write_bytes((photos / "0.png").read_bytes())
    concepts = (
        Concept("photo of zwx dog", str(photos), "photo of dog"),
        Concept("photo of ukj cat", str(other), "photo of cat"),
    )
    run = make(concepts=concepts, with_prior_preservation=True, train_batch_size=2)
    told = [one for one in run.events if isinstance(one, PhaseProgress) and one.phase == "class images"]
    counts, total = [one.done for one in told], 2 * run.config.num_class_images
    assert {one.total for one in told} == {total}, "one count for all concepts"
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, total)
    for step in range(4):
        captions = run.materials.batches.batch(step, 0).captions
        assert sorted(captions[:2]) == ["photo of ukj cat", "photo of zwx dog"]
        assert sorted(captions[2:]) == ["photo of cat", "photo of dog"]
    assert run.train() == 2


def test_another_vae_is_used_for_latents_and_saved(make: Make, tmp_path: Path) -> None:
    from tests.harness.tiny import tiny_base

    other = tiny_base(tmp_path / "other-vae", seed=5) / "vae"
    plain, with_other = make(save_precision="fp32"), make(save_precision="fp32", pretrained_vae_name_or_path=str(other))
    assert not torch.equal(
        plain.materials.batches.batch(0, 0).latents, with_other.materials.batches.batch(0, 0).latents
    )
    with_other.train()
    saved = load_base(str(with_other.folder.step_folder(2))).vae.state_dict()
    expected = load_base(str(other.parent)).vae.state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in expected.items())
