"""The GPU benchmark tells what it would measure on a machine without a GPU, and its bases can be loaded."""

import sys
from pathlib import Path

import pytest

from benchmarks.bases import CHANGES, Size, is_sdxl, random_base
from dreambooth.models.base import load_base


def test_it_lists_its_sections_and_what_is_planned_of_sdxl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import gpu, gpu_sdxl

    monkeypatch.setattr(sys, "argv", ["gpu", "--list"])
    gpu.main()
    told = capsys.readouterr().out
    assert f"sections: {', '.join(gpu.SECTIONS)}" in told
    assert "sdxl" in gpu.SECTIONS
    for method in ("LoRA", "whole UNet"):
        for side_px in (1024, 512):
            assert f"| {method}, {side_px} px, " in told
    assert told.count("\n| ") == 2 + len(gpu_sdxl.ROWS)
    for name, (_, changes) in gpu_sdxl.ROWS.items():
        from dreambooth.config.checks import update_problems
        from dreambooth.config.training import TrainingConfig

        assert update_problems(TrainingConfig(**changes)) == [], name


@pytest.mark.parametrize("size", ["full", "sdxl_full"])
def test_a_base_with_clips_vocabulary_has_a_tokenizer_that_fits(tmp_path: Path, size: Size) -> None:
    """What is measured at full size has to load; made narrow here, with all tokens."""
    folder = random_base(tmp_path / "base", size, changes=CHANGES["sdxl_tiny" if is_sdxl(size) else "tiny"])
    base = load_base(str(folder))
    assert len(base.tokenizer) == base.text_encoder.config.vocab_size == 49408
    assert base.tokenizer("photo of zwx dog").input_ids[-1] == base.text_encoder.config.eos_token_id
