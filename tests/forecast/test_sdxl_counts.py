"""SDXL in the planner: counts of its own sizes, and of a narrow base as its models have them."""

import dataclasses
from pathlib import Path

import pytest

from dreambooth.config.presets import resolve
from dreambooth.config.training import SDXL_BASE
from dreambooth.forecast.counts import adapted_modules, counts_of_base, counts_of_shape, num_learning
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.shape import read_shape
from dreambooth.models.base import load_base
from tests.harness.tiny import tiny_sdxl_base


def test_its_own_sizes_are_counted_before_it_is_here() -> None:
    shape = read_shape(SDXL_BASE)
    counts = (shape.num_unet, shape.num_text_encoder, shape.num_vae)
    assert counts == (2_567_463_684, 123_060_480 + 694_659_840, 83_653_863)
    assert shape.native_px == 1024


@pytest.mark.parametrize(("targets", "num_modules", "per_rank"), [("attention", 560, 1_449_216), ("linear", 722, None)])
def test_the_numbers_of_a_lora_follow_from_its_configuration(
    targets: str, num_modules: int, per_rank: int | None
) -> None:
    config = resolve({"method": "lora", "lora_targets": targets, "lora_rank": 16}, None, None, "sdxl")
    counts = counts_of_shape(read_shape(SDXL_BASE))
    assert len(adapted_modules(config, counts)) == num_modules
    if per_rank is not None:
        assert num_learning(config, counts) == pytest.approx(16 * per_rank, rel=0.01)


def test_a_narrow_base_is_counted_as_its_models_are(tmp_path: Path) -> None:
    folder = tiny_sdxl_base(tmp_path)
    base, shape = load_base(str(folder)), read_shape(str(folder))
    loaded, counted = counts_of_base(base), counts_of_shape(shape)
    assert (counted.unet, counted.text_encoder, counted.vae) == (loaded.unet, loaded.text_encoder, loaded.vae)
    for part, layers in counted.per_rank.items():
        for name, numbers in layers.items():
            assert loaded.per_rank[part][name if part == "unet" else _own(loaded.per_rank[part], name)] == numbers


def _own(names: object, name: str) -> str:
    assert isinstance(names, dict)
    return name if name in names else f"text_model.{name}"


def test_a_lora_needs_less_than_the_whole_and_a_larger_side_more() -> None:
    shape = read_shape(SDXL_BASE)
    whole, lora = (resolve({"method": method}, None, "recommended", "sdxl") for method in ("full", "lora"))
    assert (lora.resolution, lora.pad_tokens, lora.learning_rate) == (1024, True, 1e-4)
    smaller = dataclasses.replace(lora, resolution=768)
    needs = [memory_need(config, shape, "cuda").peak_bytes for config in (smaller, lora, whole)]
    assert needs == sorted(needs)
    assert len(set(needs)) == 3
