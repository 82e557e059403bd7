"""A LoRA on a stand-in of the Hub: its file and its page, no model folders, and the lines of the page run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from dreambooth.formats.layout import lora_file
from dreambooth.formats.ldm import from_ldm
from dreambooth.models.lora_file import read_lora
from tests.harness.hub_stand_in import HubStandIn, Repository, hub_stand_in
from tests.harness.trained_lora import PROMPT, lora_run

WRITER = "hf_of_ann_and_may_write"


@pytest.fixture(scope="module")
def trained(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_run(tmp_path_factory.mktemp("home-of-somebody"), tiny_base_folder)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, of a base that came from the Hub."""
    folder = Path(shutil.copytree(trained, tmp_path / "zwx-dog"))
    card = folder / "3" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"source": "ann/base", "licence": "openrail++"}))
    return folder


def in_a_child(hub: HubStandIn, folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": WRITER,
        "HF_HOME": str(folder / "cache"),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *command], env=environment | more, cwd=folder, capture_output=True, text=True, timeout=240
    )


def test_a_pushed_lora_is_its_file_and_a_page_whose_lines_run(
    run: Path, trained: Path, tiny_base_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    with hub_stand_in() as hub:
        names = [
            file.relative_to(tiny_base_folder).as_posix() for file in tiny_base_folder.rglob("*") if file.is_file()
        ]
        hub.repositories["ann/base"] = Repository({name: (tiny_base_folder / name).read_bytes() for name in names})
        root = {"PYTHONPATH": str(Path(__file__).parents[2])}
        done = in_a_child(hub, tmp_path / "work", "-m", "dreambooth", "push", str(run), "my.dog", "--public",
                          "--single_file", **root)  # fmt: skip
        assert done.returncode == 0, done.stderr
        files = hub.repositories["ann/my.dog"].files
        assert files.keys() == {
            ".gitattributes", "README.md", "card.json", "dreambooth.json", "my-dog.safetensors", "samples/0.png",
        }  # fmt: skip
        secrets = ("home-of-somebody", str(tmp_path), str(tiny_base_folder), str(Path.home()), WRITER)
        assert [(name, text) for name, data in files.items() for text in secrets if text.encode() in data] == []
        page = files["README.md"].decode()
        matter = yaml.safe_load(page.split("---")[1])
        expected = {
            "base_model": "ann/base", "base_model_relation": "adapter", "instance_prompt": PROMPT,
            "license": "openrail++", "pipeline_tag": "text-to-image", "library_name": "diffusers",
            "widget": [{"text": PROMPT, "output": {"url": "samples/0.png"}}],
        }  # fmt: skip
        assert {name: matter.get(name) for name in expected} == expected
        assert {"lora", "text-to-image", "stable-diffusion"} <= set(matter["tags"])
        assert "peft" in page
        assert "<lora:my-dog:1>" in page
        (lines,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        code = f"""{lines}
pipe.fuse_lora()
from safetensors.torch import save_file
state = {{name.replace(".base_layer", ""): one.contiguous() for name, one in pipe.unet.state_dict().items()}}
save_file(state, "unet.safetensors")
"""
        whole = [
            "-m",
            "dreambooth",
            "convert",
            str(run),
            "whole.safetensors",
            "--as",
            "checkpoint",
            "--base",
            "ann/base",
        ]
        done = in_a_child(hub, tmp_path / "work", *whole, **root)
        assert done.returncode == 0, done.stderr
        done = in_a_child(hub, tmp_path / "work", "-c", code)
        assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "work" / "picture.png") as picture:
        assert picture.size == (32, 32)
    file = lora_file(run / "3")
    assert file is not None
    own, factors = load_file(tmp_path / "work" / "unet.safetensors"), read_lora(file).factors
    before = load_file(tiny_base_folder / "unet" / "diffusion_pytorch_model.safetensors")
    merged, _, _ = from_ldm(load_file(tmp_path / "work" / "whole.safetensors"))
    for name, weight in before.items():
        place = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        wanted = weight + factors[place].product() if place in factors else weight
        assert float((own[name] - wanted).abs().max()) < 1e-5, name
        assert merged[name].equal(wanted), name

    # What was put there is a step that other commands of ours read, on a base that is named.
    back = tmp_path / "back"
    for name, data in files.items():
        (back / name).parent.mkdir(parents=True, exist_ok=True)
        (back / name).write_bytes(data)
    assert lora_file(back) == back / "my-dog.safetensors"
    assert read_lora(back / "my-dog.safetensors").metadata["ss_output_name"] == "my-dog"


def test_the_next_push_replaces_the_file_and_a_damaged_step_changes_nothing(run: Path, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from dreambooth.errors import ExportError
from dreambooth.export.hub import push
try:
    print(push(Path(sys.argv[1]), "ann/dog", token=sys.argv[2], single_file=Path(sys.argv[3]) if sys.argv[3] else None))
except ExportError as error:
    print("refused |", error.what, error.why, error.todo)
"""
    whole = {"model_index.json": b"{}", "unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"x"}
    own = {"logo.jpg": b"hers"}
    root = {"PYTHONPATH": str(Path(__file__).parents[2])}
    with hub_stand_in() as hub:
        hub.repositories["ann/dog"] = Repository(whole | own | {"dreambooth.json": b"{}", "dog.safetensors": b"x"})

        def pushed(file: str = "") -> str:
            done = in_a_child(hub, tmp_path, "-c", code, str(run / "3"), WRITER, file, **root)
            assert done.returncode == 0, done.stderr
            return done.stdout

        assert "Updated" in pushed()
        files = dict(hub.repositories["ann/dog"].files)
        assert not files.keys() & whole.keys(), "the whole model of before is gone"
        assert files["logo.jpg"] == b"hers"
        assert len(files["dog.safetensors"]) > 1000
        assert "Updated" in pushed(str(run / "3" / "zwx-dog-3.safetensors")), "its file is the one for web UIs"
        assert dict(hub.repositories["ann/dog"].files) == files
        file = lora_file(run / "3")
        assert file is not None
        save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)
        assert "Its contents differ from what was saved" in pushed()
        assert dict(hub.repositories["ann/dog"].files) == files
