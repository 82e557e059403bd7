"""The Colab notebook, its cells run one after the other in one namespace, with a stand-in for what Google brings."""

import json
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.data.samples import sample_folder

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "dreambooth_colab.ipynb"
FAKE_PAGE = """
import sys, time
print("  The page is open at http://127.0.0.1:7860/\\n  and at https://abc.gradio.live", flush=True)
print("  User dreambooth, password s3cret", flush=True)
time.sleep(60)
"""


def notebook() -> dict[str, Any]:
    """Return the notebook."""
    values: dict[str, Any] = json.loads(NOTEBOOK.read_text("utf-8"))
    return values


def cell(title: str) -> str:
    """Return the source of the code cell with this title."""
    (found,) = (
        "".join(one["source"]) for one in notebook()["cells"]
        if one["cell_type"] == "code" and f"@title {title}" in "".join(one["source"])
    )  # fmt: skip
    return str(found)


class Colab:
    """Runs cells as Colab does: Python in one namespace, lines with `!` through a shell."""

    def __init__(self, content: Path) -> None:
        self.content, self.shown, self.downloaded = content, list[str](), list[str]()
        self.names: dict[str, Any] = {"__name__": "__main__", "shell": self.shell}

    def shell(self, line: str) -> None:
        """Run a command as bash understands it; ours in this process, which has loaded what it needs already."""
        listed = "python() { shift 2; printf '%s\\0' \"$@\"; }; "
        done = subprocess.run(
            ["bash", "-c", listed + line], capture_output=True, text=True, env=dict(os.environ), timeout=60, check=True
        )
        assert main(done.stdout.split("\0")[:-1]) == 0 or line.endswith("|| true")

    def run(self, title: str, **fields: Any) -> None:
        """Run a cell with these of its form's fields filled in."""
        source = cell(title).replace("/tmp/dreambooth-page", "/content/dreambooth-page")
        source = source.replace("/content", str(self.content))
        for name, value in fields.items():
            source, count = re.subn(rf"(?m)^{name} = .*$", lambda _: f"{name} = {value!r}", source)  # noqa: B023
            assert count == 1, name
        lines = [f"shell({line[1:]!r})" if line.startswith("!") else line for line in source.splitlines()]
        exec(compile("\n".join(lines), title, "exec"), self.names)


@pytest.fixture
def colab(tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Colab:
    """Stand in for Colab: its modules, its folders, and an empty environment."""
    content = tmp_path / "content"
    content.mkdir()
    colab = Colab(content)

    class NotFound(Exception):
        """There is no such secret."""

    def missing(name: str) -> str:
        raise NotFound(name)

    def upload() -> dict[str, bytes]:
        photos = {path.name: path.read_bytes() for path in sorted(sample_folder().glob("*.png"))[:3]}
        for name, data in photos.items():
            Path(name).write_bytes(data)
        return photos

    def display(picture: str) -> None:
        colab.shown.append(picture)

    google, inside = types.ModuleType("google"), types.ModuleType("google.colab")
    inside.drive = types.SimpleNamespace(mount=lambda place: None)  # type: ignore[attr-defined]
    inside.files = types.SimpleNamespace(upload=upload, download=colab.downloaded.append)  # type: ignore[attr-defined]
    inside.userdata = types.SimpleNamespace(  # type: ignore[attr-defined]
        get=missing, SecretNotFoundError=NotFound, NotebookAccessError=NotFound
    )
    google.colab = inside  # type: ignore[attr-defined]
    shown = types.ModuleType("IPython.display")
    shown.Image, shown.display = str, display  # type: ignore[attr-defined]
    modules = {"google": google, "google.colab": inside, "IPython": types.ModuleType("IPython"),
               "IPython.display": shown}  # fmt: skip
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    # The training's own way of taking Ctrl-C would stay behind in this process.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    return colab


def test_it_says_at_its_top_what_google_restricts_and_keeps_no_output() -> None:
    first = "".join(notebook()["cells"][0]["source"])
    assert "What Google restricts" in first
    assert notebook()["metadata"]["accelerator"] == "GPU"
    for one in notebook()["cells"]:
        if one["cell_type"] == "code":
            assert (one["outputs"], one["execution_count"]) == ([], None)
    assert "hf_" not in NOTEBOOK.read_text("utf-8")


@pytest.mark.slow
def test_the_cells_without_a_page_train_make_pictures_and_a_file(colab: Colab, tiny_base_folder: Path) -> None:
    colab.run("1. Where work is kept", keep_on_drive=False)
    colab.run("2. The program", PROJECT=str(ROOT))
    colab.run("3. The Hub's token")
    colab.run("Your photos and prompts", class_word="toy")
    few = "--num_class_images 1 --n_save_sample 1 --save_infer_steps 1 --resolution 32 --mixed_precision no"
    few += " --num_crop_variants 1"
    colab.run("Train", BASE=str(tiny_base_folder), steps=2, save_every=1, more=few)
    run = colab.content / "dreambooth-data" / "runs" / "zwx"
    assert (run / "2" / "model_index.json").exists()
    colab.run("What it learned")
    colab.run("Generate pictures", prompt="photo of zwx toy", number=2, more="--num_inference_steps 1")
    colab.run("One file for other tools")
    assert colab.shown[0].endswith("grid.png")
    assert len(colab.shown) == 3
    assert all(Path(picture).is_file() for picture in colab.shown)
    (file,) = colab.downloaded
    assert file.endswith("zwx.safetensors")
    assert Path(file).stat().st_size > 100_000


def test_the_page_is_opened_once_and_its_link_told_again(colab: Colab, tmp_path: Path) -> None:
    fake = tmp_path / "page.py"
    fake.write_text(FAKE_PAGE)
    colab.run("1. Where work is kept")
    assert os.environ["DREAMBOOTH_DRIVE"] == "1"
    colab.run("Open the page", COMMAND=str(fake))
    server = colab.names["server"]
    try:
        colab.run("Open the page", COMMAND=str(fake))
        assert colab.names["server"] is server
        log = (colab.content / "dreambooth-page.log").read_text()
        assert log.count("password") == 1
        colab.run("Open the page", COMMAND=str(fake), new_link=True)
        assert colab.names["server"] is not server
        colab.run("Keep the session awake", minutes=0)
    finally:
        for one in {server, colab.names["server"]}:
            one.kill()
            one.wait()


def test_the_page_is_started_as_the_app_starts() -> None:
    import app

    command = re.search(r'COMMAND = "app.py (.*)"', cell("Open the page"))
    assert command is not None
    assert app.parse_arguments(command[1].split()).share
