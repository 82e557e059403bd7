"""A method says which weights learn and what a saved step holds; loop, optimizer and exact state take its word."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dreambooth.config.training import TrainingConfig
from dreambooth.errors import TrainingError
from dreambooth.models.base import Base, load_base
from dreambooth.models.card import BaseCard
from dreambooth.training.full import FullFineTuning
from dreambooth.training.materials import Materials
from dreambooth.training.method import LearningWeights, StepWeights, parameters_of
from dreambooth.training.move_check import first_rows, refuse_standing_still
from dreambooth.training.rates import LearningRates
from dreambooth.training.trainer import Trainer
from tests.harness.trained import Run, quick_settings

NUM_STEPS = 4
NUM_BEFORE = 2
PARTS = ("unet", "text_encoder", "vae")


class QueriesOnly:
    """A method of which no weight is a bias or norm, as with an adapter: the queries of the UNet's attention learn."""

    def check(self, base: Base, config: TrainingConfig) -> None:
        pass

    def prepare(self, base: Base, config: TrainingConfig) -> None:
        pass

    def autocast_dtype(self, config: TrainingConfig) -> torch.dtype | None:
        return None

    def attach(self, base: Base, config: TrainingConfig) -> None:
        for part in PARTS:
            getattr(base, part).requires_grad_(False)
        for weights in self.learning(base)["unet"].values():
            weights.requires_grad_(True)

    def learning(self, base: Base) -> LearningWeights:
        named = base.unet.named_parameters()
        return {"unet": {name: weights for name, weights in named if name.endswith("to_q.weight")}}

    def step_weights(self, base: Base) -> StepWeights:
        return {"unet": {**self.learning(base)["unet"]}}

    def write_step(
        self, folder: Path, base: Base, weights: Mapping[str, Mapping[str, torch.Tensor]], dtype: torch.dtype,
        card: BaseCard, name: str,
    ) -> None:  # fmt: skip
        save_file({name: tensor.to(dtype) for name, tensor in weights["unet"].items()}, folder / "queries.safetensors")
        (folder / "card.json").write_text(json.dumps(dataclasses.asdict(card)))


Prepare = Callable[..., tuple[TrainingConfig, Materials]]


@pytest.fixture
def prepared(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> Prepare:
    """Return settings and what a loop over them reads, by another method if one is given."""

    def made(method: Any = None, **changes: Any) -> tuple[TrainingConfig, Materials]:
        values = {"max_train_steps": NUM_STEPS, "save_precision": "fp32"}
        config = quick_settings(tiny_base_folder, photos, **(values | changes))
        materials = Run(config, tmp_path).materials
        return config, dataclasses.replace(materials, **({"method": method} if method else {}))

    return made


@pytest.mark.parametrize("text_encoder", [True, False], ids=["with text encoder", "unet"])
def test_full_fine_tuning_learns_every_weight_of_unet_and_text_encoder(
    tiny_base_folder: Path, text_encoder: bool
) -> None:
    base, method = load_base(str(tiny_base_folder)), FullFineTuning()
    method.attach(base, TrainingConfig(train_text_encoder=text_encoder))
    learning = method.learning(base)
    parts = ["unet", "text_encoder"] if text_encoder else ["unet"]
    assert [*learning] == parts
    # In the order of exact states: older ones number the optimizer's entries by it.
    assert {part: [*named] for part, named in learning.items()} == {
        part: [*getattr(base, part).state_dict()] for part in parts
    }
    assert [getattr(base, part).training for part in PARTS] == [True, text_encoder, False]
    held = method.step_weights(base)
    assert {part: {*held[part]} for part in held} == {part: {*getattr(base, part).state_dict()} for part in PARTS}
    assert all(held[part][name] is weights for part, named in learning.items() for name, weights in named.items())


def test_loop_state_and_save_hold_what_the_method_says_learns(prepared: Prepare, tmp_path: Path) -> None:
    """Another method needs nothing but its own class; a resumed part ends with the same bits."""
    config, materials = prepared(QueriesOnly(), checkpointing_steps=NUM_BEFORE, use_ema=True)
    before = {part: getattr(load_base(materials.base.name), part).state_dict() for part in PARTS}
    run = Run(config, tmp_path / "whole", materials=materials)
    run.train()
    base = materials.base
    names = {name for name in before["unet"] if name.endswith("to_q.weight")}
    moved = {
        (part, name)
        for part in PARTS
        for name, tensor in getattr(base, part).state_dict().items()
        if not torch.equal(tensor, before[part][name])
    }
    assert moved == {("unet", name) for name in names}
    last = run.folder.step_folder(NUM_STEPS)
    saved = load_file(last / "queries.safetensors")
    assert {*saved} == names
    # The moving average's, not the last weights.
    assert not any(torch.equal(saved[name], base.unet.state_dict()[name]) for name in names)
    assert {file.name for file in last.iterdir()} == {"queries.safetensors", "card.json", "args.json"}
    state = run.newest_state()
    assert {*load_file(state.folder / "unet.safetensors")} == names
    assert {key.split(".")[0] for key in load_file(state.folder / "optimizer.safetensors")} == {
        str(number) for number in range(len(names))
    }

    part = Run(config, tmp_path / "parts", materials=prepared(QueriesOnly())[1])
    part.press = lambda event: part.controls.stop.set() if getattr(event, "step", None) == NUM_BEFORE else None
    part.train()
    rest = Run(config, tmp_path / "parts", materials=prepared(QueriesOnly())[1])
    again = rest.newest_state()
    assert again.step == NUM_BEFORE
    rest.train(again)
    assert (rest.folder.step_folder(NUM_STEPS) / "queries.safetensors").read_bytes() == (
        last / "queries.safetensors"
    ).read_bytes()


def test_a_run_without_any_bias_is_stopped_when_its_weights_do_not_move(
    prepared: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, materials = prepared(QueriesOnly())

    def at_zero(self: LearningRates, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0

    monkeypatch.setattr(LearningRates, "lower", at_zero)
    with pytest.raises(TrainingError, match=f"have not changed in {NUM_STEPS} steps"):
        Run(config, tmp_path, materials=materials).train()


@pytest.mark.parametrize("shape", [(), (7,), (5, 3), (4, 2, 3, 3)])
def test_one_moved_number_of_a_first_row_is_seen(shape: tuple[int, ...]) -> None:
    parameters = [torch.nn.Parameter(torch.ones(3, 3)), torch.nn.Parameter(torch.ones(shape))]
    before = first_rows(parameters)
    with pytest.raises(TrainingError, match="have not changed in 5 steps"):
        refuse_standing_still(before, parameters, 5)
    with torch.no_grad():
        parameters[1].view(-1)[0] += 2**-20
    refuse_standing_still(before, parameters, 5)


def test_first_rows_are_few_numbers_even_where_a_process_has_no_part() -> None:
    shapes = [(0,), (0, 4), (0, 4, 3, 3), (640,), (640, 320), (640, 320, 3, 3), (640, 320, 1, 1)]
    rows = first_rows([torch.nn.Parameter(torch.ones(shape)) for shape in shapes])
    assert [row.numel() for row in rows] == [0, 0, 0, 640, 320, 3, 1]
    assert sum(row.untyped_storage().nbytes() for row in rows) == 4 * 964, "copies, not views of whole tensors"


def test_the_optimizer_numbers_the_weights_of_all_models_in_turn(prepared: Prepare, tmp_path: Path) -> None:
    config, materials = prepared(train_text_encoder=True, text_encoder_lr=1e-4)
    trainer = Trainer(config, materials, Run(config, tmp_path).context)
    groups = trainer._learner.optimizer.param_groups
    parameters = parameters_of(materials.method.learning(materials.base))
    assert [id(one) for group in groups for one in group["params"]] == [id(one) for one in parameters]
    assert [group["initial_lr"] for group in groups] == [1e-3, 1e-4]
