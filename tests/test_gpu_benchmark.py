"""The GPU benchmark can be imported and tells what it would measure on a machine without a GPU."""

import sys

import pytest


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
