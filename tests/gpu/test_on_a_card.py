"""What only a CUDA device can show: each way of training there, its exact resume, and memory that comes back.

python -m pytest -m gpu -rP tests/gpu
"""

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth.config.concepts import Concept
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.presets import MEMORY_CONFIGURATIONS
from dreambooth.config.training import TrainingConfig
from dreambooth.device.capture import NUM_PLAIN_CALLS
from dreambooth.device.hardware import xformers_problem
from dreambooth.errors import TrainingError
from dreambooth.events import Event, Notice, PhaseProgress
from dreambooth.models.base import load_base
from dreambooth.models.manager import ModelManager
from dreambooth.pictures.generation import generate_images
from dreambooth.training import objective
from dreambooth.training.trainer import Trainer
from tests.harness.tiny import tiny_sdxl_base
from tests.harness.trained import Run, quick_settings

pytestmark = pytest.mark.gpu

NUM_STEPS = NUM_PLAIN_CALLS + 5
PLANS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"mixed_precision": "fp16"},
    "bf16": {"mixed_precision": "bf16"},
    "8-bit AdamW": {"mixed_precision": "fp16", "use_8bit_adam": True},
    "checkpointing": {"mixed_precision": "bf16", "gradient_checkpointing": True},
    "recorded bf16": {"mixed_precision": "bf16", "capture_step": True},
    "recorded fp16": {"mixed_precision": "fp16", "capture_step": True},
    "LoRA fp16": {"mixed_precision": "fp16", "method": "lora"},
    "LoRA bf16, recorded": {"mixed_precision": "bf16", "method": "lora", "capture_step": True},
    "lean": MEMORY_CONFIGURATIONS["lean"],
    "leanest": MEMORY_CONFIGURATIONS["leanest"],
}


def trained(run: Run, stop_at: int | None = None, *, resume: bool = False) -> Trainer:
    """Train a run, prepared anew each time."""

    def press(event: Event) -> None:
        if isinstance(event, PhaseProgress) and (event.phase, event.done) == ("training", stop_at):
            run.controls.stop.set()

    run.controls.stop.clear()
    run.press = press
    try:
        return run.train_anew(run.newest_state() if resume else None)
    finally:
        run.press = lambda event: None


@pytest.fixture
def config(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> TrainingConfig:
    # Copies of the photos serve as class images: making some is no part of what is tested here.
    class_images = str(shutil.copytree(photos, tmp_path / "class"))
    return quick_settings(
        tiny_base_folder, photos, concepts=(Concept("photo of zwx dog", str(photos), "photo of dog", class_images),),
        train_batch_size=2, max_train_steps=NUM_STEPS, train_text_encoder=True, with_prior_preservation=True,
    )  # fmt: skip


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return all that learns, as numbers on the CPU."""
    return {
        f"{part}.{name}": tensor.detach().float().cpu().clone()
        for part, named in trainer._learner.weights.items()
        for name, tensor in named.items()
    }


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference between two sets of weights."""
    return max((one[name] - other[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_trains_and_begins_with_the_loss_of_the_cpu(
    plan: str, config: TrainingConfig, tmp_path: Path
) -> None:
    run = Run(dataclasses.replace(config, **PLANS[plan]).checked(), tmp_path, "cuda")
    before = weights_of(Trainer(run.config, run.prepare(), run.context))
    after = weights_of(trained(run))
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.68 * len(before)
    plain = Run(dataclasses.replace(config, max_train_steps=1), tmp_path / "plain")
    trained(plain)
    # Later losses part: a loss scale that begins too high leaves updates out.
    assert run.losses[0] == pytest.approx(plain.losses[0], rel=0.02)
    assert not [event.text for event in run.events if isinstance(event, Notice) and event.level == "warning"]


@pytest.mark.filterwarnings("ignore:.*eterministic.*")
@pytest.mark.parametrize("plan", PLANS)
def test_a_stopped_run_resumes_as_exactly_as_two_whole_runs_agree(
    plan: str, config: TrainingConfig, tmp_path: Path
) -> None:
    settings = dataclasses.replace(config, **PLANS[plan]).checked()
    whole, again, parted = (Run(settings, tmp_path / name, "cuda") for name in ("whole", "again", "parted"))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        first, second = weights_of(trained(whole)), weights_of(trained(again))
        trained(parted, stop_at=NUM_STEPS - 3)
        third = weights_of(trained(parted, resume=True))
    finally:
        torch.use_deterministic_algorithms(False)
    own, resumed = furthest(first, second), furthest(first, third)
    print(f"{plan}: two whole runs differ by {own:g} at most, a resumed one by {resumed:g}")
    assert resumed <= 3 * own


def test_a_recorded_step_does_what_a_plain_one_does(config: TrainingConfig, tmp_path: Path) -> None:
    settings = dataclasses.replace(config, text_encoder_stop_step=NUM_STEPS - 2)
    plain, recorded = (
        Run(dataclasses.replace(settings, capture_step=captured).checked(), tmp_path / str(captured), "cuda")
        for captured in (False, True)
    )
    one, other = weights_of(trained(plain)), weights_of(trained(recorded))
    difference = furthest(one, other)
    print(f"recorded against plain, fp32: {difference:g} at most after {NUM_STEPS} steps")
    assert difference < 2e-4
    assert recorded.losses == pytest.approx(plain.losses, rel=1e-3)


@pytest.mark.parametrize("plan", ["fp16", "recorded bf16", "recorded fp16", "lean"])
def test_a_loss_that_is_no_number_leaves_the_weights_as_they_were(
    plan: str, config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(dataclasses.replace(config, **PLANS[plan]).checked(), tmp_path, "cuda")
    original, factor = objective.prior_preservation, torch.ones((), device="cuda")
    kept: list[dict[str, torch.Tensor]] = []

    def poisoned(*arguments: Any) -> objective.Losses:
        losses = original(*arguments)
        return dataclasses.replace(losses, total=losses.total * factor)

    def poison(trainer: Trainer, step: int) -> None:
        if step == NUM_PLAIN_CALLS + 2:
            kept.append(weights_of(trainer))
            factor.fill_(float("nan"))

    monkeypatch.setattr(objective, "prior_preservation", poisoned)
    monkeypatch.setattr(Trainer, "_due_work", poison)
    with pytest.raises(TrainingError, match=f"loss of step {NUM_PLAIN_CALLS + 3} "):
        trained(run)
    assert run.trainer is not None
    assert furthest(kept[0], weights_of(run.trainer)) == 0


def test_a_compiled_unet_learns_the_same(config: TrainingConfig, tmp_path: Path) -> None:
    plain, compiled = (
        Run(dataclasses.replace(config, compile_unet=on, max_train_steps=3).checked(), tmp_path / str(on), "cuda")
        for on in (False, True)
    )
    trained(plain)
    trained(compiled)
    torch._dynamo.reset()
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-3)


def test_xformers_gives_the_same_losses_where_it_loads(config: TrainingConfig, tmp_path: Path) -> None:
    problem = xformers_problem()
    if problem is not None:
        pytest.skip(f"xformers does not load here: {problem}")
    settings = dataclasses.replace(config, mixed_precision="fp16", max_train_steps=3)
    plain = Run(settings.checked(), tmp_path / "sdpa", "cuda")
    other = Run(dataclasses.replace(settings, attention="xformers").checked(), tmp_path / "xformers", "cuda")
    trained(plain)
    trained(other)
    assert other.losses == pytest.approx(plain.losses, rel=0.05)


def test_pictures_in_fp16_are_those_of_the_cpu_up_to_rounding(tiny_base_folder: Path) -> None:
    import numpy as np

    base = load_base(str(tiny_base_folder))
    request = GenerationConfig(prompt="photo of dog", num_images_per_prompt=2, num_inference_steps=4, seed=3)
    pictures = []
    for name in ("cpu", "cuda"):
        manager, own = ModelManager(name), copy.deepcopy(base)
        # A checker cannot infer a lambda whose default holds the model.
        held = manager.resident("base", lambda own=own: own)  # type: ignore[misc]
        assert next(held.unet.parameters()).dtype == manager.inference_dtype
        pictures.append([np.asarray(picture.image, dtype=float) for picture in generate_images(held, request)])
    assert all(abs(one - other).mean() < 2 for one, other in zip(*pictures, strict=True)), "levels of 255"


def test_the_swap_gives_all_memory_back_ten_times(config: TrainingConfig, tmp_path: Path) -> None:
    manager = ModelManager("cuda")
    held = []
    for number in range(11):
        settings = dataclasses.replace(config, mixed_precision="fp16", max_train_steps=2).checked()
        run = Run(settings, tmp_path / f"{number}", "cuda")
        run.context = dataclasses.replace(run.context, manager=manager)
        with manager.lease("training", wait=False):
            trained(run)
            run.trainer = None
        del run
        manager.collect()
        held.append((torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        with manager.lease("generation", wait=False):
            base = manager.resident("base", lambda: load_base(config.pretrained_model_name_or_path))
            list(generate_images(base, GenerationConfig(prompt="dog", num_images_per_prompt=1, num_inference_steps=2)))
            del base
    print("bytes allocated and reserved after each training:", held)
    assert len(set(held[1:])) == 1, "what the first training leaves (libraries' workspaces) is left by each"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_parts_of_sdxl_come_to_the_card_for_pictures_and_leave_it(
    photos: Path, tmp_path: Path, method: str
) -> None:
    """Class images in half precision before the steps, samples between them: the VAE and the encoders only then."""
    base = tiny_sdxl_base(tmp_path / "base")
    settings = quick_settings(
        base, photos, method=method, mixed_precision="fp16", with_prior_preservation=True, max_train_steps=3,
        save_sample_prompt="photo of zwx dog", n_save_sample=1, num_probe_images=1, pad_tokens=True, save_interval=2,
    )  # fmt: skip
    run = Run(settings, tmp_path, "cuda")
    trained(run)
    places = {name: next(module.parameters()).device.type for name, module in run.materials.base.modules().items()}
    assert places == {"unet": "cuda", "vae": "cpu", "text_encoder": "cpu", "text_encoder_2": "cpu"}
    assert run.materials.base.unet.dtype == (torch.float16 if method == "lora" else torch.float32)
    assert len([*run.context.workspace.class_images_dir.rglob("*.png")]) == 2
    assert (run.folder.step_folder(2) / "samples" / "0.png").exists()
