"""Updates inside backward and all at once: the same weights, and no number that is none among them."""

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dreambooth.config.presets import resolve
from dreambooth.config.training import TrainingConfig
from dreambooth.device.threads import Shares
from dreambooth.errors import ConfigError, TrainingError
from dreambooth.training import objective
from dreambooth.training.optimizer import gradient_norm, stochastically_rounded
from dreambooth.training.updates import GatheredUpdates, UpdatesInBackward
from tests.harness.trained import Run, moved

Make = Callable[..., Run]
LEAN: dict[str, Any] = {"update_in_backward": True, "max_grad_norm": 0.0}


@pytest.mark.parametrize("eight_bit", [False, True], ids=["AdamW", "8-bit AdamW"])
def test_updates_inside_backward_give_the_same_weights(make: Make, eight_bit: bool) -> None:
    options = {
        "train_text_encoder": True,
        "with_prior_preservation": True,
        "max_train_steps": 4,
        "use_8bit_adam": eight_bit,
    }
    gathered, lean = make(max_grad_norm=0.0, **options), make(**LEAN, **options)
    gathered.train()
    lean.train()
    assert lean.losses == pytest.approx(gathered.losses, rel=1e-6)
    for part in ("unet", "text_encoder"):
        for name, tensor in lean.weights(part).items():
            torch.testing.assert_close(tensor, gathered.weights(part)[name], rtol=0, atol=1e-6, msg=name)


def test_gradients_are_freed_inside_backward(make: Make) -> None:
    run = make(**LEAN, max_train_steps=1)
    run.train()
    assert all(parameter.grad is None for parameter in run.materials.base.unet.parameters())


def test_each_tensor_is_clipped_by_itself() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0)
    updates = UpdatesInBackward(TrainingConfig(max_tensor_grad_norm=0.5, **LEAN), optimizer, seed=0)
    updates.backward(0.25 * parameters[0].sum() + 4 * parameters[1].sum(), 0)
    moments = [optimizer.state[parameter]["exp_avg"].item() / 0.1 for parameter in parameters]
    assert moments == pytest.approx([0.25, 0.5], rel=1e-4)


@pytest.mark.usefixtures("plain_kernels")
def test_bf16_weights_learn_what_fp32_weights_learn(make: Make) -> None:
    options = {"max_train_steps": 6, "mixed_precision": "bf16", "train_text_encoder": True, **LEAN}
    full, half = make(**options), make(weight_precision="bf16", **options)
    before = half.weights()
    full.train()
    half.train()
    assert {tensor.dtype for tensor in half.weights().values()} == {torch.bfloat16}
    assert moved(before, half.weights()) > 600
    assert half.losses == pytest.approx(full.losses, rel=0.05)


def test_random_rounding_keeps_the_mean_and_stays_between_neighbours() -> None:
    values = torch.full((40_000,), 1.0 + 1 / 1024)
    rounded = stochastically_rounded(values, torch.Generator().manual_seed(0))
    assert set(rounded.unique().tolist()) == {1.0, 1.0 + 1 / 128}
    assert rounded.float().mean().item() == pytest.approx(1.0 + 1 / 1024, abs=1e-4)
    again = stochastically_rounded(values, torch.Generator().manual_seed(0))
    assert torch.equal(rounded, again)
    exact = torch.tensor([[0.0, -2.5], [1e30, -1.0]])
    held = stochastically_rounded(exact.bfloat16().float(), torch.Generator().manual_seed(1))
    assert torch.equal(held, exact.bfloat16()), "what bf16 holds exactly stays"


def test_a_loss_that_is_no_number_reaches_no_weight(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(max_train_steps=3, **LEAN)
    before = run.weights()
    original = objective.prior_preservation

    def overflow(*arguments: Any) -> objective.Losses:
        losses = original(*arguments)
        return dataclasses.replace(losses, total=losses.total * float("nan"))

    monkeypatch.setattr(objective, "prior_preservation", overflow)
    with pytest.raises(TrainingError, match="loss of step 1 .* as step 0 left them"):
        run.train()
    assert moved(before, run.weights()) == 0


def test_updates_inside_backward_are_refused_in_several_processes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    two = types.SimpleNamespace(num_processes=2)
    monkeypatch.setattr("accelerate.PartialState", lambda cpu: two)
    with pytest.raises(ConfigError, match="update_in_backward: works in a single process; for 2"):
        make(**LEAN)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_that_no_loss_scale_makes_finite_end_the_run(fused: bool) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=fused)
    updates = GatheredUpdates(TrainingConfig(), optimizer, torch.amp.GradScaler("cpu"), 1)

    def is_finite(poison: float) -> bool:
        total = parameter.sum()
        updates.backward(total, 0)
        assert parameter.grad is not None
        parameter.grad.mul_(poison)
        finite = updates.apply(total.detach())
        updates.clear()
        return bool(finite)

    assert all(is_finite(poison) for poison in (float("inf"), 1.0) * 15), "one that overflows now and then does not"
    moved_to = parameter.detach().clone()
    assert [is_finite(float("nan")) for _ in range(300)].index(False) == 19
    assert torch.equal(parameter, moved_to)


def test_a_gradient_that_is_no_number_stops_its_own_update_and_sends_the_run_back(make: Make) -> None:
    run = make(max_train_steps=3, **LEAN)
    broken = run.materials.base.unet.conv_out.weight
    before = broken.detach().clone()
    broken.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match="last exact state"):
        run.train()
    assert torch.equal(broken, before)
    assert all(tensor.isfinite().all() for tensor in run.weights().values())
    assert run.folder.steps() == [], "half a step is no model"


@pytest.mark.parametrize("poison", [1.0, float("nan"), float("inf")])
def test_the_fused_kernel_clips_and_guards_as_the_plain_way_does(poison: float) -> None:
    weights = []
    for fused in (False, True):
        parameters = [torch.nn.Parameter(torch.linspace(-1, 1, 8)), torch.nn.Parameter(torch.ones(3))]
        optimizer = torch.optim.AdamW(parameters, lr=0.1, fused=fused)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        updates = GatheredUpdates(TrainingConfig(max_grad_norm=0.5), optimizer, scaler, 1)
        for factor in (1.0, poison, 1.0):
            total = factor * (parameters[0].square().sum() + parameters[1].pow(3).sum())
            updates.backward(total, 0)
            assert bool(updates.apply(total.detach())) == (factor == 1.0)
            updates.clear()
        weights.append(torch.cat([parameter.detach() for parameter in parameters]))
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-5, atol=1e-6)
    assert weights[0].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"max_grad_norm": 1.0}, "max_grad_norm"),
        ({"mixed_precision": "fp16"}, "mixed_precision"),
        ({"capture_step": True}, "capture_step"),
        ({"update_in_backward": False, "max_tensor_grad_norm": 1.0}, "max_tensor_grad_norm"),
        ({"update_in_backward": False, "weight_precision": "bf16"}, "update_in_backward"),
        ({"weight_precision": "bf16"}, "mixed_precision"),
        ({"weight_precision": "bf16", "mixed_precision": "bf16", "use_ema": True}, "use_ema"),
    ],
)
def test_what_excludes_itself_is_told_at_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as told:
        TrainingConfig(**(LEAN | changes)).checked()
    assert field in {problem.field for problem in told.value.problems}


@pytest.mark.parametrize("name", ["lean", "leanest"])
def test_the_lean_presets_fit_together(name: str) -> None:
    with pytest.raises(ConfigError) as told:
        resolve({}, None, name).checked()
    assert {problem.field for problem in told.value.problems} == {"instance_data_dir"}, "only the photos are missing"


def test_the_norm_of_all_gradients_is_torchs_own_and_no_number_if_one_of_them_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4, 3, 3), (2000, 70), (5,))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    plain = torch.nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
    assert gradient_norm(parameters, Shares()).item() == pytest.approx(plain.item(), rel=1e-5)
    assert parameters[0].grad is not None
    parameters[0].grad = parameters[0].grad.to(memory_format=torch.channels_last)
    assert gradient_norm(parameters, Shares()).item() == pytest.approx(plain.item(), rel=1e-5)
    assert parameters[1].grad is not None
    parameters[1].grad[7, 7] = float("nan")
    assert not gradient_norm(parameters, Shares()).isfinite()
    assert gradient_norm([], Shares()).item() == 0
