"""`inspect` says what a file is before a tool fails on it in silence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dreambooth.commands.cli import main
from dreambooth.formats.layout import SD1, SD2, SDXL
from dreambooth.models.base import load_base
from dreambooth.models.inspection import _layers_of, inspect_file
from dreambooth.models.lora_file import file_hash, tensors_hash
from dreambooth.models.low_rank import Factors
from tests.harness.lora_files import Tensors, kohya, layers_of, random_factors, written

NAME = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


def of_sd15(targets: str = "attn", rank: int = 1) -> dict[str, Factors]:
    """Return factors for SD 1.5's own layers of some names, in its sizes."""
    return {
        name: Factors(
            torch.full((shape[0], rank, *[1] * (len(shape) - 2)), 0.5), torch.ones(rank, *shape[1:])
        )
        for name, shape in _layers_of(SD1).items()
        if targets in name
    }  # fmt: skip


def rows_of(path: Path) -> dict[str, str]:
    return dict(inspect_file(path).rows)


def test_the_command_says_all_of_a_lora(tmp_path: Path) -> None:
    """In a process of its own, of a file as sd-scripts writes it, with what lies beside it."""
    factors = of_sd15("attn2_to_") | of_sd15("self_attn")
    factors |= {f"{NAME}_more": Factors(torch.zeros(320, 1), torch.ones(1, 768))}
    metadata = {
        "ss_base_model_version": "sd_v1", "ss_output_name": "zwx-dog", "ss_sd_model_name": "dream\x1b[31m.safetensors",
        "ss_steps": "800", "ss_unet_lr": "None", "modelspec.trigger_phrase": "photo of zwx dog",
        "ss_tag_frequency": json.dumps({"5_zwx": {"zwx dog": 9, "outdoors": 4}, "1_x": {"outdoors": 7}}),
    }  # fmt: skip
    path = written(tmp_path / "a.safetensors", kohya(factors, dict.fromkeys(factors, 0.5)), metadata)
    (tmp_path / "a.json").write_text(json.dumps({"activation text": "zwx", "preferred weight": 0.8}))
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth", "inspect", path], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    shown = {label: text.strip() for label, text in shown.items()}
    num_unet = sum(name.startswith("lora_unet_") for name in factors)
    assert shown["What it is"] == "a LoRA"
    assert shown["Names"] == "kohya (sd-scripts, LyCORIS)"
    assert shown["For"] == "SD 1.x (text 768 wide)"
    assert shown["Modules"] == f"{len(factors)}: {num_unet} in UNet, {len(factors) - num_unet} in text encoder"
    assert (num_unet, len(factors)) == (16 * 4 + 1, 16 * 4 + 1 + 12 * 4)
    known = len(factors) - 1
    assert shown["Of SD 1.x's"] == (
        f"{known} of {len(factors)} by name, {known} by shape as well; not: {NAME}_more"
    )  # fmt: skip
    assert (shown["Rank"], shown["Alpha"]) == ("1", "0.5; alpha / rank: 0.5")
    size = max(0.5 * 0.5 * one.product().norm().item() / 0.5 for one in factors.values())
    assert f"all numbers finite; largest {size:.3g} (norm)" in shown["Changes"]
    assert f"none at all in 1 of {len(factors)} modules" in shown["Changes"]
    assert shown["Trigger words"] == "photo of zwx dog"
    assert (shown["Trigger words (a.json)"], shown["Preferred strength"]) == ("zwx", "0.8")
    assert shown["Most frequent in captions"] == "outdoors, zwx dog"
    assert shown["Name in prompts"] == "zwx-dog"
    assert shown["Trained on"] == "dream?[31m.safetensors", "nothing of a file moves the terminal's cursor"
    assert (shown["Steps"], "UNet learning rate" in shown) == ("800", False)
    assert shown["Hash (AutoV3)"] == tensors_hash(path)[:12]
    assert shown["SHA-256"] == file_hash(path)
    assert done.stdout.endswith("\nIt can be used here.\n")


def test_sd15s_layers_are_those_of_the_dialect() -> None:
    layers = _layers_of(SD1)
    assert sum(name.startswith("lora_te_text_model_") for name in layers) == 72
    assert sum(name.startswith("lora_unet_") for name in layers) == 192 + 50 + 36 + 4
    assert layers[NAME] == (1280, 768)
    assert _layers_of(SD2)[NAME] == (1280, 1024)


def test_a_lora_of_sdxl_is_held_against_sdxls_layers(tmp_path: Path) -> None:
    shapes = {name: shape for name, shape in _layers_of(SDXL).items() if "attn2_to_k" in name or "mlp_fc1" in name}
    factors = {name: Factors(torch.ones(shape[0], 1), torch.ones(1, *shape[1:])) for name, shape in shapes.items()}
    rows = rows_of(written(tmp_path / "a.safetensors", kohya(factors)))
    assert rows["For"] == "SDXL (text 2048 wide)"
    assert rows["Modules"] == f"{len(shapes)}: 70 in UNet, 12 in text encoder, 32 in text encoder 2"
    assert rows["Of SDXL's"] == f"{len(shapes)} of {len(shapes)} by name, {len(shapes)} by shape as well"


def test_sdxls_second_text_encoder_has_its_projection() -> None:
    from dreambooth.formats.layout import SDXL
    from dreambooth.formats.lora_keys import UP, lora_key
    from dreambooth.models.inspection import _layers_of

    key = lora_key(f"lora_te2_text_projection{UP}")
    assert key is not None
    assert _layers_of(SDXL)[key.name] == (1280, 1280)


def test_a_lora_of_a_narrow_model_has_its_names_and_not_its_shapes(tiny_base_folder: Path, tmp_path: Path) -> None:
    base = load_base(str(tiny_base_folder))
    modules = layers_of(base)
    path = written(tmp_path / "a.safetensors", kohya(random_factors(base, modules, lambda number: 1 + number % 3)))
    rows, report = rows_of(path), inspect_file(path)
    assert report.what == "a LoCon (a LoRA with convolutions)"
    assert rows["For"] == "not said (text 16 wide)"
    assert rows["Of SD 1.x's"] == f"{len(modules)} of {len(modules)} by name, 0 by shape as well"
    assert rows["Rank"] == "1 to 3"
    assert rows["Alpha"] == "not in the file: the rank is meant; alpha / rank: 1"


def test_a_wrong_hash_in_the_header_is_told(tmp_path: Path) -> None:
    tensors = kohya(of_sd15("attn2_to_k"))
    path = written(tmp_path / "a.safetensors", tensors, {"sshs_model_hash": "e3b0c44298fc1c149afb"})
    assert rows_of(path)["Hash (AutoV3)"].endswith("(its header says e3b0c44298fc, which is another file's)")


ONE = torch.ones(2, 2)
FILES: dict[str, tuple[str, Tensors, str]] = {
    "a LoHa": ("a.safetensors", {f"{NAME}.hada_w1_a": ONE}, "a LoHa (LyCORIS)"),
    "an SDXL LoRA": ("a.safetensors", {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": ONE}, "a LoRA"),
    "NaN": ("a.safetensors", {f"{NAME}.lora_{side}.weight": ONE * torch.nan for side in ("up", "down")}, "a LoRA"),
    "an embedding": ("a.safetensors", {"emb_params": torch.ones(4, 768)}, "an embedding (textual inversion), a word"),
    "a VAE": ("a.safetensors", {"decoder.conv_in.weight": ONE}, "a VAE alone"),
    "a pickled LoHa": ("a.pt", {f"{NAME}.hada_w1_a": ONE}, "a LoHa (LyCORIS)"),
    "anything": ("a.safetensors", {"x": ONE}, "a file of weights of an unknown kind"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_cannot_be_used_is_named_and_why(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, tensors, what = FILES[name]
    path = tmp_path / file
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        written(path, tensors)
    assert main(["inspect", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"  {what}" in shown
    assert "\n\n" in shown
    assert "It can be used here" not in shown


def test_what_is_no_file_of_weights_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.safetensors").write_text("<!doctype html><html>")
    for name, told in (("a.safetensors", "is a web page"), ("b.safetensors", "is not there")):
        assert main(["inspect", str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert told in error
        assert "Traceback" not in error


def test_a_whole_model_and_its_folder(tiny_base_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    assert main(["convert", str(tiny_base_folder), str(out)]) == 0
    report = inspect_file(out)
    assert (report.what, report.problem) == ("a whole model of Stable Diffusion 1.x, in one file", "")
    assert "UNet 686 tensors, VAE 248 tensors" in dict(report.rows)["Parts"]
    assert inspect_file(tiny_base_folder).what == "a diffusers folder of Stable Diffusion 1.x"


def test_texts_that_are_no_json_break_nothing(tmp_path: Path) -> None:
    for number, text in enumerate(("{", "[]", '{"a": 1}', '{"a": {"b": "x"}}', "null", '{"a": {"b": 1e999}}')):
        path = written(tmp_path / f"{number}.safetensors", kohya(of_sd15(NAME)),
                       {"ss_tag_frequency": text})  # fmt: skip
        (tmp_path / f"{number}.json").write_text(text)
        assert "Most frequent in captions" not in rows_of(path)
