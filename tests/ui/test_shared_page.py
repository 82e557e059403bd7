"""What a visitor of somebody else's page may name of that machine: no folder and no file, in any argument."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from dreambooth.config.fields import describe
from dreambooth.config.training import TrainingConfig
from dreambooth.data.samples import sample_folder
from dreambooth.device.hardware import describe_cpu
from dreambooth.durable import write_json
from tests.harness.open_page import SHORT, OpenPage, open_page
from tests.harness.raw_events import Answer, RawEvents
from ui.bases import NOT_OFFERED
from ui.boundary import DeviceWatch

USER = ("ann", "correct horse")
REFUSED = "That base model cannot be used here"


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page whose machine holds a model, and a part of one, outside of the data folder."""
    folder = tmp_path_factory.mktemp("shared")
    with open_page(folder) as page:
        shutil.copytree(page.base, folder / "private-model")
        yield page


@pytest.fixture(scope="module")
def photo_set(opened: OpenPage) -> str:
    """Upload the bundled subject and return its photo set's name."""
    files = [handle_file(str(path)) for path in sorted(sample_folder().glob("*.png"))]
    return str(Client(opened.url, verbose=False).predict(files, api_name="/upload_photos")[0])


def private(page: OpenPage) -> list[tuple[Path, Path]]:
    """Return paths of what is there, each with one of the same length where nothing is."""
    folder = page.workspace.data_dir.parent / "private-model"
    there = [folder, folder / "vae", folder / "unet" / "config.json", page.workspace.models_dir / "tiny" / "vae"]
    there += [Path("/etc/passwd")]
    return [(path, path.with_name("x" * len(path.name))) for path in there]


@pytest.mark.slow
def test_a_logged_in_visitor_takes_no_model_of_the_machine_home(tmp_path: Path) -> None:
    """As base, in any other setting that names a model, and to make pictures with; and nothing of it is converted."""
    others = [info.name for info in describe(TrainingConfig) if info.name.endswith(("_name", "_name_or_path"))]
    others.remove("pretrained_model_name_or_path")
    assert {"pretrained_vae_name_or_path", "tokenizer_name", "class_model_name_or_path"} <= set(others)
    shutil.copytree(sample_folder(), tmp_path / "photos")
    with open_page(tmp_path / "page", auth=USER) as page:
        model = str(shutil.copytree(page.base, tmp_path / "private-model"))
        client = Client(page.url, auth=USER, verbose=False)
        files = [handle_file(str(path)) for path in sorted((tmp_path / "photos").glob("*.png"))]
        photos = client.predict(files, api_name="/upload_photos")[0]
        for endpoint in ("/start_training", "/plan_training"):
            with pytest.raises(AppError, match=REFUSED):
                client.predict(photos, model, "recommended", SHORT, api_name=endpoint)
            for field in others:
                with pytest.raises(AppError, match=f"{field}: {NOT_OFFERED}"):
                    client.predict(
                        photos, str(page.base), "recommended", SHORT | {field: f"{model}/vae"}, api_name=endpoint
                    )
        with pytest.raises(AppError, match=REFUSED):
            client.predict(model, "a dog", "", 1, 1, 3.0, "32", "32", "1", api_name="/generate")
        for endpoint in ("/convert", "/list_sizes"):
            with pytest.raises(AppError, match="It is not in the list"):
                client.predict(model, api_name=endpoint)
        assert list(page.workspace.runs_dir.iterdir()) == []
        # What is offered still works, by its path and by its name.
        for base in (str(page.base), "tiny", "starter"):
            assert client.predict(photos, base, "recommended", SHORT, api_name="/plan_training")["photos"] == 5
        with pytest.raises(AppError, match="on-the-hub is not in the local cache"):
            client.predict(photos, "someone/on-the-hub", "recommended", SHORT, api_name="/plan_training")
        (page.workspace.loras_dir / "cat.safetensors").touch()
        lora = {name: value for name, value in SHORT.items() if name != "use_8bit_adam"} | {"method": "lora"}
        asked = (photos, str(page.base), "recommended", lora | {"initial_lora": "cat.safetensors"})
        assert client.predict(*asked, api_name="/plan_training")["photos"] == 5


@pytest.mark.slow
def test_no_answer_tells_whether_a_path_exists(opened: OpenPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every text of every event is sent paths of what is there and of what is not: the answers are the same."""
    # Free memory changes by itself, and the header is sent when it does.
    device = describe_cpu()
    monkeypatch.setattr(DeviceWatch, "__call__", lambda watch: device)
    events, differing = RawEvents(opened.url), set()
    for there, missing in private(opened):
        for spelling in ("{}", "//{}"):
            # In both orders: what changes by itself between two answers is no sign.
            known, unknown = spelling.format(there), spelling.format(missing)
            told: dict[str, dict[str, set[str]]] = {}
            for answer in events.fire([known, unknown, unknown, known]):
                said = told.setdefault(answer.event, {known: set(), unknown: set()})
                said[answer.sent].add(without(answer, there, missing))
            differing |= {(event, known) for event, said in told.items() if not said[known] & said[unknown]}
    assert differing == set()


def without(answer: Answer, *paths: Path) -> str:
    """Return what an event answered, with one name for all the paths."""
    # What leads the page somewhere is numbered, whatever was asked.
    text = re.sub(r'"number\W+\d+', "NUMBER", json.dumps(answer.outputs) + answer.error)
    for shown in (answer.sent, answer.sent[:60]):  # a long value is shown in part
        text = text.replace(json.dumps(shown)[1:-1], "PATH")
    for path in paths:
        text = text.replace(json.dumps(str(path))[1:-1], "PATH").replace(path.name, "NAME")
    return text


def test_the_training_forms_bases_are_checked_too(opened: OpenPage, photo_set: str) -> None:
    """The tab's own events, which a program can call by their numbers."""
    events, model = RawEvents(opened.url), str(private(opened)[0][0])
    before = sorted(opened.workspace.runs_dir.iterdir())
    for event in ("propose_settings", "tell_plan", "start_shown_settings"):
        given: list[Any] = [model if value == "starter" else value for value in events.defaults(event)]
        assert model in given, event
        answer = events.call(event, given)[0]
        told = answer.error + answer.as_html
        assert "cannot be used here" in told, (event, told)
    assert sorted(opened.workspace.runs_dir.iterdir()) == before


def test_a_run_and_its_steps_are_bases(opened: OpenPage, photo_set: str) -> None:
    run = opened.workspace.run("mine-20260101-120000")
    shutil.copytree(opened.base, run.step_folder(2))
    write_json(run.config_path, {})
    client = Client(opened.url, verbose=False)
    plan = client.predict(photo_set, str(run.step_folder(2)), "recommended", SHORT, api_name="/plan_training")
    assert plan["steps"] == SHORT["max_train_steps"]
    with pytest.raises(AppError, match=REFUSED):
        client.predict(photo_set, str(run.step_folder(4)), "recommended", SHORT, api_name="/plan_training")
