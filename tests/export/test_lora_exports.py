"""What leaves a run that trained a LoRA: the file under another name, a merged checkpoint, another rank."""

import hashlib
import json
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.commands.cli import main
from dreambooth.export import disk_room, hub
from dreambooth.export.archive import zip_model
from dreambooth.export.merged import folder_at_strength
from dreambooth.export.sizes import single_file_bytes
from dreambooth.formats.layout import lora_file
from dreambooth.formats.lora_keys import ALPHA, DOWN, UP
from dreambooth.models import base as base_module
from dreambooth.models import sd_file
from dreambooth.models.adapter import fitted, module_of, places_of
from dreambooth.models.base import load_base
from dreambooth.models.lora_file import read_lora
from dreambooth.models.strength import WHOLE, Strength
from dreambooth.scoring import bleed
from tests.harness.tiny import tiny_base
from tests.harness.trained_lora import PROMPT, lora_run

Convert = Callable[..., str]


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_run(tmp_path_factory.mktemp("lora"), tiny_base_folder)


@pytest.fixture
def tiny_starter(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the tiny base in the starter's place, whose configuration narrow single files are read by."""
    for module in (base_module, sd_file):
        monkeypatch.setattr(module, "starter_folder", lambda: tiny_base_folder)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of that run."""
    return Path(shutil.copytree(trained, tmp_path / "zwx-dog"))


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Convert:
    """Return what converts from the command line and returns what was said, errors if it failed."""

    def converted(*arguments: object, fails: bool = False) -> str:
        capsys.readouterr()
        code = main(["convert", *map(str, arguments)])
        told = capsys.readouterr()
        assert code == int(fails), told.err
        return told.err if fails else told.out

    return converted


def step_file(run: Path) -> Path:
    file = lora_file(run / "3")
    assert file is not None
    return file


def merged_by_hand(base: str, file: Path, unet: float = 1.0, text_encoder: float = 1.0) -> Any:
    """Return a base with the factors of a file added to its weights."""
    found = load_base(base)
    for one in fitted(found, read_lora(file).factors).modules:
        amount = unet if one.place.part == "unet" else text_encoder
        with torch.no_grad():
            module_of(found, one.place).weight.add_(amount * one.factors.product())
    return found


# As a LoRA -----------------------------------------------------------------------------------------------------------


def test_a_step_that_is_a_lora_is_written_as_one(run: Path, tmp_path: Path, convert: Convert) -> None:
    out = tmp_path / "my-dog.safetensors"
    told = convert(run, out)
    source = load_file(step_file(run))
    written = load_file(out)
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)
    assert f"a LoRA of {len(source) // 3} modules, all that its base has for these targets, rank 3" in told
    assert "It is exactly the run's." in told
    with safe_open(out, "pt") as opened:
        assert opened.metadata()["ss_output_name"] == "my-dog"
    about = json.loads(out.with_suffix(".json").read_text())
    assert (about["activation text"], about["preferred weight"]) == (PROMPT, 1.0)
    assert out.with_suffix(".png").read_bytes() == (run / "3" / "samples" / "0.png").read_bytes()
    half = tmp_path / "half.safetensors"
    told = convert(run, half, "--half")
    rounded = load_file(half)
    assert all(torch.equal(rounded[name], tensor.half()) for name, tensor in source.items())
    assert single_file_bytes(run / "3", 2) == pytest.approx(half.stat().st_size, rel=0.1)
    error = float(told.split("Rounding changed it by ")[1].split(" of what was learned")[0])
    assert 1e-5 < error < 1e-3


def test_strengths_are_folded_into_the_up_matrices(run: Path, tmp_path: Path, convert: Convert) -> None:
    out = tmp_path / "weak.safetensors"
    convert(run, out, "--unet_strength", "0.5", "--text_encoder_strength", "2")
    source, written = load_file(step_file(run)), load_file(out)
    assert written.keys() == source.keys()
    for name, tensor in source.items():
        amount = (0.5 if name.startswith("lora_unet_") else 2.0) if name.endswith(UP) else 1.0
        assert torch.equal(written[name], amount * tensor), name
    unet = tmp_path / "unet.safetensors"
    assert "The text encoder is not in it: its strength is 0." in convert(run, unet, "--text_encoder_strength", "0")
    assert {name.split("_")[1] for name in load_file(unet)} == {"unet"}
    assert "The file would be empty" in convert(
        run, unet, "--text_encoder_strength", "0", "--unet_strength", "0", fails=True
    )


def test_the_same_step_gives_the_same_bytes(run: Path, tmp_path: Path, convert: Convert) -> None:
    (tmp_path / "again").mkdir()
    outs = [tmp_path / "dog.safetensors", tmp_path / "again" / "dog.safetensors"]
    for out in outs:
        convert(run, out, "--half")
    assert outs[0].read_bytes() == outs[1].read_bytes()
    content = outs[0].read_bytes()
    assert str(tmp_path).encode() not in content
    assert b"photos" not in content


def header_of(file: Path) -> tuple[dict[str, str], list[str], bytes]:
    """Return a file's texts, the names of its tensors as they lie in it, and the bytes of these."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    texts = header.pop("__metadata__")
    return texts, sorted(header, key=lambda name: header[name]["data_offsets"]), content[8 + length :]


def test_the_header_tells_other_tools_of_the_training(run: Path, tmp_path: Path, convert: Convert) -> None:
    out = tmp_path / "my-dog.safetensors"
    convert(run, out)
    for file in (step_file(run), out):
        texts, names, data = header_of(file)
        expected = {
            "ss_base_model_version": "sd_v1", "ss_batch_size_per_device": "1", "ss_clip_skip": "1",
            "ss_learning_rate": "0.01", "ss_max_train_steps": "3", "ss_mixed_precision": "no",
            "ss_network_alpha": "3.0", "ss_network_dim": "3", "ss_network_module": "networks.lora",
            "ss_num_train_images": "2", "ss_output_name": file.stem, "ss_resolution": "(32, 32)",
            "ss_seed": "7", "ss_steps": "3", "ss_text_encoder_lr": "5e-05", "ss_unet_lr": "0.01", "ss_v2": "False",
            "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.01,betas=(0.9, 0.999),eps=1e-08)",
            "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.encoder_layer": "1",
            "modelspec.implementation": "diffusers", "modelspec.prediction_type": "epsilon",
            "modelspec.sai_model_spec": "1.0.1", "modelspec.title": f"{PROMPT}, step 3",
            "modelspec.trigger_phrase": PROMPT, "modelspec.usage_hint": f"Use: {PROMPT} <lora:{file.stem}:1>",
            "sshs_model_hash": hashlib.sha256(data).hexdigest(),
        }  # fmt: skip
        assert {name: texts.get(name) for name in expected} == expected
        assert [*texts] == sorted(texts)
        assert names == sorted(names)
        # InvokeAI takes the first of these that it meets for the family, and time_emb_proj for SDXL's.
        first = {part: next(place for place, name in enumerate(names) if part in name)
                 for part in ("attn2_to_k", "self_attn", "time_emb_proj")}  # fmt: skip
        assert first["time_emb_proj"] > max(first["attn2_to_k"], first["self_attn"])


def test_the_documents_lines_for_diffusers_run(
    run: Path, tiny_base_folder: Path, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "python.md").read_text("utf-8")
    (lines,) = [code for code in re.findall(r"```python\n(.*?)```", document, re.DOTALL) if "load_lora_weights" in code]
    convert(run, tmp_path / "zwx-dog.safetensors")
    monkeypatch.chdir(tmp_path)
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert base in lines
    exec(lines.replace(base, str(tiny_base_folder)), {})  # the document's own text
    with Image.open(tmp_path / "dog.png") as picture:
        assert picture.size == (32, 32)


def damage(file: Path, kind: str) -> None:
    weights = load_file(file)
    name = next(name for name in sorted(weights) if name.endswith(UP)).removesuffix(UP)
    if kind == "missing":
        weights = {key: tensor for key, tensor in weights.items() if not key.startswith(name + ".")}
    elif kind == "not finite":
        weights[name + UP][0, 0] = float("nan")
    elif kind == "too large":
        weights[name + DOWN][0, 0] = 1e6
    elif kind == "zero":
        weights = {key: tensor if key.endswith(ALPHA) else tensor * 0 for key, tensor in weights.items()}
    elif kind == "zero in fp16":
        weights[name + UP] *= 1e-12
    save_file(weights, file, {"modelspec.prediction_type": "epsilon"})


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("missing", "1 are missing, unknown or of another shape"),
        ("not finite", "not finite (NaN or infinity)"),
        ("too large", "--precision fp32"),
        ("zero", "This LoRA changes nothing"),
        ("zero in fp16", "is zero in this number format"),
    ],
)
def test_what_is_no_whole_lora_is_refused(
    run: Path, tmp_path: Path, convert: Convert, kind: str, why: str
) -> None:  # fmt: skip
    damage(step_file(run), kind)
    out = tmp_path / "dog.safetensors"
    assert "Its contents differ from what was saved" in convert(run, out, "--half", fails=True)
    shutil.rmtree(run / ".run" / "hashes")
    assert why in convert(run, out, "--half", fails=True)
    assert not list(tmp_path.glob("dog.*"))


def test_a_disk_without_room_is_told_before_it_is_written(
    run: Path, tmp_path: Path, convert: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_room, "free_bytes", lambda path: 1000)
    for more in ([], ["--rank", "2"], ["--as", "checkpoint"]):
        assert "The disk is too full for dog.safetensors" in convert(
            run, tmp_path / "dog.safetensors", *more, fails=True
        )
    assert {path.name for path in tmp_path.iterdir()} == {"zwx-dog"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["dog.ckpt"], "write a whole model with --as checkpoint"),
        (["a dog.safetensors"], "The name is used in prompts"),
        (["dog.safetensors", "--lora_targets", "attention"], "add --rank to write another LoRA"),
        (["dog.safetensors", "--as", "checkpoint", "--rank", "2"], "applies only with --as lora"),
        (["dog.safetensors", "--unet_strength", "3"], "it must be 0 to 2"),
    ],
)
def test_what_cannot_be_is_told(run: Path, tmp_path: Path, convert: Convert, arguments: list[str], why: str) -> None:
    assert why in convert(run, tmp_path / arguments[0], *arguments[1:], fails=True)
    assert {path.name for path in tmp_path.iterdir()} == {"zwx-dog"}


# At another rank -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-3)])
def test_extracted_at_its_rank_it_comes_back(
    run: Path, tmp_path: Path, convert: Convert, precision: str, limit: float
) -> None:
    out = tmp_path / "dog.safetensors"
    told = convert(run, out, "--as", "lora", "--rank", "3", "--precision", precision)
    assert "lacks 0% of the change of the weights, and 0% of the change of the UNet's predictions" in told
    own, found = read_lora(step_file(run)).factors, read_lora(out).factors
    assert own.keys() == found.keys()
    for name, one in own.items():
        change = one.product()
        assert float((found[name].product() - change).norm() / change.norm()) < limit, name
    smaller = tmp_path / "small.safetensors"
    assert "rank 1," in convert(run, smaller, "--rank", "1", "--lora_targets", "attention")
    assert all("attn" in name for name in load_file(smaller))


# As a checkpoint -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny_starter")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_merged_it_is_the_base_with_the_factors(
    run: Path, tiny_base_folder: Path, tmp_path: Path, convert: Convert, suffix: str
) -> None:
    out = tmp_path / f"whole{suffix}"
    told = convert(run, out, "--as", "checkpoint", "--unet_strength", "0.5")
    assert "all 971 tensors match the model. The LoRA was merged in fp32." in told
    assert "loses" not in told, "fp32 loses nothing"
    found, wanted = load_base(str(out)), merged_by_hand(str(tiny_base_folder), step_file(run), unet=0.5)
    for part in ("unet", "text_encoder", "vae"):
        weights = getattr(found, part).state_dict()
        assert all(torch.equal(weights[name], one) for name, one in getattr(wanted, part).state_dict().items()), part
    assert {path.name for path in tmp_path.iterdir()} == {"zwx-dog", out.name}


@pytest.mark.usefixtures("tiny_starter")
def test_what_the_number_format_loses_is_told(
    run: Path, tiny_base_folder: Path, tmp_path: Path, convert: Convert
) -> None:
    out = tmp_path / "half.safetensors"
    told = convert(run, out, "--as", "checkpoint", "--half")
    loss = float(told.split("Its number format loses ")[1].split("%")[0]) / 100
    wanted = merged_by_hand(str(tiny_base_folder), step_file(run))
    factors = read_lora(step_file(run)).factors
    lost = change = 0.0
    for place in places_of(wanted, "all", ("unet", "text_encoder")):
        weight = module_of(wanted, place).weight.detach()
        lost += float((weight.half().float() - weight).double().square().sum())
        change += float(factors[place.name].product().double().square().sum())
    assert loss == pytest.approx((lost / change) ** 0.5, abs=5e-5)
    weights = load_file(out)
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {torch.float16}
    found = load_base(str(out)).unet.state_dict()
    assert all(torch.equal(found[name], one.half().float()) for name, one in wanted.unet.state_dict().items())
    with safe_open(out, "pt") as opened:
        recipe = json.loads(opened.metadata()["dreambooth.recipe"])
    assert (recipe["method"], recipe["step"]) == ("lora", 3)
    assert str(tmp_path) not in json.dumps(recipe)


@pytest.mark.usefixtures("tiny_starter")
@pytest.mark.parametrize("kind", ["folder", "single file"])
def test_it_is_added_to_another_checkpoint(run: Path, tmp_path: Path, convert: Convert, kind: str) -> None:
    other = tiny_base(tmp_path / "other", seed=5)
    if kind == "single file":
        other = tmp_path / "other.safetensors"
        convert(tmp_path / "other", other)
    out = tmp_path / "whole.safetensors"
    convert(run, out, "--as", "checkpoint", "--base", other, "--precision", "fp32")
    found, wanted = load_base(str(out)), merged_by_hand(str(other), step_file(run))
    for part in ("unet", "text_encoder", "vae"):
        weights = getattr(found, part).state_dict()
        assert all(torch.equal(weights[name], one) for name, one in getattr(wanted, part).state_dict().items()), part
    with safe_open(out, "pt") as opened:
        recipe = json.loads(opened.metadata()["dreambooth.recipe"])
    assert recipe["strength"].endswith(", a LoRA added to another local model")


def test_another_family_is_refused(run: Path, tmp_path: Path, convert: Convert) -> None:
    other = tiny_base(tmp_path / "other", is_sd2=True)
    for kind in ("checkpoint", "lora"):
        told = convert(run, tmp_path / "dog.safetensors", "--as", kind, "--base", other, fails=True)
        assert 'The LoRA "zwx-dog" does not fit' in told or "does not fit" in told
        assert "another kind of model" in told


# Archives ------------------------------------------------------------------------------------------------------------


def test_its_archive_holds_the_file_its_sidecars_and_no_place(
    run: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dog.zip"
    assert main(["zip", str(run), str(out)]) == 0
    with zipfile.ZipFile(out) as opened:
        found = {name: opened.read(name) for name in opened.namelist()}
    name = step_file(run).stem
    assert found.keys() == {
        f"{name}.safetensors", f"{name}.json", f"{name}.png", "card.json", "args.json", "samples/0.png",
    }  # fmt: skip
    assert found[f"{name}.safetensors"] == step_file(run).read_bytes()
    assert json.loads(found[f"{name}.json"]) == {
        "activation text": PROMPT, "preferred weight": 1.0, "sd version": "SD1"
    }  # fmt: skip
    assert found[f"{name}.png"] == (run / "3" / "samples" / "0.png").read_bytes()
    for secret in (tiny_base_folder, tmp_path, run.parent, "photos"):
        assert not [key for key, content in found.items() if str(secret).encode() in content], secret
    back = tmp_path / "back"
    with zipfile.ZipFile(out) as opened:
        opened.extractall(back)
    assert lora_file(back) == back / f"{name}.safetensors", "it is a saved step still"
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(back), str(again), "--as", "checkpoint", "--base", str(tiny_base_folder)]) == 0


def test_its_archive_at_another_strength_is_a_lora_of_that_strength(run: Path, tmp_path: Path) -> None:
    with folder_at_strength(run / "3", Strength(0.5, 2.0), tmp_path / "weak.zip") as folder:
        out = zip_model(folder, tmp_path / "weak.zip")
    with zipfile.ZipFile(out) as opened:
        opened.extractall(tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"zwx-dog", "weak.zip", "back"}
    file = lora_file(tmp_path / "back")
    assert file is not None
    weak, source = read_lora(file).factors, read_lora(step_file(run)).factors
    for name, one in source.items():
        amount = 0.5 if name.startswith("lora_unet_") else 2.0
        assert torch.allclose(weak[name].product(), amount * one.product(), atol=1e-7), name
    with folder_at_strength(run / "3", WHOLE, tmp_path / "whole.zip") as folder:
        assert folder == run / "3"


# The base ------------------------------------------------------------------------------------------------------------

NEEDS_THE_BASE = {
    "checkpoint": ["convert", "RUN", "OUT", "--as", "checkpoint"],
    "another rank": ["convert", "RUN", "OUT", "--rank", "2"],
    "score": ["score", "RUN", "--probes", "1", "--offline"],
    "bleed": ["bleed", "RUN", "--offline"],
}


@pytest.mark.parametrize("command", NEEDS_THE_BASE)
@pytest.mark.parametrize("trouble", ["gone", "other weights"])
def test_a_base_that_is_gone_or_another_is_one_sentence_that_names_the_flag(
    run: Path, tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, trouble: str
) -> None:
    """As when a run was copied to another machine: `--base` says where the model is there."""
    base = tmp_path / "base"
    for file in ("card.json", "args.json"):
        text = (run / "3" / file).read_text()
        (run / "3" / file).write_text(text.replace(str(tiny_base_folder), str(base)))
    config = run / ".run" / "config.json"
    config.write_text(config.read_text().replace(str(tiny_base_folder), str(base)))
    if trouble == "other weights":
        tiny_base(base, seed=9)
    arguments = [one.replace("RUN", str(run)).replace("OUT", str(tmp_path / "dog.safetensors"))
                 for one in NEEDS_THE_BASE[command]]  # fmt: skip
    assert main(arguments) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in told
    assert "--base" in told
    assert not list((run / ".run" / "probes").glob("0/*.png")), "no picture of a base that is not the run's"
    assert main([*arguments, "--base", str(tiny_base_folder)]) == 0, capsys.readouterr().err


def test_a_push_makes_its_report_with_the_base_that_is_named(
    run: Path, tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(bleed, "NUM_PICTURES", 1)
    monkeypatch.setattr(bleed, "OTHERS", ())
    # There is no Hub to ask first; the upload itself then refuses.
    monkeypatch.setattr(hub, "refuse_push", lambda repo_id, token: None)
    base = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    card = base / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"is_toy": True}))
    assert main(["push", str(run), "ann/dog", "--base", str(base)]) == 1
    assert "No Hub token is set" in capsys.readouterr().err
    assert (run / ".run" / "bleed" / "3" / "bleed.json").is_file()


def test_as_a_lora_it_needs_no_base(run: Path, tiny_base_folder: Path, tmp_path: Path, convert: Convert) -> None:
    card = run / "3" / "card.json"
    card.write_text(card.read_text().replace(str(tiny_base_folder), str(tmp_path / "gone")))
    out = tmp_path / "dog.safetensors"
    assert "its base is not on this machine to count them" in convert(run, out)
    assert "all that its base has" in convert(run, out, "--base", tiny_base_folder)
