"""Models on a stand-in of the Hub, pushed by its real client: private, in place, never renamed, each refusal told."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from dreambooth.export.model_card import model_card
from dreambooth.export.single_file import convert
from tests.hub_stand_in import HubStandIn, Repository, hub_stand_in

WRITER, READER = "hf_ann_may_write", "hf_ann_may_read"
PUSH = """
import json, sys
from pathlib import Path
from dreambooth.errors import ExportError
from dreambooth.export.hub import push
for folder, name, token, public, file in json.loads(sys.argv[1]):
    try:
        found = push(Path(folder), name, token=token, private=not public, single_file=Path(file) if file else None)
        print("pushed |", found.repo_id, found.created, found.private, "|", found)
    except ExportError as error:
        print("refused |", error.what, error.why, error.todo)
"""
HOSTILE = 'photo of "zwx"\n---\nlicense: mit\n<script>alert(1)</script> | `dog`: #1'


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with hub_stand_in() as hub:
        yield hub


@pytest.fixture
def model(tiny_base_folder: Path, tmp_path: Path) -> Path:
    """Return a step folder as a run leaves it, with paths of somebody's disk in its settings."""
    folder = Path(shutil.copytree(tiny_base_folder, tmp_path / "home-of-somebody" / "runs" / "400"))
    settings = {
        "concepts": [{"instance_prompt": "photo of zwx dog", "instance_data_dir": "/home-of-somebody/photos",
                      "class_prompt": "photo of dog", "class_data_dir": None}],
        "pretrained_model_name_or_path": "/home-of-somebody/base", "output_dir": "/home-of-somebody/runs",
        "learning_rate": 2e-6, "max_train_steps": 800, "seed": 3, "hub_token": "hf_of_the_seed_script",
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(settings))
    card = json.loads((folder / "card.json").read_text()) | {"source": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
    (folder / "card.json").write_text(json.dumps(card))
    for number in range(2):
        (folder / "samples").mkdir(exist_ok=True)
        (folder / "samples" / f"{number}.png").write_bytes(b"\x89PNG" + bytes([number]))
    (folder / "notes.txt").write_text("mine")
    return folder


def pushed(
    hub: HubStandIn, *asked: tuple[Path, str, str | None, bool, Path | None], offline: bool = False
) -> list[str]:
    """Push in a child with that Hub as its own; returns a line for each."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    values = [
        [str(folder), name, token, public, str(file) if file else None] for folder, name, token, public, file in asked
    ]
    done = subprocess.run(
        [sys.executable, "-c", PUSH, json.dumps(values)], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_new_repository_is_private_and_holds_the_model(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    file = convert(model, tmp_path / "whatever.safetensors", precision="fp16")
    (line,) = pushed(hub, (model, "zwx-dog", WRITER, False, file))
    assert line.startswith("pushed | ann/zwx-dog True True |")
    assert "private: only you" in line
    repository = hub.repositories["ann/zwx-dog"]
    assert repository.private
    assert repository.commits == 2, "one commit on top of the empty repository"
    weights = {str(path.relative_to(model)) for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
               for path in (model / part).iterdir()}  # fmt: skip
    texts = {".gitattributes", "model_index.json", "card.json", "README.md", "dreambooth.json", "zwx-dog.safetensors"}
    assert set(repository.files) == weights | texts | {"samples/0.png", "samples/1.png"}
    assert repository.files["zwx-dog.safetensors"] == file.read_bytes()
    assert all(repository.files[name] == (model / name).read_bytes() for name in weights)
    everything = b"\n".join(repository.files.values())
    for secret in (b"home-of-somebody", b"hf_of_the_seed", WRITER.encode(), b"mine"):
        assert secret not in everything


def test_the_next_push_updates_it_in_place(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    file = convert(model, tmp_path / "one.safetensors")
    pushed(hub, (model, "ann/zwx-dog", WRITER, False, file))
    repository = hub.repositories["ann/zwx-dog"]
    repository.private = False  # its owner opened it
    repository.files["unet/diffusion_pytorch_model-00001-of-00002.safetensors"] = b"of an older push"
    repository.files["samples/9.png"] = b"of an older push"
    repository.files["logo.jpg"] = b"the owner's"
    (model / "vae" / "config.json").write_text((model / "vae" / "config.json").read_text() + "\n")
    (line,) = pushed(hub, (model, "ann/zwx-dog", WRITER, False, None))
    assert line.startswith("pushed | ann/zwx-dog False False |")
    assert "public: everyone sees it" in line
    assert list(hub.repositories) == ["ann/zwx-dog"]
    assert not repository.private
    names = set(repository.files)
    gone = {"unet/diffusion_pytorch_model-00001-of-00002.safetensors", "samples/9.png", "zwx-dog.safetensors"}
    assert names & gone == set()
    assert {"logo.jpg", "unet/diffusion_pytorch_model.safetensors"} <= names
    assert repository.files["vae/config.json"].endswith(b"\n\n")


def test_each_refusal_has_its_own_sentence_and_changes_nothing(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    hub.repositories["bob/dog"] = Repository({"model_index.json": b"{}"})
    hub.repositories["bob/secret"] = Repository({"model_index.json": b"{}"}, private=True)
    hub.repositories["ann/data"] = Repository({"train.csv": b"1,2"})
    hub.repositories["ann/new-name"] = Repository({"model_index.json": b"{}"})
    hub.renamed["ann/old-name"] = "ann/new-name"
    for status in (409, 412, 413, 418, 429):
        hub.repositories[f"ann/says-{status}"] = Repository({"model_index.json": b"{}"}, refuse_with=status)
    before = {name: dict(repository.files) for name, repository in hub.repositories.items()}
    cases = [
        ("ann/dog", None, "There is no token"),
        ("ann/dog", "hf_unknown", "does not know this HF_TOKEN"),
        ("ann/dog", READER, "may not write to ann/dog"),
        ("bob/dog", WRITER, "may not write to bob/dog"),
        ("bob/secret", WRITER, "may not write"),
        ("bob/new", WRITER, "may not write"),
        ("ann/data", WRITER, "holds something else. It has train.csv"),
        ("ann/old-name", WRITER, "was renamed to ann/new-name"),
        ("ann/says-409", WRITER, "is being changed by somebody else"),
        ("ann/says-412", WRITER, "was changed meanwhile"),
        ("ann/says-413", WRITER, "no more room"),
        ("ann/says-418", WRITER, "refused the upload"),
        *((name, WRITER, "is no name of a repository") for name in
          ("a b", "../x", "ann/", "http://169.254.169.254/x", "ann/x/y", "--x", "ann/ü", "x" * 200, "")),
    ]  # fmt: skip
    lines = pushed(hub, *((model, name, token, False, None) for name, token, _ in cases))
    assert len(lines) == len(cases)
    for line, (name, token, words) in zip(lines, cases, strict=True):
        assert line.startswith("refused"), (name, line)
        assert words in line, (name, line)
        assert token is None or token not in line
    assert {name: repository.files for name, repository in hub.repositories.items()} == before


def test_no_network_and_no_model_are_told(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    (line,) = pushed(hub, (model, "ann/dog", WRITER, False, None), offline=True)
    assert "The Hub cannot be reached" in line
    assert hub.requests == []
    (line,) = pushed(hub, (tmp_path, "ann/dog", WRITER, False, None))
    assert "is no model" in line


def test_a_public_one_when_asked_and_the_folder_comes_back(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    """What was pushed is downloaded by the real client, and opened by diffusers with equal tensors."""
    pushed(hub, (model, "ann/open", WRITER, True, None))
    assert not hub.repositories["ann/open"].private
    code = """
import sys, torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
pipe = StableDiffusionPipeline.from_pretrained("ann/open", dtype=torch.float32)
save_file({k: v.contiguous() for k, v in pipe.unet.state_dict().items()}, sys.argv[1])
assert pipe("photo of dog", num_inference_steps=1, height=32, width=32).images
"""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path / "unet.safetensors")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    back, given = (load_file(path) for path in (tmp_path / "unet.safetensors", model / "unet" /
                                                "diffusion_pytorch_model.safetensors"))  # fmt: skip
    assert back.keys() == given.keys()
    assert all(bool((back[name] == given[name]).all()) for name in given)


# The card ------------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, object]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return dict(yaml.safe_load(match[1]))


def test_the_card_says_what_it_is_and_how_to_use_it(model: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    card = model_card(model, "ann/zwx-dog", tmp_path / "x.safetensors")
    data = ModelCard(card).data
    assert data.license == "creativeml-openrail-m"
    assert data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert front_matter(card)["instance_prompt"] == "photo of zwx dog"
    for words in (
        "`photo of zwx dog`", "samples/0.png", "models/Stable-diffusion/", "models/checkpoints/", "InvokeAI",
        "`zwx-dog.safetensors`", 'from_pretrained("ann/zwx-dog"', "| learning_rate | `2e-06` |", "| seed | `3` |",
    ):  # fmt: skip
        assert words in card, words
    assert "home-of-somebody" not in card
    assert "max_train_steps" in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")


def test_an_unknown_licence_is_said_to_be_unknown(model: Path) -> None:
    card = json.loads((model / "card.json").read_text()) | {"source": "", "licence": ""}
    (model / "card.json").write_text(json.dumps(card))
    text = model_card(model, "ann/zwx-dog", None)
    assert front_matter(text)["license"] == "other"
    assert "base_model" not in front_matter(text)
    assert "taught from a local model" in text
    assert "not known here" in text


def test_hostile_words_stay_words(model: Path) -> None:
    settings = json.loads((model / "args.json").read_text())
    settings["concepts"][0]["instance_prompt"] = HOSTILE
    (model / "args.json").write_text(json.dumps(settings))
    card = json.loads((model / "card.json").read_text()) | {"source": 'x"\n- y/z', "licence": "mit\nlicense: bsd"}
    (model / "card.json").write_text(json.dumps(card))
    text = model_card(model, "ann/zwx-dog", None)
    matter = front_matter(text)
    assert matter["license"] == "other"
    assert matter["instance_prompt"] == HOSTILE
    outside_code = re.sub(r"```.*?```|(`+).*?\1", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "<script>" not in outside_code
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    compile(code[1], "card", "exec")
