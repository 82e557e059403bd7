"""The third tab through HTTP: every kind of file, downloads that go on in the middle, the Hub's words, the storage."""

import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from dreambooth.durable import write_json
from dreambooth.errors import DreamBoothError
from dreambooth.export.sizes import samples_bytes, single_file_bytes
from dreambooth.models.weights import file_metadata
from dreambooth.pictures.settings_text import text_of_picture
from dreambooth.records.workspace import RunFolder
from dreambooth.scoring.recommendation import StepScores
from dreambooth.scoring.records import RunScores, write_scores
from tests.harness.open_page import OpenPage, open_page
from tests.harness.raw_events import RawEvents
from ui.convert.handlers import export_list
from ui.convert.opens_in import TOOLS, opens_in
from ui.render import size_in_words
from ui.train.follower import SHARED_S


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture
def opened(page: OpenPage) -> OpenPage:
    """Return the file's page over a run of two steps as a training leaves it, whatever a test did to that before."""
    run = RunFolder(page.workspace.runs_dir / "dog")
    if run.path.exists():
        shutil.rmtree(run.path)
    write_json(run.config_path, {})
    for step in (2, 10):
        shutil.copytree(page.base, run.step_folder(step))
        (run.step_folder(step) / "samples").mkdir()
        (run.step_folder(step) / "samples" / "0.png").write_bytes(b"\x89PNG" + bytes([step]))
        (run.step_folder(step) / "args.json").write_text("{}")
    return page


@pytest.fixture(scope="module")
def client(page: OpenPage) -> Client:
    return Client(page.url, verbose=False)


def write_scores_unshared(run: RunFolder, *steps: StepScores) -> None:
    """Write the run's scores, and wait until what was read for another page a moment ago is shared no longer."""
    write_scores(run, RunScores("made up", steps))
    time.sleep(SHARED_S)


def address(opened: OpenPage, path: Path) -> str:
    return f"{opened.url}gradio_api/file={path}"


def copies_of(opened: OpenPage, path: Path) -> list[Path]:
    size = path.stat().st_size
    found = [*opened.copies_dir.rglob("*"), *opened.workspace.data_dir.rglob("*")]
    return [file for file in found if file.is_file() and file.stat().st_size == size]


def test_the_recommended_step_is_chosen_here_and_in_generate_with_why(opened: OpenPage) -> None:
    run = RunFolder(opened.workspace.runs_dir / "dog")
    write_scores_unshared(run, StepScores(2, 0.8, 0.9, 0.1), StepScores(10, 0.9, 0.3, 0.7))
    events, best = RawEvents(opened.url), str(run.step_folder(2))
    (look,) = events.call("first_look", [])
    lists = [json.loads(value) for kind, value in look.outputs if kind == "dropdown"]
    assert [one.get("value") for one in lists].count(best) == 2
    for event in ("advise_convert", "advise_generate"):
        good, late, other = events.call(event, [best], [str(run.step_folder(10))], ["starter"])
        assert "Recommended.</b> Step 2 is the best overall" in good.as_html
        assert "Step 2 is recommended instead.</b> Step 2 is the best" in late.as_html
        assert json.loads(other.as_html.strip()) == ""


def test_a_step_without_likeness_is_chosen_as_the_newest_and_not_called_recommended(opened: OpenPage) -> None:
    run = RunFolder(opened.workspace.runs_dir / "dog")
    write_scores_unshared(run, StepScores(2, 0.0, 1.0, 0.0), StepScores(10, 0.0, 1.0, 0.0))
    events, last = RawEvents(opened.url), str(run.step_folder(10))
    (look,) = events.call("first_look", [])
    lists = [json.loads(value) for kind, value in look.outputs if kind == "dropdown"]
    assert [one.get("value") for one in lists].count(last) == 2
    for event in ("advise_convert", "advise_generate"):
        (told,) = events.call(event, [last])
        assert "No step is recommended.</b> No saved step looks like the photos yet" in told.as_html
        assert "train longer" in told.as_html


@pytest.mark.parametrize(
    ("suffix", "half", "name"),
    [
        (".safetensors", True, "dog-step-10-fp16.safetensors"), (".safetensors", False, "dog-step-10-fp32.safetensors"),
        (".ckpt", True, "dog-step-10-fp16.ckpt"), (".ckpt", False, "dog-step-10-fp32.ckpt"),
        (".zip", True, "dog-step-10.zip"), ("-samples.zip", True, "dog-step-10-samples.zip"),
    ],
)  # fmt: skip
def test_every_kind_of_file_is_made_and_downloaded_in_pieces(
    opened: OpenPage, client: Client, suffix: str, half: bool, name: str
) -> None:
    model = str(opened.workspace.runs_dir / "dog" / "10")
    file, sentence = client.predict(model, suffix, half, api_name="/convert")
    export = opened.workspace.exports_dir / name
    assert f"{name} is ready" in sentence
    assert ("tensors match the model" in sentence) == (suffix in (".safetensors", ".ckpt"))
    whole = export.read_bytes()
    assert Path(file).read_bytes() == whole
    middle = len(whole) // 2
    rest = httpx.get(address(opened, export), headers={"Range": f"bytes={middle}-"})
    assert (rest.status_code, rest.content) == (206, whole[middle:])
    assert rest.headers["content-range"] == f"bytes {middle}-{len(whole) - 1}/{len(whole)}"
    piece = httpx.get(address(opened, export), headers={"Range": "bytes=10-19"})
    assert (piece.status_code, piece.content) == (206, whole[10:20])
    assert copies_of(opened, export) == [export], "nothing makes a second copy of it on the server"


def test_a_strength_is_baked_into_the_file_and_into_pictures(opened: OpenPage, client: Client) -> None:
    run = opened.workspace.runs_dir / "dog"
    model = str(run / "2")
    write_json(run / "2" / "args.json", {"pretrained_model_name_or_path": str(opened.base)})
    _, sentence = client.predict(model, ".safetensors", True, 0.5, 1.0, api_name="/convert")
    name = "dog-step-2-unet0.5-text1-fp16.safetensors"
    assert f"{name} is ready" in sentence
    told = json.loads(file_metadata(opened.workspace.exports_dir / name)["dreambooth.recipe"])
    assert told["strength"] == "unet 0.5, text encoder 1"
    request = ["photo of dog", "", 1, 1, 1.0, "32", "32", "1", "DDIM", "after training", 0.5, 1.0]
    ((picture,), _) = client.predict(model, *request, api_name="/generate")
    assert "UNet strength: 0.5" in text_of_picture(Path(picture["image"]))
    with pytest.raises(AppError, match="It contains no args.json"):
        client.predict(str(run / "10"), ".safetensors", True, 0.5, 1.0, api_name="/convert")


@pytest.mark.parametrize("half", [True, False])
def test_the_size_told_before_is_about_that_of_the_file_and_told_exactly_after(
    opened: OpenPage, client: Client, half: bool
) -> None:
    model = str(opened.workspace.runs_dir / "dog" / "10")
    told = client.predict(model, api_name="/list_sizes")
    assert sorted(told) == ["-samples.zip", ".ckpt", ".safetensors", ".zip"]
    for suffix in (".safetensors", ".zip", "-samples.zip"):
        file, _ = client.predict(model, suffix, True, api_name="/convert")
        size = Path(file).stat().st_size
        assert abs(told[suffix] - size) < 0.1 * size + 500, suffix
    folder = opened.workspace.runs_dir / "dog" / "10"
    file, sentence = client.predict(model, ".safetensors", half, api_name="/convert")
    size = Path(file).stat().st_size
    guess = single_file_bytes(folder, 2 if half else 4)
    assert guess is not None
    assert abs(guess - size) < 0.05 * size
    assert size_in_words(size) in sentence


def test_a_folder_whose_weights_tell_no_size_has_none(tmp_path: Path) -> None:
    assert single_file_bytes(tmp_path, 2) is None
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(b"\xff" * 40)
    assert single_file_bytes(tmp_path, 2) is None
    assert samples_bytes(RunFolder(tmp_path)) is None


def test_prepared_files_are_listed_as_links(tmp_path: Path) -> None:
    told = export_list([(tmp_path / "a'<b>.zip", 1_500_000)])
    assert "a&#x27;&lt;b&gt;.zip</a>" in told
    assert "<b>" not in told
    assert "%27%3Cb%3E.zip" in told
    assert "2 MB" in told
    assert export_list([]) == ""


def test_the_tools_of_the_page_are_those_of_the_documents_table(opened: OpenPage, client: Client) -> None:
    document = (Path(__file__).parents[3] / "docs" / "files.md").read_text("utf-8")
    (heading,) = [line for line in document.splitlines() if line.startswith("| file | AUTOMATIC1111")]
    assert [cell.split(",")[0].strip() for cell in heading.split("|")[2:-1]] == [tool for tool, _, _ in TOOLS]
    shown = [one["props"].get("value") for one in client.config["components"]]
    assert opens_in() in shown


def test_the_archives_hold_what_they_say(opened: OpenPage, client: Client) -> None:
    model = str(opened.workspace.runs_dir / "dog" / "10")
    client.predict(model, ".zip", True, api_name="/convert")
    client.predict(model, "-samples.zip", True, api_name="/convert")
    with zipfile.ZipFile(opened.workspace.exports_dir / "dog-step-10.zip") as opened_zip:
        assert {"model_index.json", "samples/0.png", "unet/config.json"} <= set(opened_zip.namelist())
    with zipfile.ZipFile(opened.workspace.exports_dir / "dog-step-10-samples.zip") as opened_zip:
        assert opened_zip.namelist() == ["2/0.png", "10/0.png"]


def test_nothing_but_exports_can_be_reached(opened: OpenPage) -> None:
    run = opened.workspace.runs_dir / "dog"
    for path in (run / "10" / "model_index.json", run / ".run" / "config.json", opened.base / "card.json"):
        assert path.exists()
        assert httpx.get(address(opened, path)).status_code in (403, 404)


def test_what_is_not_in_the_list_is_refused(opened: OpenPage, client: Client) -> None:
    model = str(opened.workspace.runs_dir / "dog" / "10")
    for wrong in ((model, ".exe", True), ("/etc", ".zip", True), (str(opened.workspace.runs_dir), ".zip", True)):
        with pytest.raises(AppError, match="not in the list of choices|cannot be converted"):
            client.predict(*wrong, api_name="/convert")
    with pytest.raises(AppError, match="no sample pictures"):
        client.predict("starter", "-samples.zip", True, api_name="/convert")


def test_the_hubs_words_reach_the_page(opened: OpenPage, client: Client) -> None:
    model = str(opened.workspace.runs_dir / "dog" / "10")
    with pytest.raises(AppError, match="No Hub token is set"):
        client.predict(model, "ann/dog", True, False, api_name="/push_to_hub")
    with pytest.raises(AppError, match="cannot be converted"):
        client.predict("/etc", "ann/dog", True, False, api_name="/push_to_hub")


def test_the_storage_is_told_and_cleaned(opened: OpenPage, client: Client) -> None:
    run = opened.workspace.run("dog")
    listed = client.predict(api_name="/list_storage")
    assert {"kind": "saved model", "name": "dog, step 2 (full model, SD 1.x)", "choice": "intermediate weights"} in [
        {key: one[key] for key in ("kind", "name", "choice")} for one in listed
    ]
    assert [one["bytes"] for one in listed] == sorted((one["bytes"] for one in listed), reverse=True)
    told: dict[str, Any] = client.predict(["intermediate weights"], False, api_name="/clean_storage")
    assert run.steps() == [2, 10]
    assert told["deleted"] is False
    assert all(Path(file).is_relative_to(run.step_folder(2)) for file in told["files"])
    done = client.predict(["intermediate weights"], True, api_name="/clean_storage")
    assert done["files"] == told["files"]
    assert run.steps() == [10]
    assert sorted(run.samples()) == [2, 10]
    with pytest.raises(AppError, match="has no 'everything'"):
        client.predict(["everything"], True, api_name="/clean_storage")


def test_who_may_not_train_may_neither_upload_nor_delete(tmp_path: Path) -> None:
    refusal = DreamBoothError("Nobody trains here without a login.", "", "")
    with open_page(tmp_path, training_refusal=refusal) as page:
        (page.workspace.exports_dir / "x.zip").write_bytes(b"x")
        client = Client(page.url, verbose=False)
        with pytest.raises(AppError, match="without a login"):
            client.predict("starter", "ann/dog", True, False, api_name="/push_to_hub")
        with pytest.raises(AppError, match="without a login"):
            client.predict(["exports"], True, api_name="/clean_storage")
        assert (page.workspace.exports_dir / "x.zip").exists()
