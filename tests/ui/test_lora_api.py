"""LoRA runs through the page's API: planned, trained, converted both ways, added to a model, on another base."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from dreambooth.data.samples import sample_folder
from dreambooth.models.lora_file import read_lora
from dreambooth.records.workspace import RunFolder
from tests.harness.open_page import SHORT, OpenPage, finished, open_page
from tests.harness.raw_events import RawEvents
from tests.harness.tiny import tiny_base

QUICK_RUN = {name: value for name, value in SHORT.items() if name != "use_8bit_adam"} | {
    "max_train_steps": 2, "num_probe_images": 0, "train_text_encoder": True,
}  # fmt: skip


@dataclass(frozen=True)
class Trained:
    """A page with a run of each method on it: the folders of their last steps, by method."""

    page: OpenPage
    client: Client
    photo_set: str
    steps: dict[str, str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    with open_page(tmp_path_factory.mktemp("page")) as page:
        client = Client(page.url, verbose=False)
        files = [handle_file(str(path)) for path in sorted(sample_folder().glob("*.png"))]
        photo_set = client.predict(files, api_name="/upload_photos")[0]
        steps = {}
        for method in ("full", "lora"):
            asked = (photo_set, str(page.base), "recommended", QUICK_RUN, method)
            status = finished(client, client.predict(*asked, api_name="/start_training"))
            assert status["status"] == "done", status["error"]
            steps[method] = status["models"][-1]
        yield Trained(page, client, photo_set, steps)


def test_a_plan_has_the_methods_rates_size_and_command(trained: Trained) -> None:
    base = str(trained.page.base)
    plans = {
        method: trained.client.predict(trained.photo_set, base, "recommended", None, method, api_name="/plan_training")
        for method in ("full", "lora")
    }
    assert [plans[method]["settings"]["learning_rate"] for method in ("full", "lora")] == [1e-6, 1e-4]
    assert plans["full"]["disk_bytes"] > 2 * plans["lora"]["disk_bytes"]
    assert "--method lora" in plans["lora"]["command"]
    assert "--method" not in plans["full"]["command"]
    # The form and the settings say it too, and a method that there is not is a mistake of the form.
    by_setting = trained.client.predict(
        trained.photo_set, base, "recommended", {"method": "lora"}, api_name="/plan_training"
    )
    assert by_setting["settings"] == plans["lora"]["settings"]
    with pytest.raises(AppError, match="method"):
        trained.client.predict(trained.photo_set, base, "recommended", None, "lokr", api_name="/plan_training")


def test_programs_that_send_what_there_was_before_are_answered(trained: Trained) -> None:
    """Over plain HTTP, without a client that knows defaults."""
    step, events = trained.steps["full"], RawEvents(trained.page.url)
    sent: dict[str, list[Any]] = {
        "plan_training": [trained.photo_set, str(trained.page.base), "recommended", QUICK_RUN],
        "convert": [step, ".safetensors", True, 1.0, 1.0],
        "generate": [step, "a dog", "", 1, 1, 3.0, "32", "32", "11", "DDIM", "after training", 1, 1],
    }
    for event, values in sent.items():
        (answer,) = events.call(event, values)
        assert answer.outputs, (event, answer.error)
        assert answer.error == ""


def test_lists_name_family_and_method(trained: Trained) -> None:
    labels = {one["model"]: one["label"] for one in trained.client.predict(api_name="/list_models")}
    names = {method: Path(step).parent.name for method, step in trained.steps.items()}
    assert labels[trained.steps["lora"]] == f"{names['lora']}, step 2 (LoRA, SD 1.x)"
    assert labels[trained.steps["full"]] == f"{names['full']}, step 2 (full model, SD 1.x)"
    assert labels[str(trained.page.base)] == "tiny (SD 1.x)"


def convert(trained: Trained, step: str, suffix: str = ".safetensors", **options: Any) -> tuple[Path, str]:
    file, sentence = trained.client.predict(step, suffix, api_name="/convert", **options)
    return Path(file), sentence


def test_a_whole_model_becomes_a_lora_of_a_rank_or_a_size(trained: Trained) -> None:
    step, name = trained.steps["full"], f"{Path(trained.steps['full']).parent.name}-step-2"
    file, told = convert(trained, step, kind="lora", rank="4", lora_targets="all")
    assert (file.name, read_lora(file).rank) == (f"{name}-lora.safetensors", 4)
    assert "of the change of the weights" in told
    exports = trained.page.workspace.exports_dir
    assert {f"{name}-lora.json", f"{name}-lora.png"} <= {path.name for path in exports.iterdir()}
    file, _ = convert(trained, step, kind="lora", max_mb="0.2")
    assert file.stat().st_size < 2e5
    for wrong, field in (({"rank": "4", "max_mb": "1"}, "max_mb"), ({"rank": "x"}, "rank"), ({"rank": "999"}, "rank")):
        with pytest.raises(AppError, match=field):
            convert(trained, step, kind="lora", **wrong)
    with pytest.raises(AppError, match="cannot be used here"):
        convert(trained, step, kind="lora", base="/etc/hostname")


def test_a_lora_step_is_itself_or_a_checkpoint_on_any_base(trained: Trained) -> None:
    step = trained.steps["lora"]
    own, _ = convert(trained, step)
    (saved,) = Path(step).glob("*.safetensors")
    assert read_lora(own).factors.keys() == read_lora(saved).factors.keys()
    merged, _ = convert(trained, step, kind="checkpoint")
    other = tiny_base(trained.page.workspace.models_dir / "other", seed=1)
    elsewhere, _ = convert(trained, step, kind="checkpoint", base="other")
    assert merged.stat().st_size > own.stat().st_size
    assert other.exists()
    assert elsewhere.read_bytes() != merged.read_bytes()


def one_picture(model: Path) -> tuple[Any, ...]:
    """Return the values of /generate that ask for one quick picture of a model."""
    return (
        str(model), "photo of zwx dog", "", 1, 1, 3.0, "32", "32", "11", "DDIM", "after training", 1.0, 1.0
    )  # fmt: skip


def test_loras_of_the_data_folder_are_added_and_read_back(trained: Trained) -> None:
    (saved,) = Path(trained.steps["lora"]).glob("*.safetensors")
    loras = trained.page.workspace.loras_dir
    shutil.copy(saved, loras / "cat.safetensors")
    asked = one_picture(trained.page.base)
    plain, _ = trained.client.predict(*asked, api_name="/generate")
    added, _ = trained.client.predict(*asked, ["cat.safetensors:0.5"], api_name="/generate")
    assert Path(plain[0]["image"]).read_bytes() != Path(added[0]["image"]).read_bytes()
    text = trained.client.predict(handle_file(added[0]["image"]), api_name="/read_recipe")
    assert "cat: 0.5" in text
    for wrong in (["dog.safetensors"], ["../../etc/passwd"], "cat.safetensors"):
        with pytest.raises(AppError, match="loras"):
            trained.client.predict(*asked, wrong, api_name="/generate")


def test_a_run_whose_base_is_gone_takes_another(trained: Trained) -> None:
    run = RunFolder(Path(trained.steps["lora"]).parent)
    name = run.name + "-moved"
    shutil.copytree(run.path, run.path.parent / name)
    # Of every step: another test may have trained the run for longer.
    for card in (run.path.parent / name).glob("*/card.json"):
        card.write_text(card.read_text("utf-8").replace(str(trained.page.base), "/not/here"), "utf-8")
    asked = (*one_picture(run.path.parent / name / "2"), [])
    with pytest.raises(AppError, match="is not here"):
        trained.client.predict(*asked, api_name="/generate")
    pictures, _ = trained.client.predict(*asked, "tiny", api_name="/generate")
    assert len(pictures) == 1
    events = RawEvents(trained.page.url)
    for event in ("score_shown_run", "bleed_shown_run"):
        refused, found = events.call(event, [name, ""], [name, "tiny"])
        assert "is not here" in refused.error, event
        assert (found.error, len(found.outputs)) == ("", 1), event
    assert RunFolder(run.path.parent / name).scores_path.is_file()
    assert "is scored" in events.call("score_shown_run", [name, "tiny"])[0].as_html


def test_more_steps_and_steps_side_by_side(trained: Trained) -> None:
    run = Path(trained.steps["lora"]).parent.name
    trained.client.predict(3, run, api_name="/train_more_steps")
    status = finished(trained.client, run)
    assert (status["status"], status["step"], status["steps"]) == ("done", 3, [2, 3]), status["error"]
    pictures, _ = trained.client.predict(
        run, [0, 2, 3], "photo of zwx dog", "", 1, 1, 3.0, "32", "32", "11", api_name="/compare"
    )
    assert len(pictures) == 4


def test_a_run_ends_as_it_is_told_to_and_goes_on(trained: Trained) -> None:
    client, settings = trained.client, QUICK_RUN | {"max_train_steps": 2000, "save_interval": 2000}

    def started() -> str:
        asked = (trained.photo_set, str(trained.page.base), "recommended", settings, "lora")
        run = str(client.predict(*asked, api_name="/start_training"))
        while client.predict(run, api_name="/training_status")["step"] < 1:
            time.sleep(0.1)
        return run

    run = started()
    client.predict(run, api_name="/stop_training")
    stopped = finished(client, run)
    assert (stopped["status"], stopped["steps"]) == ("stopped", [stopped["step"]]), stopped["error"]
    client.predict(run, api_name="/resume_training")
    while client.predict(run, api_name="/training_status")["status"] != "running":
        time.sleep(0.1)
    client.predict(run, api_name="/finish_now")
    done = finished(client, run)
    assert done["status"] == "done", done["error"]
    assert stopped["step"] < done["step"] < 2000
