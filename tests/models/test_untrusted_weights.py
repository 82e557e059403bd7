"""Weights from anywhere: nothing in them is run; a refusal names what would have been, and how to resave the file."""

import ast
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from dreambooth.errors import BaseModelError
from dreambooth.models import base as base_module
from dreambooth.models import sd_file
from dreambooth.models.base import load_base, read_card
from dreambooth.models.weights import read_weights
from tests.harness.corpus_weights import broken_safetensors, gadgets, malicious, safetensors, tensor, torch_zip

ROOT = Path(__file__).resolve().parents[2]


def test_no_hostile_file_of_weights_runs_anything(tmp_path: Path) -> None:
    """S4: 14 gadgets x protocols 0-5, zip, legacy, renamed, by hand, polyglots: the canary never fires, all refused."""
    canary = tmp_path / "canary"
    files = [*malicious(canary), *broken_safetensors()]
    assert len(files) == len({file.name for file in files}) == 166
    wrong = []
    for file in files:
        path = tmp_path / file.name
        path.write_bytes(file.content)
        with warnings.catch_warnings(record=True):
            try:
                load_base(str(path))
                wrong.append(f"{file.name}: was read")
            except BaseModelError as error:
                if not re.search(file.reason, str(error)):
                    wrong.append(f"{file.name}: {error}")
                if not (error.what and error.why and error.todo and "weights_only" not in str(error)):
                    wrong.append(f"{file.name}: no reason: {error}")
                if "would run" in error.why and "safetensors" not in error.todo:
                    wrong.append(f"{file.name}: not told how to resave it")
        path.unlink()
        if canary.exists():
            wrong.append(f"{file.name}: THE CANARY FIRED")
            canary.unlink()
    assert not wrong, "\n".join(wrong)


def test_the_gadgets_would_fire_where_a_pickle_is_let_run(tmp_path: Path) -> None:
    """S4, control: every gadget makes its canary under a plain unpickling, so their silence above means something."""
    for name in gadgets(tmp_path / "canary"):
        folder = tmp_path / name
        folder.mkdir()
        canary = folder / "canary"
        content = pickle.dumps(gadgets(canary)[name])
        assert not canary.exists()
        (folder / "gadget.pkl").write_bytes(content)
    code = """
import pickle, sys, pathlib
for folder in pathlib.Path(sys.argv[1]).iterdir():
    if folder.is_dir():
        try:
            pickle.loads((folder / "gadget.pkl").read_bytes())
        except Exception as error:
            print(folder.name, repr(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    silent = [folder.name for folder in tmp_path.iterdir() if folder.is_dir() and not (folder / "canary").exists()]
    assert silent == [], done.stdout + done.stderr


def test_pickles_are_opened_at_one_place_as_plain_tensors() -> None:
    """S4: exactly one torch.load in dreambooth/, with weights_only=True, and no other reader of pickles at all."""
    loads, others = [], []
    for path in (ROOT / "dreambooth").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                if name == "torch.load":
                    loads.append((path.name, {word.arg: ast.unparse(word.value) for word in node.keywords}))
                if name in (
                    "pickle.load",
                    "pickle.loads",
                    "pickle.Unpickler",
                    "joblib.load",
                    "torch.jit.load",
                    "dill.load",
                ):
                    others.append(f"{path}:{node.lineno}")
                allow_pickle = [word for word in node.keywords if word.arg in ("allow_pickle", "trust_remote_code")]
                others += [f"{path}:{node.lineno} {word.arg}" for word in allow_pickle]
                if name.endswith(".from_pretrained") and not _safe_from_pretrained(name, node):
                    others.append(f"{path}:{node.lineno} {name} without use_safetensors=True")
    assert [name for name, _ in loads] == ["weights.py"]
    assert loads[0][1]["weights_only"] == "True"
    assert others == []


def _safe_from_pretrained(name: str, node: ast.Call) -> bool:
    if any(kind in name for kind in ("Tokenizer", "Config", "Processor")):  # these read JSON and text
        return True
    return any(word.arg == "use_safetensors" and ast.unparse(word.value) == "True" for word in node.keywords)


@pytest.fixture
def old_folder(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny base as diffusers wrote it in 2022: every part a pickle, the VAE in old names."""
    import torch
    from safetensors.torch import load_file

    from dreambooth.formats.ldm import OLD_VAE_ATTENTION

    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "old"))
    stems = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "pytorch_model"}
    for part, stem in stems.items():
        (file,) = (folder / part).glob("*.safetensors")
        weights = load_file(file)
        if part == "vae":
            for old, new in OLD_VAE_ATTENTION:
                weights = {k.replace(f".attentions.0.{new}.", f".attentions.0.{old}."): v for k, v in weights.items()}
        if part == "text_encoder":
            weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        torch.save(weights, folder / part / f"{stem}.bin")
        file.unlink()
    return folder


def test_a_folder_from_before_safetensors_is_read_as_plain_tensors(old_folder: Path, tiny_base_folder: Path) -> None:
    """S4: what the seed notebook saved in 2022 is opened too, and through the same one place."""
    import torch

    old, new = load_base(str(old_folder)), load_base(str(tiny_base_folder))
    for part in ("unet", "text_encoder", "vae"):
        read, given = getattr(old, part).state_dict(), getattr(new, part).state_dict()
        assert read.keys() == given.keys()
        assert all(torch.equal(read[name], given[name]) for name in read)


@pytest.mark.parametrize(("part", "stem"), [
    ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model"),
])  # fmt: skip
def test_a_program_in_a_part_of_an_old_folder_is_refused_by_name(old_folder: Path, part: str, stem: str) -> None:
    """S4: the libraries are never let near a pickle, of whichever part."""
    canary = old_folder.parent / "canary"
    content = pickle.dumps(gadgets(canary)["system"], protocol=2)
    (old_folder / part / f"{stem}.bin").write_bytes(torch_zip(content))
    with pytest.raises(BaseModelError, match=r"would run (posix|os)\.system"):
        load_base(str(old_folder))
    assert not canary.exists()


def test_a_tensor_that_claims_more_than_any_memory_is_refused_before_it_is_copied(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4: a tensor of 2^50 numbers over four bytes costs nothing in a file, and must cost nothing here."""
    import torch

    from dreambooth.export.single_file import convert

    monkeypatch.setattr(base_module, "starter_folder", lambda: tiny_base_folder)
    monkeypatch.setattr(sd_file, "starter_folder", lambda: tiny_base_folder)
    whole = read_weights(convert(tiny_base_folder, tmp_path / "model.ckpt"))
    for name in ("model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.bias"):
        torch.save({"state_dict": whole | {name: torch.zeros(1).expand(2**50)}}, tmp_path / "huge.ckpt")
        with pytest.raises(BaseModelError, match=r"not a complete Stable Diffusion model"):
            load_base(str(tmp_path / "huge.ckpt"))


@pytest.mark.parametrize("content", [
    {"state_dict": [1, 2]}, {"state_dict": None}, [], 7, "text", {1: 2}, {},
    {"model.diffusion_model.input_blocks.0.0.weight": 0}, {"state_dict": {"state_dict": {}}},
])  # fmt: skip
def test_a_checkpoint_of_anything_but_named_tensors_is_no_model(tmp_path: Path, content: Any) -> None:
    """S4: odd contents are refused in words."""
    import torch

    torch.save(content, tmp_path / "odd.ckpt")
    with pytest.raises(BaseModelError, match="not a complete model"):
        load_base(str(tmp_path / "odd.ckpt"))


@pytest.mark.parametrize("shape", [[], [0], [1], [1, 9], [0, 0, 0, 0], [320, 9, 3, 3], [320, 4, 3, 3]])
def test_tensors_of_odd_shapes_are_no_model(tmp_path: Path, shape: list[int]) -> None:
    """S4: the shapes that decide what a file is may themselves be anything."""
    size = 4
    for side in shape:
        size *= side
    key = "model.diffusion_model.input_blocks.0.0.weight"
    (tmp_path / "odd.safetensors").write_bytes(safetensors({key: tensor(0, size, shape)}, bytes(size)))
    with pytest.raises(BaseModelError):
        load_base(str(tmp_path / "odd.safetensors"))


@pytest.mark.parametrize("card", [
    "{", "[]", "7", "null", '{"native_px": "big"}', '{"native_px": 10000000000}', '{"native_px": true}',
    '{"recipe": {"output_dir": "/tmp/elsewhere"}}', '{"recipe": {"concepts": []}}', '{"recipe": [1]}',
    '{"recipe": {"pretrained_vae_name_or_path": "evil/vae"}}', '{"recipe": {"logging_dir": "../../x"}}',
    '{"recipe": {"learning_rate": "fast"}}', '{"recipe": {"unknown": 1}}', '{"unknown": 1}', "[" * 100_000,
])  # fmt: skip
def test_a_hostile_card_is_refused_and_sets_no_path(tiny_base_folder: Path, tmp_path: Path, card: str) -> None:
    """S13: a base's card may set rates and steps, never where things are read from or written to."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    (folder / "card.json").write_text(card)
    with pytest.raises(BaseModelError, match=r"card\.json cannot be used"):
        read_card(str(folder))


@pytest.mark.parametrize("name", [
    "", "\0", "x" * 5000, "a/" * 3000, "../../etc/passwd", "/etc/passwd", "~/.ssh/id_rsa", "-rf", "$(touch x)", "a b/c",
    "https://evil.example/model", "file:///etc/passwd", "owner/name/more", "\u202e/x", "a\nb/c", "owner/..", "//x",
])  # fmt: skip
def test_a_hostile_name_of_a_base_is_refused_in_words(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """S10, S12: no name of a base makes anything but a sentence."""
    monkeypatch.chdir(tmp_path)
    assert read_card(name) is not None
    with pytest.raises(BaseModelError):
        load_base(name, models_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
