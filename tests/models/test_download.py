"""Bases from a Hub on this machine, by the real client: each refusal has its own sentence, and the cache is enough."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dreambooth.models.download import missing_files
from tests.harness.local_hub import environment_of, local_hub
from tests.harness.tiny import tiny_base

LOAD = """
import sys
from dreambooth.errors import BaseModelError
from dreambooth.models.base import load_base
for token, name in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        base = load_base(name, token=token or None)
        print(name, token, "|", "loaded", base.card.source, base.card.licence, len(base.tokenizer))
    except BaseModelError as error:
        print(name, token, "|", error.what, error.why, error.todo)
"""


def asked(address: str, cache: Path, *pairs: str, offline: bool = False) -> list[str]:
    """Load bases in a child with a cache of its own, as (token, name) pairs; return a line for each."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *pairs], env=environment_of(address, cache, offline=offline),
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_each_refusal_has_its_own_sentence(tiny_base_folder: Path, tmp_path: Path) -> None:
    with local_hub(tiny_base_folder) as hub:
        lines = asked(
            hub.address, tmp_path / "cache", "", "somebody/gated", "hf_known", "somebody/gated",
            "", "somebody/tnyi", "hf_known", "somebody/tnyi", "hf_unknown", "somebody/tiny",
            "", "runwayml/stable-diffusion-v1-5", "", "no such name",
        )  # fmt: skip
    words = (
        "is gated, and no Hub token is set", "has no access to it", "mistyped, or it is private and no HF_TOKEN is set",
        "mistyped, or this HF_TOKEN cannot access it", "does not accept this HF_TOKEN",
        "Use stable-diffusion-v1-5/stable-diffusion-v1-5", "a Hub id has the form owner/name",
    )  # fmt: skip
    assert len(lines) == len(words)
    for line, expected in zip(lines, words, strict=True):
        assert expected in line
    assert "hf_" not in "".join(line.split("|")[1] for line in lines)


def test_what_was_loaded_once_is_loaded_without_a_network(tiny_base_folder: Path, tmp_path: Path) -> None:
    served = Path(shutil.copytree(tiny_base_folder, tmp_path / "served"))
    (served / "README.md").write_text("---\ntags:\n- x\nlicense: creativeml-openrail-m\n---\n# A model\n")
    (served / "card.json").unlink()
    cache = tmp_path / "cache"
    with local_hub(served) as hub:
        (first,) = asked(hub.address, cache, "", "somebody/tiny")
        address = hub.address
    assert "loaded somebody/tiny creativeml-openrail-m" in first
    assert asked(address, cache, "", "somebody/tiny") == [first]  # the Hub is down
    assert asked(address, cache, "", "somebody/tiny", offline=True) == [first]
    (vocabulary,) = cache.rglob("vocab.json")
    (weights,) = cache.rglob("unet/*.safetensors")
    (cache.rglob("tokenizer.json").__next__()).unlink()
    vocabulary.unlink()
    weights.unlink()
    line, other = asked(address, cache, "", "somebody/tiny", "", "somebody/other", offline=True)
    assert "only partly in the local cache" in line
    assert "unet/diffusion_pytorch_model" in line
    assert "HF_HUB_OFFLINE" in line
    assert "not in the local cache" in other
    assert "HF_HUB_OFFLINE prevents" in other


def test_a_repository_from_before_safetensors_and_one_that_lacks_a_part(tiny_base_folder: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    served = Path(shutil.copytree(tiny_base_folder, tmp_path / "served"))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"),
                       ("text_encoder", "pytorch_model")):  # fmt: skip
        (file,) = (served / part).glob("*.safetensors")
        torch.save(load_file(file), served / part / f"{stem}.bin")
        file.unlink()
    with local_hub(served) as hub:
        assert " loaded somebody/tiny" in asked(hub.address, tmp_path / "cache", "", "somebody/tiny")[0]
        (served / "vae" / "diffusion_pytorch_model.bin").unlink()
        (line,) = asked(hub.address, tmp_path / "fresh", "", "somebody/tiny")
    assert "not a complete diffusers model. Missing: vae/diffusion_pytorch_model.safetensors" in line


def test_a_repository_that_has_fp16_alone_is_taken_without_being_asked_for(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    served = Path(shutil.copytree(tiny_base_folder, tmp_path / "served"))
    for file in [*served.glob("*/diffusion_pytorch_model.safetensors"), *served.glob("*/model.safetensors")]:
        file.rename(file.with_suffix(".fp16.safetensors"))
    with local_hub(served) as hub:
        assert "| loaded somebody/tiny" in asked(hub.address, tmp_path / "cache", "", "somebody/tiny")[0]
        address = hub.address
    assert "| loaded somebody/tiny" in asked(address, tmp_path / "cache", "", "somebody/tiny", offline=True)[0]


def test_a_run_on_a_repository_of_fp16_alone_is_trained_and_converted(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """From the shell: its id as base, one step, and the file of that step."""
    served = Path(shutil.copytree(tiny_base_folder, tmp_path / "served"))
    for file in [*served.glob("*/diffusion_pytorch_model.safetensors"), *served.glob("*/model.safetensors")]:
        weights = {
            name: weight.half() if weight.is_floating_point() else weight for name, weight in load_file(file).items()
        }
        file.unlink()
        halves = {name: weight.half() if weight.is_floating_point() else weight for name, weight in weights.items()}
        save_file(halves, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
    run, out = str(tmp_path / "run"), str(tmp_path / "model.safetensors")
    train = [
        "train", "--pretrained_model_name_or_path", "somebody/tiny", "--instance_data_dir", str(photos),
        "--instance_prompt", "photo of zwx dog", "--output_dir", run, "--resolution", "32", "--max_train_steps", "1",
        "--num_probe_images", "0",
    ]  # fmt: skip
    with local_hub(served) as hub:
        for command in (train, ["convert", run, out]):
            done = subprocess.run(
                [sys.executable, "-m", "dreambooth", *command], env=environment_of(hub.address, tmp_path / "cache"),
                capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    assert len(load_file(out)) == 686 + 248 + 2 * 16 + 5, "the UNet's, the VAE's, and two layers of a text encoder"


@pytest.mark.parametrize("place", ["", "vae"])
def test_a_vae_of_a_repository_takes_the_bases_place(tiny_base_folder: Path, tmp_path: Path, place: str) -> None:
    """A repository that is a VAE, and one that holds it in a folder, by the real client."""
    other = tiny_base(tmp_path / "other", seed=1)
    shutil.copytree(other / "vae", tmp_path / "served" / place)
    program = """
import sys
from safetensors.torch import load_file
from dreambooth.models.base import load_base
wanted = load_file(sys.argv[2])
found = load_base(sys.argv[1], vae="somebody/tiny").vae.state_dict()
print(found.keys() == wanted.keys() and all((found[name] == wanted[name]).all() for name in wanted))
"""
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    with local_hub(tmp_path / "served") as hub:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tiny_base_folder), str(weights)],
            env=environment_of(hub.address, tmp_path / "cache"), capture_output=True, text=True, timeout=180,
        )  # fmt: skip
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize(
    "gone", ["model_index.json", "unet/config.json", "tokenizer", "text_encoder/model.safetensors"]
)
def test_what_a_folder_lacks_is_named(tiny_base_folder: Path, tmp_path: Path, gone: str) -> None:
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    assert missing_files(folder, None) == []
    shutil.rmtree(folder / gone) if (folder / gone).is_dir() else (folder / gone).unlink()
    lacking = ["tokenizer/vocab.json", "tokenizer/merges.txt"] if gone == "tokenizer" else [gone]
    assert missing_files(folder, None) == lacking
    assert missing_files(folder, None, given=("tokenizer",)) == [name for name in lacking if gone != "tokenizer"]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in missing_files(folder, "fp16")
