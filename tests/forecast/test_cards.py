"""Which preset fits cards of 8 to 24 GB, as the documents and `preflight` say it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dreambooth.config.presets import PRESETS, resolve
from dreambooth.config.training import MethodName
from dreambooth.forecast.cards import CARDS_GB, NOT_MEASURED, cards_sentence, cards_table, plan_for_card
from dreambooth.forecast.memory import memory_need
from dreambooth.forecast.shape import usual_shape
from dreambooth.formats.layout import LAYOUTS, SD1, SDXL


def test_the_document_has_the_table_as_it_is_planned_now() -> None:
    document = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
    assert cards_table() in document.read_text("utf-8")


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_larger_card_gets_a_plan_that_needs_no_less(family: Any, method: MethodName) -> None:
    plans = [plan_for_card(usual_shape(LAYOUTS[family]), method, size) for size in CARDS_GB]
    needs = [0 if plan is None else plan.need_bytes for plan in plans]
    assert needs == sorted(needs)
    assert plans[-1] is not None
    assert all(plan.need_bytes < 2**30 * size for plan, size in zip(plans, CARDS_GB, strict=True) if plan)


def test_a_lora_of_sdxl_fits_a_card_of_12_gb_at_its_own_size_with_class_images_and_samples() -> None:
    plan = plan_for_card(usual_shape(SDXL), "lora", 12)
    assert plan is not None
    assert plan.resolution == 1024


def test_what_no_card_was_asked_says_so() -> None:
    assert "H200" in cards_sentence(usual_shape(SD1), "full")
    for layout, method in ((SD1, "lora"), (SDXL, "full"), (SDXL, "lora")):
        config = resolve({"method": method}, None, "minimum", layout.family)
        assert memory_need(config, usual_shape(layout), "cuda").measured == ""
        assert NOT_MEASURED in cards_sentence(usual_shape(layout), method)


def test_sdxls_vae_decodes_in_fp32_unless_it_was_made_for_fp16() -> None:
    """Samples of a run without prior, whose steps take little: what decides is the picture of 1024 px."""
    config = resolve({"method": "lora", "with_prior_preservation": False, "save_sample_prompt": "photo"}, None,
                     "leanest", "sdxl")  # fmt: skip
    shape = usual_shape(SDXL)
    made_to_fit = dataclasses.replace(shape, vae={**shape.vae, "force_upcast": False})
    config = dataclasses.replace(config, resolution=2048)
    in_fp32, in_half = (memory_need(config, one, "cuda") for one in (shape, made_to_fit))
    assert in_fp32.phase == "samples"
    assert in_fp32.activations >= 3.5 * 256 * 2048**2 * 4
    assert in_half.peak_bytes < in_fp32.peak_bytes


def test_class_images_never_decide_what_fits_a_card() -> None:
    for layout in (SD1, SDXL):
        for name in PRESETS:
            for method in ("full", "lora"):
                config = resolve({"method": method}, None, name, layout.family)
                assert memory_need(config, usual_shape(layout), "cuda").phase != "class images"
                assert config.train_text_encoder == (
                    layout is SD1 and not (method == "lora" and name.startswith("lean"))
                )
