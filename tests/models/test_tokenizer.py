"""A tokenizer without a vocabulary, or with another base's, is refused: words would be read wrongly."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreambooth.errors import BaseModelError
from dreambooth.export.single_file import convert
from dreambooth.models import base as base_module
from dreambooth.models import sd_file
from dreambooth.models.base import load_base
from dreambooth.models.tokenizer import load_tokenizer
from tests.harness.local_hub import local_hub

LOAD = """
import sys
from dreambooth.errors import BaseModelError
from dreambooth.models.base import load_base
try:
    print("loaded", len(load_base(sys.argv[1], tokenizer=sys.argv[2] or None).tokenizer))
except BaseModelError as error:
    print(error)
"""


def test_a_training_with_a_misspelt_tokenizer_ends_before_its_first_step(
    tiny_base_folder: Path, photos: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "dreambooth", "train", "--pretrained_model_name_or_path", str(tiny_base_folder),
        "--tokenizer_name", "openai/clip-vit-large-pacth14", "--instance_data_dir", str(photos), "--instance_prompt",
        "photo of zwx dog", "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1", "--resolution", "32",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert 'The tokenizer "openai/clip-vit-large-pacth14" cannot be loaded.' in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "1").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.json", b"\xff\xfe"), ("vocab.json", b"null"), ("vocab.json", b"{}"), ("merges.txt", b"\xff\xfe"),
     ("merges.txt", b"#version: 0.2\none\n"), ("merges.txt", b"")],
)  # fmt: skip
def test_a_damaged_vocabulary_is_told(tiny_base_folder: Path, tmp_path: Path, name: str, content: bytes) -> None:
    """SD 1.5's own repository has these two files and no tokenizer.json."""
    base = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    (base / "tokenizer" / "tokenizer.json").unlink()
    load_base(str(base))
    (base / "tokenizer" / name).write_bytes(content)
    with pytest.raises(BaseModelError, match=r"vocab\.json or merges\.txt is damaged"):
        load_base(str(base))


@pytest.mark.parametrize(
    ("kept", "lacks"),
    [
        (["tokenizer_config.json"], "vocab.json and merges.txt"),
        (["vocab.json", "tokenizer_config.json"], "merges.txt"),
        (["merges.txt"], "vocab.json"),
        ([], "vocab.json and merges.txt"),
    ],
)
def test_a_folder_without_vocabulary_is_no_tokenizer(
    tiny_base_folder: Path, tmp_path: Path, kept: list[str], lacks: str
) -> None:
    """By itself, and as a base's own: transformers would give two tokens for either."""
    base = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    for file in (base / "tokenizer").iterdir():
        if file.name not in kept:
            file.unlink()
    with pytest.raises(BaseModelError, match=f"It lacks {lacks}"):
        load_tokenizer(str(base / "tokenizer"), None)
    with pytest.raises(BaseModelError, match="It lacks tokenizer/" + lacks.split()[0]):
        load_base(str(base))
    own = load_base(str(base), tokenizer=str(tiny_base_folder / "tokenizer")).tokenizer
    assert len(own) == len(load_tokenizer(str(tiny_base_folder), None)), "found in the subfolder"


def test_a_tokenizer_of_another_base_is_refused_with_both_sizes(tiny_base_folder: Path) -> None:
    own, other = (
        len(load_tokenizer(str(tiny_base_folder), None)),
        len(load_tokenizer(str(sd_file.starter_folder()), None)),
    )
    assert own != other
    with pytest.raises(BaseModelError, match=f"It has {other:,} tokens, and the text encoder {own:,}"):
        load_base(str(tiny_base_folder), tokenizer=str(sd_file.starter_folder()))


def test_a_single_file_without_network_says_that_a_tokenizer_is_needed(
    tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = convert(tiny_base_folder, tmp_path / "model.safetensors")
    starter = Path(shutil.copytree(tiny_base_folder, tmp_path / "starter"))
    vocabulary = json.loads((starter / "tokenizer" / "vocab.json").read_text())
    vocabulary.popitem()
    (starter / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    for module in (base_module, sd_file):
        monkeypatch.setattr(module, "starter_folder", lambda: starter)
    with pytest.raises(BaseModelError, match="clip-vit-large-patch14.*HF_HUB_OFFLINE.*--tokenizer_name"):
        load_base(str(file))
    assert len(load_base(str(file), tokenizer=str(tiny_base_folder / "tokenizer")).tokenizer) == len(vocabulary) + 1


def loaded(address: str, folder: Path, *arguments: str) -> str:
    environment: dict[str, Any] = os.environ | {
        "HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }  # fmt: skip
    command = [sys.executable, "-c", LOAD, *arguments]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=180, check=True)
    return done.stdout


def test_a_repositorys_tokenizer_is_found_in_its_subfolder_and_a_local_folder_never_asked_of_the_hub(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_base_folder, tmp_path / "base"))
    with local_hub(tiny_base_folder) as hub:
        assert loaded(hub.address, tmp_path, "base", "somebody/tiny") == loaded(hub.address, tmp_path, "base", "")
        assert hub.asked_paths
        hub.asked_paths.clear()
        shutil.rmtree(base / "text_encoder")
        assert '"base" cannot be loaded. It lacks text_encoder/config.json' in loaded(hub.address, tmp_path, "base", "")
        shutil.rmtree(base / "tokenizer")
        assert "cannot be loaded. It lacks vocab.json" in loaded(hub.address, tmp_path, "base", "base/unet")
        assert hub.asked_paths == []
