"""A run as a LoRA: which weights it holds, what it lacks, and that other software reads the same from the file."""

import hashlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dreambooth.commands.cli import main
from dreambooth.formats.lora_keys import ALPHA, DOWN, UP, lora_modules
from dreambooth.models.base import load_base
from dreambooth.models.lora_file import read_lora
from dreambooth.models.low_rank import factors, spectrum
from dreambooth.models.sd import SD15_CONFIGS

LEARNING = [
    "--resolution=32", "--train_batch_size=1", "--max_train_steps=3", "--train_text_encoder", "--learning_rate=1e-2",
    "--seed=7", "--save_precision=fp32", "--mixed_precision=no", "--num_probe_images=0", "--gauge_interval=0",
    "--save_sample_prompt=photo of zwx dog", "--n_save_sample=1", "--save_infer_steps=1",
]  # fmt: skip


@pytest.fixture
def run(tiny_base_folder: Path, photos: Path, tmp_path: Path) -> Path:
    """Train the tiny base from the command line, and return the run's folder."""
    flags = [f"--pretrained_model_name_or_path={tiny_base_folder}", f"--instance_data_dir={photos}",
             "--instance_prompt=photo of zwx dog", f"--output_dir={tmp_path / 'run'}"]  # fmt: skip
    assert main(["train", *flags, *LEARNING]) == 0
    return tmp_path / "run"


def step_of_low_rank(base: Path, folder: Path, rank: int) -> Path:
    """Return a step whose every LoRA module has changed by a product of this rank, and nothing else."""
    step = Path(shutil.copytree(base, folder / "run" / "4"))
    (step / "args.json").write_text(json.dumps({"pretrained_model_name_or_path": str(base)}))
    generator = torch.Generator().manual_seed(0)
    for part in ("unet", "text_encoder"):
        (file,) = (step / part).glob("*.safetensors")
        weights = load_file(file)
        for module in lora_modules({part: weights}, "all"):
            weight = weights[module.weight]
            matrix = weight.flatten(1)
            up, down = (
                torch.randn(size, generator=generator) for size in ((len(matrix), rank), (rank, matrix[0].numel()))
            )
            weights[module.weight] = weight + 0.01 * (up @ down).reshape(weight.shape)
        save_file(weights, file, {"format": "pt"})
    return step


def names_of(part: str) -> list[str]:
    """Return the names of the weights of SD 1.5's own part, from its configuration alone."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        if part == "unet":
            return list(UNet2DConditionModel(**SD15_CONFIGS["unet"]).state_dict())
        return list(CLIPTextModel(CLIPTextConfig(**SD15_CONFIGS["text_encoder"])).state_dict())


def test_sd15_has_the_modules_of_the_dialect() -> None:
    """192 + 72 modules by default and 350 with convolutions, three tensors each, under sd-scripts' names."""
    names = {part: names_of(part) for part in ("unet", "text_encoder")}
    found = {targets: lora_modules(names, targets) for targets in ("attention", "linear", "all")}
    assert {targets: len(modules) for targets, modules in found.items()} == {
        "attention": 128 + 48, "linear": 192 + 72, "all": 192 + 72 + 50 + 36,
    }  # fmt: skip
    assert len({module.name + end for module in found["all"] for end in (DOWN, UP, ALPHA)}) == 1050
    in_file = {module.name for module in found["all"]}
    assert {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_up_blocks_3_attentions_2_proj_in",
        "lora_unet_up_blocks_1_resnets_0_conv_shortcut",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
    } <= in_file
    assert not [name for name in in_file if "conv_in" in name or "time_embedding" in name or "norm" in name]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (8, 5, 3, 3), (7, 7, 1, 1)])
def test_factors_are_the_best_of_their_rank(shape: tuple[int, ...]) -> None:
    change = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(change.flatten(1).double())
    found = spectrum(change, 4)
    assert torch.allclose(found.energies, values.square(), rtol=1e-9, atol=1e-12)
    pair = factors(change, found, 4)
    assert pair.product().shape == change.shape
    assert float((change - pair.product()).norm()) == pytest.approx(float(values[4:].square().sum().sqrt()), rel=1e-5)
    assert float(pair.up.norm()) == pytest.approx(float(pair.down.norm()), rel=1e-4), "half precision holds both alike"


@pytest.mark.parametrize(("precision", "limit"), [("fp32", 1e-5), ("fp16", 1e-3)])
def test_a_change_of_low_rank_comes_back(
    tiny_base_folder: Path, tmp_path: Path, precision: str, limit: float, capsys: pytest.CaptureFixture[str]
) -> None:
    step, out = step_of_low_rank(tiny_base_folder, tmp_path, 3), tmp_path / "dog.safetensors"
    command = ["convert", str(step), str(out), "--as", "lora", "--rank", "3", "--lora_targets", "all"]
    assert main([*command, "--precision", precision]) == 0
    told = capsys.readouterr().out
    assert "rank 3" in told
    assert "lacks 0% of the change of the weights, and 0% of the change of the UNet's predictions" in told
    before, taught = load_base(str(tiny_base_folder)), load_base(str(step))
    found = read_lora(out).factors
    for module in lora_modules({part: getattr(taught, part).state_dict() for part in ("unet", "text_encoder")}, "all"):
        weights = [getattr(base, module.part).state_dict()[module.weight] for base in (taught, before)]
        change = weights[0] - weights[1]
        assert float((found.pop(module.name).product() - change).norm() / change.norm()) < limit, module.name
    assert found == {}


def test_diffusers_reads_the_same_weights_from_it(run: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    """Fused by diffusers and peft, of different ranks and with convolutions: base + up . down of our own reader."""
    from diffusers import StableDiffusionPipeline

    out = tmp_path / "dog.safetensors"
    command = ["convert", str(run), str(out), "--as", "lora", "--max_error", "0.4", "--lora_targets", "all"]
    assert main([*command, "--precision", "fp32"]) == 0
    found = read_lora(out).factors
    assert len({one.down.shape[0] for one in found.values()}) > 1
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_folder, safety_checker=None)
    pipeline.load_lora_weights(out)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    before = load_base(str(tiny_base_folder))
    for part in ("unet", "text_encoder"):
        own, plain = getattr(pipeline, part).state_dict(), getattr(before, part).state_dict()
        own = {name.replace(".base_layer", ""): weight for name, weight in own.items()}
        for module in lora_modules({part: plain}, "all"):
            wanted = plain[module.weight] + found[module.name].product()
            assert torch.allclose(own[module.weight], wanted, atol=1e-5), module.name


def test_the_header_says_what_it_is_and_hashes_the_tensors(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "zwx-dog-3.safetensors"
    assert main(["convert", str(run), str(out), "--as", "lora", "--rank", "2", "--lora_targets", "all"]) == 0
    content = out.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    assert header["sshs_model_hash"] == hashlib.sha256(content[8 + length :]).hexdigest()
    expected = {
        "ss_output_name": "zwx-dog-3", "ss_network_dim": "2", "ss_network_alpha": "2.0", "ss_v2": "False",
        "ss_base_model_version": "sd_v1", "ss_network_module": "networks.lora",
        "modelspec.architecture": "stable-diffusion-v1/lora", "modelspec.trigger_phrase": "photo of zwx dog",
    }  # fmt: skip
    assert {name: header.get(name) for name in expected} == expected
    assert json.loads(header["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "2.0"}
    assert str(tmp_path) not in json.dumps(header)
    linear = tmp_path / "linear.safetensors"
    assert main(["convert", str(run), str(linear), "--as", "lora"]) == 0
    with safe_open(linear, "pt") as opened:
        assert json.loads(opened.metadata()["ss_network_args"]) == {}, "1 x 1 projections are no convolutions here"
    weights = load_file(out)
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    assert {float(weight) for name, weight in weights.items() if name.endswith(ALPHA)} == {2.0}
    again = tmp_path / "again" / out.name
    again.parent.mkdir()
    assert main(["convert", str(run), str(again), "--as", "lora", "--rank", "2", "--lora_targets", "all"]) == 0
    assert again.read_bytes() == content
    about = json.loads(out.with_suffix(".json").read_text())
    assert (about["activation text"], about["sd version"]) == ("photo of zwx dog", "SD1")
    assert out.with_suffix(".png").read_bytes() == (run / "3" / "samples" / "0.png").read_bytes()


def test_a_size_is_kept_and_a_larger_one_lacks_less(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking: list[int] = []
    for max_mb in (0.2, 0.3, 0.5):
        out = tmp_path / f"mb-{int(max_mb * 100)}.safetensors"
        capsys.readouterr()
        assert (
            main(["convert", str(run), str(out), "--as", "lora", "--max_mb", str(max_mb), "--lora_targets", "all"]) == 0
        )
        assert out.stat().st_size <= max_mb * 1e6
        told = capsys.readouterr().out
        lacking.append(int(told.split("It lacks ")[1].split("%")[0]))
        assert "Not in it, as a share of the squared change: " in told
        assert "embeddings" in told
    assert lacking == sorted(lacking, reverse=True)
    assert lacking[0] > lacking[-1]


def test_the_text_encoders_part_is_there_or_told_of(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both, unet = tmp_path / "both.safetensors", tmp_path / "unet.safetensors"
    assert main(["convert", str(run), str(both), "--as", "lora"]) == 0
    assert "The text encoder was not changed" not in capsys.readouterr().out
    assert main(["convert", str(run), str(unet), "--as", "lora", "--text_encoder_strength", "0"]) == 0
    assert "The text encoder was not changed" in capsys.readouterr().out
    assert any(name.startswith("lora_te_text_model_") for name in load_file(both))
    assert not any(name.startswith("lora_te_") for name in load_file(unet))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["dog.ckpt", "--as", "lora"], "LoRA files are .safetensors"),
        (["a dog.safetensors", "--as", "lora"], "The name is used in prompts"),
        (["dog.safetensors", "--as", "lora", "--rank", "0"], "rank: is 0: it must be 1 to 320"),
        (["dog.safetensors", "--as", "lora", "--max_mb", "0.01"], "No LoRA is that small"),
        (["dog.safetensors", "--as", "lora", "--max_error", "0.001"], "No LoRA of these targets is that close"),
        (["dog.safetensors", "--rank", "8"], "applies only with --as lora"),
        (["dog.safetensors", "--as", "lora", "--base", "starter"], "is not of the base that its settings name"),
    ],
)
def test_what_cannot_be_a_lora_is_told(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], why: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["convert", str(run), *arguments]) == 1
    assert why in capsys.readouterr().err
    assert not list(tmp_path.glob("*.safetensors")) + list(tmp_path.glob("*.ckpt"))


def test_a_step_that_learned_nothing_and_a_base_that_is_gone_are_told(
    tiny_base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    step, out = Path(shutil.copytree(base, tmp_path / "run" / "4")), str(tmp_path / "dog.safetensors")
    (step / "args.json").write_text(json.dumps({"pretrained_model_name_or_path": str(base)}))
    assert main(["convert", str(step), out, "--as", "lora"]) == 1
    assert "has learned nothing that a LoRA can hold" in capsys.readouterr().err
    (file,) = (step / "unet").glob("*.safetensors")
    weights: dict[str, Any] = {name: weight + 0.01 for name, weight in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    shutil.rmtree(base)
    assert main(["convert", str(step), out, "--as", "lora"]) == 1
    capsys.readouterr()
    (step / "args.json").unlink()
    assert main(["convert", str(step), out, "--as", "lora"]) == 1
    assert "It contains no args.json" in capsys.readouterr().err
    assert main(["convert", str(step), out, "--as", "lora", "--base", str(tiny_base_folder)]) == 0
