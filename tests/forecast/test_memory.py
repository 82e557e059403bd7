"""The memory planner: its counts are those of the real modules, and its plans follow from them."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bases, planner
from dreambooth.config.concepts import Concept
from dreambooth.config.fields import describe
from dreambooth.config.presets import PRESETS, resolve
from dreambooth.config.training import TrainingConfig
from dreambooth.device.hardware import GIB, Device
from dreambooth.forecast.counts import learning_units
from dreambooth.forecast.memory import fastest_plan, memory_need, room_bytes
from dreambooth.forecast.shape import (
    SD15_SHAPE,
    TOKENS,
    UNET_DEFAULTS,
    VAE_DEFAULTS,
    ModelShape,
    read_shape,
    text_units,
    unet_units,
)
from dreambooth.starter.tokens import write_tokenizer


def test_the_weights_are_counted_as_they_are(tiny_base_folder: Path) -> None:
    from dreambooth.models.base import load_base

    for name in ("starter", str(tiny_base_folder)):
        base, shape = load_base(name), read_shape(name)
        counted = (shape.num_unet, shape.num_text_encoder, shape.num_vae)
        assert counted == tuple(
            sum(parameter.numel() for parameter in part.parameters())
            for part in (base.unet, base.text_encoder, base.vae)
        )
        assert shape.native_px == base.card.native_px
    assert (SD15_SHAPE.num_unet, SD15_SHAPE.num_text_encoder, SD15_SHAPE.num_vae) == (
        859_520_964, 123_060_480, 83_653_863,
    )  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_what_a_forward_keeps_for_backward_is_counted_within_three_percent(
    tiny_base_folder: Path, checkpointing: bool
) -> None:
    import torch

    from dreambooth.models.base import load_base

    base, shape = load_base(str(tiny_base_folder)), read_shape(str(tiny_base_folder))
    batch, latent_px = 2, 16
    if checkpointing:
        base.unet.enable_gradient_checkpointing()
    inputs = torch.zeros(batch, 4, latent_px, latent_px), torch.zeros(batch, dtype=torch.int64)
    states = torch.zeros(batch, TOKENS, base.unet.config.cross_attention_dim, requires_grad=True)
    kept = kept_bytes(base.unet.train(), lambda: base.unet(*inputs, states))
    counted = states.nbytes + 4 * batch * sum(
        unit.boundary_values
        if checkpointing and unit.boundary_values is not None
        else unit.norm_values + unit.product_values
        for unit in unet_units(shape.unet, latent_px)
    )
    assert counted == pytest.approx(kept, rel=0.03)
    if not checkpointing:
        ids = torch.zeros(batch, TOKENS, dtype=torch.int64)
        kept = kept_bytes(base.text_encoder.train(), lambda: base.text_encoder(ids))
        units = text_units(shape.text_encoders["text_encoder"])
        assert 4 * batch * sum(unit.norm_values + unit.product_values for unit in units) == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("targets", ["attention", "linear", "all"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_what_a_forward_with_factors_keeps_is_counted_within_three_percent(
    tiny_base_folder: Path, targets: Any, checkpointing: bool
) -> None:
    """Linear layers whose weights do not learn keep no input, and all of it is in the format of the frozen base."""
    import torch

    from dreambooth.models.base import load_base
    from dreambooth.training.lora import LowRankAdaptation

    name, batch, latent_px = str(tiny_base_folder), 2, 16
    config = TrainingConfig(
        method="lora", lora_targets=targets, lora_rank=4, resolution=8 * latent_px, seed=1, mixed_precision="bf16",
        gradient_checkpointing=checkpointing,
    )  # fmt: skip
    base, shape, method = load_base(name), read_shape(name), LowRankAdaptation()
    method.prepare(base, config)
    method.attach(base, config)
    inputs = torch.zeros(batch, 4, latent_px, latent_px, dtype=torch.bfloat16), torch.zeros(batch, dtype=torch.int64)
    states = torch.zeros(batch, TOKENS, base.unet.config.cross_attention_dim, dtype=torch.bfloat16)
    kept = kept_bytes(base.unet, lambda: base.unet(*inputs, states))
    units = learning_units(config, dataclasses.replace(shape, vae={"block_out_channels": [1] * 4}), TOKENS)
    recomputed = [unit.boundary_values if checkpointing else None for unit in units]
    values = sum(
        unit.product_values if boundary is None else boundary for unit, boundary in zip(units, recomputed, strict=True)
    )
    # A copy of the factors is kept where they are not recomputed.
    copies = sum(unit.weight_values for unit, boundary in zip(units, recomputed, strict=True) if boundary is None)
    assert 2 * (batch * values + copies) + states.nbytes == pytest.approx(kept, rel=0.03)


def kept_bytes(model: Any, forward: Any) -> int:
    """Return the bytes of the tensors that a forward keeps for its backward, weights aside."""
    from torch.autograd.graph import saved_tensors_hooks

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        result = forward()
    assert result is not None
    return sum(storage.nbytes() for storage in kept.values())


def test_planning_takes_milliseconds_and_no_torch() -> None:
    code = (
        "import sys; from dreambooth.forecast.memory import memory_need\n"
        "from dreambooth.config.presets import resolve\n"
        "from dreambooth.forecast.shape import SD15_SHAPE\n"
        "print(memory_need(resolve({}, None, 'minimum'), SD15_SHAPE, 'cuda').peak_bytes, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split()[1] == "False"
    # The processor's time: a busy machine takes none of it.
    began_s = time.process_time()
    memory_need(resolve({}, None, "minimum"), SD15_SHAPE, "cuda")
    assert time.process_time() - began_s < 0.5


def test_a_base_that_is_not_here_yet_is_planned_as_sd15() -> None:
    assert read_shape("somebody/not-downloaded") is SD15_SHAPE


def test_more_of_anything_never_takes_less() -> None:
    plain = resolve({}, None, "recommended")
    for kind in ("cuda", "cpu"):
        need = memory_need(plain, SD15_SHAPE, kind).peak_bytes
        for change in ({"train_batch_size": 4}, {"resolution": 768}, {"use_8bit_adam": False}, {"use_ema": True}):
            assert memory_need(dataclasses.replace(plain, **change), SD15_SHAPE, kind).peak_bytes > need, change
        less = dataclasses.replace(plain, gradient_checkpointing=True, train_text_encoder=False)
        assert memory_need(less, SD15_SHAPE, kind).peak_bytes < need


def test_a_teacher_never_sets_the_peak_of_a_run() -> None:
    """It looks at no more at a time than two pictures of SD 1.5, which costs less than a step, at any size."""
    for resolution_px in (512, 768):
        plain = resolve({"with_prior_preservation": True, "resolution": resolution_px}, None, "leanest")
        taught = dataclasses.replace(plain, teacher_prior=True)
        peaks = [memory_need(config, SD15_SHAPE, "cuda").peak_bytes for config in (plain, taught)]
        assert peaks[0] == peaks[1]


def test_the_copy_that_a_model_is_written_from_counts_where_steps_go_on_meanwhile() -> None:
    last_only = TrainingConfig(max_train_steps=100, save_interval=100, train_text_encoder=True, use_ema=True)
    on_the_way = dataclasses.replace(last_only, save_interval=50)
    needs = [memory_need(config, SD15_SHAPE, "cpu").peak_bytes for config in (last_only, on_the_way)]
    assert needs[1] - needs[0] == 2 * (SD15_SHAPE.num_unet + SD15_SHAPE.num_text_encoder), "in half precision"
    needs = [memory_need(config, SD15_SHAPE, "cuda").peak_bytes for config in (last_only, on_the_way)]
    assert needs[0] == needs[1]


def test_the_fastest_plan_that_fits_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth.forecast.memory.precisions", lambda device: ("no", "fp16", "bf16"))
    config = resolve({"train_batch_size": 1}, None, "recommended")

    def plan(gib: float) -> TrainingConfig:
        return fastest_plan(config, SD15_SHAPE, Device("cuda", "a card", round(gib * GIB), round(gib * GIB)))

    assert not plan(40).use_8bit_adam
    assert plan(14).use_8bit_adam
    assert not plan(14).gradient_checkpointing
    chosen = [memory_need(plan(gib), SD15_SHAPE, "cuda").peak_bytes for gib in (40, 14, 9.9)]
    assert chosen == sorted(chosen, reverse=True)
    for gib in (40, 14, 9.9):
        assert memory_need(plan(gib), SD15_SHAPE, "cuda").peak_bytes <= gib * GIB
        assert plan(gib).resolution == config.resolution


T4, A100, CPU = ("no", "fp16"), ("no", "fp16", "bf16"), ("no", "bf16")


@pytest.mark.parametrize(("kind", "able"), [("cuda", T4), ("cuda", A100), ("cpu", CPU)], ids=["T4", "A100", "CPU"])
@pytest.mark.parametrize("explicit", [
    {}, {"mixed_precision": "no"}, {"use_ema": True}, {"gradient_accumulation_steps": 2}, {"capture_step": True},
    {"use_8bit_adam": False, "train_text_encoder": False}, {"update_in_backward": True}, {"shard_weights": True},
    {"max_grad_norm": 0.0, "update_in_backward": True, "use_8bit_adam": True},
], ids=str)  # fmt: skip
def test_whatever_is_free_the_plan_can_be_run_and_no_faster_one_fits(
    monkeypatch: pytest.MonkeyPatch, kind: Any, able: tuple[str, ...], explicit: dict[str, Any], photos: Path
) -> None:
    monkeypatch.setattr("dreambooth.forecast.memory.precisions", lambda device: able)
    concept = Concept("photo of zwx dog", str(photos), "photo of dog")
    config = resolve({"concepts": (concept,), **explicit}, None, "recommended")
    before, seen = 0, []
    for gib in (1, 4, 6, 8, 10, 12, 16, 24, 80):
        device = Device(kind, "a device", gib * GIB, gib * GIB)
        plan = fastest_plan(config, SD15_SHAPE, device, kept=explicit).checked()
        need = memory_need(plan, SD15_SHAPE, kind).peak_bytes
        assert need <= room_bytes(device) or not seen or plan == seen[-1], "only the leanest may not fit"
        assert need >= before, "more room never takes a slower plan"
        assert plan.mixed_precision in able
        assert {name: getattr(plan, name) for name in explicit} == explicit
        before = need
        seen.append(plan)
    assert len(set(seen)) > 1
    assert not seen[-1].gradient_checkpointing


@pytest.mark.parametrize(("kind", "able"), [("cuda", T4), ("cuda", A100), ("cpu", CPU)], ids=["T4", "A100", "CPU"])
def test_a_lora_is_planned_with_what_it_reads(
    monkeypatch: pytest.MonkeyPatch, kind: Any, able: tuple[str, ...], photos: Path
) -> None:
    monkeypatch.setattr("dreambooth.forecast.memory.precisions", lambda device: able)
    concept = Concept("photo of zwx dog", str(photos), "photo of dog")
    config = resolve({"method": "lora", "concepts": (concept,), "train_batch_size": 4}, None, "recommended")
    plans = []
    for gib in (1, 5, 6, 8, 80):
        device = Device(kind, "a device", gib * GIB, gib * GIB)
        plans.append(fastest_plan(config, SD15_SHAPE, device).checked())
    names = {name for plan in plans for name, value in plan.to_json().items() if value != config.to_json()[name]}
    assert names <= {"mixed_precision", "gradient_checkpointing"}
    assert [plan.gradient_checkpointing for plan in (plans[0], plans[-1])] == [True, False]
    assert memory_need(plans[0], SD15_SHAPE, kind).peak_bytes < 8 * GIB


def test_no_preset_of_a_lora_sets_what_only_a_full_fine_tuning_reads() -> None:
    idle = [info for info in describe(TrainingConfig) if info.method == "full"]
    assert {info.name for info in idle} >= {"use_8bit_adam", "update_in_backward", "weight_precision"}
    for name in PRESETS:
        config = resolve({"method": "lora"}, None, name)
        assert [info.name for info in idle if getattr(config, info.name) != info.default] == []


def test_every_preset_can_be_planned_on_every_device() -> None:
    for name in PRESETS:
        for kind in ("cpu", "cuda", "mps"):
            need = memory_need(resolve({}, None, name), SD15_SHAPE, kind)
            assert 1 * GIB < need.peak_bytes < 40 * GIB
            assert need.peak_bytes == (need.weights + need.gradients + need.optimizer + need.activations + need.other)


# What was measured ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """Return what is predicted of each setting that was measured and not fitted, and what it took."""
    folder = tmp_path_factory.mktemp("compared")
    shapes = {"starter": read_shape("starter")}
    for size in ("mini", "full"):
        parts = bases.configurations(size, write_tokenizer(folder / size, bases.WORDS))
        texts = {"text_encoder": parts["text_encoder"]}
        shapes[size] = ModelShape(UNET_DEFAULTS | parts["unet"], texts, VAE_DEFAULTS | parts["vae"])
    rows = json.loads((planner.RESULTS / "planner.json").read_text("utf-8"))["found"]
    return {
        row["setting"]: (
            memory_need(
                planner.setting("base", folder, row["changes"]), shapes[planner.base_of(row["setting"], False)], "cpu"
            ).peak_bytes,
            row["peak_bytes"],
        )
        for row in rows
    }


def test_twelve_settings_without_part_in_the_fit_are_predicted_within_ten_percent(
    compared: dict[str, tuple[int, int]],
) -> None:
    assert not set(compared) & set(planner.FITTED)
    ratios = {what: said / peak for what, (said, peak) in compared.items()}
    far = {what for what, ratio in ratios.items() if abs(ratio - 1) > 0.1}
    assert far <= {"mini, bf16 weights, 192 px, checkpointing"}, "the one that the document names"
    assert len(ratios) - len(far) >= 12


def test_the_document_has_every_measured_setting_with_what_is_predicted_now(
    compared: dict[str, tuple[int, int]],
) -> None:
    rows = [planner.row_of(what, said, peak) for what, (said, peak) in compared.items()]
    cards = json.loads((planner.RESULTS / "gpu.json").read_text("utf-8"))["Plans"]
    for one in cards:
        config = TrainingConfig(**(planner.SD15 | {"save_sample_prompt": ""} | one["settings"]))
        peak = one["reserved_bytes"] - one["bytes_before"]
        rows.append(planner.row_of(one["name"], memory_need(config, SD15_SHAPE, "cuda").peak_bytes, peak))
    document = (Path(__file__).resolve().parents[2] / "docs" / "performance.md").read_text("utf-8").splitlines()
    assert [row for row in rows if row not in document] == []
