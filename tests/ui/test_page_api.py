"""The page as an API: a real client does the whole job on a tiny base, and asks for what it must not get."""

import argparse
import html
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from dreambooth.data.samples import sample_folder
from dreambooth.durable import write_json
from dreambooth.environment import Secret, Settings
from dreambooth.errors import ConfigError
from dreambooth.records.workspace import RunFolder, Workspace
from dreambooth.scoring.chart import write_chart
from dreambooth.scoring.recommendation import StepScores
from dreambooth.scoring.records import RunScores, write_scores
from tests.harness.open_page import SHORT, OpenPage, finished, open_page
from tests.harness.raw_events import RawEvents
from ui.access.request_checks import RequestChecks, Uploads
from ui.train.follower import SHARED_S

PUBLIC = {
    "/plan_training", "/finish_now", "/save_now", "/sample_now", "/resume_training", "/retry_with_less_memory",
    "/train_more_steps", "/score_run", "/bleed_report", "/delete_run",
    "/upload_photos", "/start_training", "/training_status", "/stop_training", "/list_runs", "/convert", "/list_models",
    "/generate", "/try_sample", "/push_to_hub", "/list_storage", "/clean_storage",
    "/compare", "/cancel_pictures", "/read_recipe", "/list_pictures", "/zip_pictures", "/list_sizes",
    "/list_photo_sets", "/check_photos", "/add_folder", "/set_focus", "/change_photo", "/set_caption", "/set_words",
    "/edit_captions", "/write_captions", "/set_notes", "/set_mask",
    "/check_identifier", "/propose_identifier", "/train_together", "/export_concepts", "/class_pictures",
    "/delete_photos",
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPage]:
    """Open a page for all tests of this file."""
    with open_page(tmp_path_factory.mktemp("page")) as page:
        yield page


@pytest.fixture(scope="module")
def client(opened: OpenPage) -> Client:
    """Return a client of the page."""
    return Client(opened.url, verbose=False)


def upload(client: Client) -> str:
    """Upload the bundled subject and return its photo set's name."""
    files = [handle_file(str(path)) for path in sorted(sample_folder().glob("*.png"))]
    return str(client.predict(files, api_name="/upload_photos")[0])


def test_a_run_with_whole_numbers_for_fractions_is_resumed(client: Client, opened: OpenPage) -> None:
    """JSON has 1 where the setting is 1.0: both are the same run."""
    settings = SHORT | {"max_train_steps": 60, "save_interval": 60, "snr_gamma": 1, "save_guidance_scale": 3}
    run = client.predict(upload(client), str(opened.base), "recommended", settings, api_name="/start_training")
    while client.predict(run, api_name="/training_status")["step"] < 1:
        time.sleep(0.05)
    client.predict(run, api_name="/stop_training")
    assert finished(client, run)["status"] == "stopped"
    client.predict(run, api_name="/resume_training")
    while (status := client.predict(run, api_name="/training_status"))["status"] == "stopped":
        time.sleep(0.05)
    status = finished(client, run)
    assert (status["status"], status["step"]) == ("done", 60), status["error"]


def test_a_base_that_cannot_be_had_is_told_before_anything_is_planned_or_queued(client: Client) -> None:
    photo_set, runs = upload(client), client.predict(api_name="/list_runs")
    for endpoint in ("/plan_training", "/start_training"):
        with pytest.raises(AppError, match="somebody/nowhere is not in the local cache"):
            client.predict(photo_set, "somebody/nowhere", "recommended", {}, api_name=endpoint)
    assert client.predict(api_name="/list_runs") == runs


def answer(url: str) -> int:
    """Return the HTTP status of a GET."""
    try:
        with urllib.request.urlopen(url, timeout=20) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_public_names_are_these(client: Client) -> None:
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == PUBLIC


@pytest.mark.slow
def test_from_photos_to_a_file_and_pictures(client: Client, opened: OpenPage, tmp_path: Path) -> None:
    photo_set = upload(client)
    kept = sorted(path.suffix for path in (opened.workspace.datasets_dir / photo_set).iterdir())
    assert kept == [*[".json"] * 3, *[".png"] * 5]

    others = [one["run"] for one in client.predict(api_name="/list_runs")]
    run = client.predict(photo_set, str(opened.base), "recommended", SHORT, api_name="/start_training")
    early = client.submit(str(opened.base), "photo of dog", "", 1, 1, 3.0, "", "", "9", api_name="/generate")
    status = finished(client, run)
    assert (status["status"], status["error"]) == ("done", None)
    assert (status["step"], status["steps"], status["notes"]) == (4, [2, 4], "")
    assert client.predict(run, "Too red.\nNext: fewer steps", api_name="/set_notes") == "Too red.\nNext: fewer steps"
    assert client.predict(run, api_name="/training_status")["notes"].startswith("Too red.")
    assert (opened.workspace.runs_dir / run / ".run" / "notes.txt").read_text("utf-8").endswith("fewer steps")
    with pytest.raises(AppError, match="There is no run"):
        client.predict("nothing", "x", api_name="/set_notes")
    pictures, sentence = early.result(timeout=60)
    assert "Done: 1 picture in" in sentence, "asked for while it trained, made after it"
    assert len(pictures) == 1
    assert [one["run"] for one in client.predict(api_name="/list_runs")] == [run, *others]
    models = [one["model"] for one in client.predict(api_name="/list_models")]
    assert models[:2] == [str(opened.workspace.runs_dir / run / step) for step in ("4", "2")]

    file, sentence = client.predict(models[0], ".safetensors", True, api_name="/convert")
    assert f"{run}-step-4-fp16.safetensors is ready" in sentence
    export = opened.workspace.exports_dir / f"{run}-step-4-fp16.safetensors"
    assert Path(file).read_bytes() == export.read_bytes()
    assert answer(f"{opened.url}gradio_api/file={urllib.parse.quote(str(export))}") == 200

    pictures, sentence = client.predict(
        models[0], "photo of zwx dog", "", 2, 2, 3.0, "32", "32", "11", api_name="/generate"
    )
    assert "Done: 2 pictures in" in sentence
    with Image.open(pictures[0]["image"]) as picture:
        assert picture.size == (32, 32)
        assert "Seed: 11" in picture.info["parameters"]
    recipe = client.predict(handle_file(pictures[1]["image"]), api_name="/read_recipe")
    assert recipe.startswith("photo of zwx dog\nSteps: 2, Sampler: DDIM, CFG scale: 3, Seed: 12, Size: 32x32")

    pictures, sentence = client.predict(
        run, [2, 4], "photo of zwx dog\nphoto of dog BREAK", "", 1, 1, 3.0, "", "", "7", "Euler a", api_name="/compare"
    )
    assert "Done: 4 pictures in" in sentence
    assert sentence.count("BREAK") == 1, "that it is read literally is told, and once"
    assert len(pictures) == 5, "the grid of them is the last"
    assert len(client.predict(models[0], api_name="/list_pictures")) == 7
    archive = client.predict(models[0], api_name="/zip_pictures")
    assert Path(archive).read_bytes() == (opened.workspace.exports_dir / f"pictures-{run}.zip").read_bytes()
    assert client.predict(api_name="/cancel_pictures") == 0

    runs_folder = opened.workspace.runs_dir / run
    private = [runs_folder / ".run" / "state.json", runs_folder / "4" / "args.json", opened.base / "model_index.json"]
    private += sorted((runs_folder / "4" / "samples").iterdir())[:1]
    private += sorted((opened.workspace.datasets_dir / photo_set).iterdir())[:1]
    for path in private:
        assert path.is_file()
        assert answer(f"{opened.url}gradio_api/file={urllib.parse.quote(str(path))}") == 403, path


@pytest.mark.slow
def test_the_readmes_example_runs(opened: OpenPage, tmp_path: Path) -> None:
    from tests.harness.readme import block_after, run

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cup").symlink_to(sample_folder())
    code = block_after("run: api", "python")
    for shown, quick in {
        '"http://127.0.0.1:7860"': f"{opened.url!r}, verbose=False",
        '"starter"': repr(str(opened.base)),
        '{"max_train_steps": 600}': repr(SHORT),
        "time.sleep(5)": "time.sleep(0.5)",
        'instance_prompt, api_name="/generate"': 'instance_prompt, "", 1, 1, api_name="/generate"',
    }.items():
        assert shown in code
        code = code.replace(shown, quick)
    printed = run(code, tmp_path)
    assert "3 photos," in printed
    assert "python -m dreambooth train" in printed
    assert "--instance_prompt 'photo of zwx cup' --class_prompt 'photo of cup'" in printed
    assert "Finished after 4 steps" in printed
    assert ".png" in printed.splitlines()[-1]


@pytest.mark.slow
def test_stop_saves_and_the_next_in_line_starts(client: Client, opened: OpenPage) -> None:
    photo_set = upload(client)
    long = SHORT | {"max_train_steps": 5000, "save_interval": 5000, "with_prior_preservation": False}
    first = client.predict(photo_set, str(opened.base), "recommended", long, api_name="/start_training")
    second = client.predict(photo_set, str(opened.base), "recommended", long, api_name="/start_training")
    assert client.predict(second, api_name="/training_status")["status"] == "queued"
    while client.predict("", api_name="/training_status")["step"] < 1:
        time.sleep(0.2)
    assert client.predict(second, api_name="/stop_training") == second
    assert client.predict("", api_name="/stop_training") == first
    status = finished(client, first)
    assert status["status"] == "stopped"
    assert status["steps"] == [status["step"]]
    assert finished(client, second)["status"] == "stopped"


def test_settings_without_effect_are_told_by_the_plan_and_in_the_log(client: Client, opened: OpenPage) -> None:
    photo_set = upload(client)
    without = {"ema_decay": 0.9, "n_save_sample": 1, "with_prior_preservation": False, "prior_loss_weight": 0.5}
    # 5 photos in epochs, whatever the preset's steps are.
    settings = {name: value for name, value in SHORT.items() if name != "max_train_steps"} | without
    asked = settings | {"num_train_epochs": 1}
    plan = client.predict(photo_set, str(opened.base), "recommended", asked, api_name="/plan_training")
    named = {sentence.split('"')[1] for sentence in plan["notices"]}
    assert named == {"ema_decay", "prior_loss_weight", "num_class_images"}
    assert plan["steps"] == 5
    run = client.predict(photo_set, str(opened.base), "recommended", asked, api_name="/start_training")
    assert finished(client, run)["step"] == 5
    log = opened.workspace.run(run).log_path.read_text("utf-8")
    assert all(sentence in log for sentence in plan["notices"])


def test_a_finished_run_trains_more_steps(client: Client, opened: OpenPage) -> None:
    photo_set = upload(client)
    run = client.predict(photo_set, str(opened.base), "recommended", SHORT, api_name="/start_training")
    status = finished(client, run)
    assert (status["step"], status["more_from"]) == (4, 4)
    with pytest.raises(AppError, match="name a larger number"):
        client.predict(4, run, api_name="/train_more_steps")
    assert client.predict(6, run, api_name="/train_more_steps") == run
    status = finished(client, run)
    assert (status["status"], status["step"], status["total_steps"]) == ("done", 6, 6)
    assert status["steps"] == [2, 4, 6]
    shutil.rmtree(opened.workspace.run(run).checkpoints)
    assert client.predict(run, api_name="/training_status")["more_from"] is None
    with pytest.raises(AppError, match="cannot be trained further"):
        client.predict(8, run, api_name="/train_more_steps")


def test_mistakes_come_back_as_sentences(client: Client, opened: OpenPage) -> None:
    with pytest.raises(AppError, match="holds no photos"):
        client.predict("nothing-here", api_name="/start_training")
    with pytest.raises(AppError, match="cannot be a photo set"):
        client.predict("../../etc", api_name="/start_training")
    photo_set, wrong = upload(client), {"max_train_steps": 0, "learning_rate": 7}
    with pytest.raises(AppError, match=r"max_train_steps: is 0.*learning_rate: is 7"):
        client.predict(photo_set, str(opened.base), "recommended", wrong, api_name="/start_training")
    with pytest.raises(AppError, match="cannot be converted"):
        client.predict("/etc", ".safetensors", True, api_name="/convert")
    with pytest.raises(AppError, match="prompt: is empty"):
        client.predict(str(opened.base), " ", api_name="/generate")
    with pytest.raises(AppError, match="There is no run"):
        client.predict("no-such-run", api_name="/training_status")


def test_what_is_no_photo_is_told_and_not_kept(client: Client, opened: OpenPage, tmp_path: Path) -> None:
    note, broken = tmp_path / "note.txt", tmp_path / "broken.jpg"
    note.write_text("no photo")
    broken.write_bytes(b"\xff\xd8\xff")
    files = [handle_file(str(note)), handle_file(str(broken))]
    photo_set, report, *_ = client.predict(files, api_name="/upload_photos")
    assert photo_set == ""
    assert "note.txt is not a readable photo." in report
    assert "broken.jpg is not a readable photo." in report


# The app around it ---------------------------------------------------------------------------------------------------


def arguments(*words: str) -> argparse.Namespace:
    """Return the app's parsed command line."""
    return app.parse_arguments(words)


def test_the_launch_call(tmp_path: Path) -> None:
    door = app.PageAccess("127.0.0.1", 7860, share=False, auth=None, made_password=False)
    workspace = Workspace(tmp_path)
    given = app.launch_arguments(door, workspace, Settings(tmp_path), tmp_path / "page")
    guard = given["app_kwargs"]["middleware"][0]
    hosts = guard.kwargs["hosts"]
    assert (guard.cls, hosts.names, hosts.any_address) == (RequestChecks, ("localhost",), False)
    assert guard.kwargs["uploads"] == Uploads(tmp_path / "page", 2 * 1024**3, 1024**3, 500, 30)
    looks = {"theme", "css", "app_kwargs", "i18n"}
    assert {name: value for name, value in given.items() if name not in looks} == {
        "server_name": "127.0.0.1",
        "server_port": 7860,
        "share": False,
        "auth": None,
        "auth_message": None,
        "allowed_paths": [str(tmp_path / "exports")],
        "blocked_paths": [str(tmp_path / room) for room in ("runs", "datasets", "class_images", "models", "pictures")],
        "strict_cors": True,
        "max_file_size": "1gb",
        "run_history": False,
        "enable_monitoring": False,
        "mcp_server": False,
        "ssr_mode": False,
        "num_workers": 0,
        "state_session_capacity": 100,
        "pwa": True,
        "favicon_path": str(Path(app.__file__).parent / "ui" / "icon.svg"),
        "show_error": False,
        "footer_links": ["api", "settings"],
        "prevent_thread_lock": True,
        "quiet": True,
    }


def test_it_is_installable_at_home_and_nowhere_else(tmp_path: Path) -> None:
    def pwa(settings: Settings, **door: Any) -> bool:
        opened = app.PageAccess(
            **{"host": "127.0.0.1", "port": 1, "share": False, "auth": None, "made_password": False} | door
        )
        return bool(app.launch_arguments(opened, Workspace(tmp_path), settings, tmp_path / "page")["pwa"])

    assert pwa(Settings(tmp_path))
    assert not pwa(Settings(tmp_path), share=True)
    assert not pwa(Settings(tmp_path), host="0.0.0.0")
    assert not pwa(Settings(tmp_path, on_space=True))
    assert not pwa(Settings(tmp_path, on_colab=True))


def test_the_app_has_a_manifest_and_an_icon_of_its_own(opened: OpenPage) -> None:
    with urllib.request.urlopen(f"{opened.url}manifest.json", timeout=20) as response:
        manifest = json.loads(response.read())
    assert (manifest["name"], manifest["display"]) == ("DreamBooth", "standalone")
    (icon,) = manifest["icons"]
    assert (icon["sizes"], icon["type"]) == ("any", "image/svg+xml")
    with urllib.request.urlopen(urllib.parse.urljoin(opened.url, icon["src"]), timeout=20) as response:
        assert response.read() == app.ICON.read_bytes()
    assert answer(f"{opened.url}pwa_icon/100000") in (403, 404), "no picture of any size that somebody asks for"


def test_a_short_password_is_reported_and_not_taken_where_others_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`DREAMBOOTH_AUTH=a:b`: on this machine alone it is the user's to choose."""
    short = Settings(tmp_path, auth=("a", Secret("b")))
    assert app.page_access(arguments(), short).auth == ("a", "b")
    assert "The password in DREAMBOOTH_AUTH is shorter than 8 characters" in capsys.readouterr().err
    space = Settings(tmp_path, auth=("a", Secret("b")), host="0.0.0.0", on_space=True)
    for words, settings in ((("--share",), short), (("--host", "0.0.0.0"), short), ((), space)):
        with pytest.raises(ConfigError, match="DREAMBOOTH_AUTH: The password is shorter than 8 characters"):
            app.page_access(arguments(*words), settings)
    assert app.page_access(arguments("--share"), Settings(tmp_path, auth=("a", Secret("eight-ch")))).auth is not None
    assert capsys.readouterr().err == ""


def test_who_may_come_in(tmp_path: Path) -> None:
    plain, guarded = Settings(tmp_path), Settings(tmp_path, auth=("me", Secret("s3cret-words")))
    assert app.page_access(arguments(), plain).auth is None
    assert app.page_access(arguments(), guarded).auth == ("me", "s3cret-words")
    made = app.page_access(arguments("--auth"), plain)
    assert made.made_password
    assert made.auth is not None
    assert len(made.auth[1]) >= 12
    assert app.page_access(arguments("--share"), plain).auth is not None
    with pytest.raises(ConfigError, match="add --auth"):
        app.page_access(arguments("--host", "0.0.0.0"), plain)
    assert app.page_access(arguments("--host", "0.0.0.0", "--auth"), plain).host == "0.0.0.0"
    space = Settings(tmp_path, host="0.0.0.0", on_space=True)
    assert app.page_access(arguments(), space).auth is None
    colab = app.page_access(arguments(), Settings(tmp_path, on_colab=True))
    assert colab.share
    assert colab.auth is not None


def test_a_taken_port_is_one_sentence(capsys: pytest.CaptureFixture[str], opened: OpenPage) -> None:
    port = urllib.parse.urlsplit(opened.url).port
    assert app.main(["--port", str(port)]) == 1
    assert "That port is taken by another program." in capsys.readouterr().err


def test_the_page_is_built_without_torch(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
import app
from dreambooth.runs.jobs import Jobs
from dreambooth.models.manager import ModelManager
from dreambooth.environment import Settings
from dreambooth.records.workspace import Workspace
from ui.build import build_page
workspace = Workspace(Path(sys.argv[1]))
build_page(Jobs(workspace, ModelManager(), None), workspace, Settings(workspace.data_dir), Path(sys.argv[1]))
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""
    root = Path(app.__file__).parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=root, check=True, timeout=120)


def test_a_timer_that_is_faster_than_the_first_look_leaves_the_run_to_it(opened: OpenPage) -> None:
    """On a slow machine the two answers come in any order; neither may leave the page without its run."""
    name = "seen-late"
    write_json(RunFolder(opened.workspace.runs_dir / name).config_path, {})
    # All pages share what was read of the runs that long.
    time.sleep(SHARED_S)
    events = RawEvents(opened.url)
    (early,) = events.call("look", [None, {}, ""])
    assert early.error == ""
    assert name not in json.dumps(early.outputs)
    (first,) = events.call("first_look", [])
    assert name in json.dumps(first.outputs)


def test_the_scores_are_drawn_beside_the_recommendation_and_their_file_stays_private(
    opened: OpenPage, client: Client
) -> None:
    run = RunFolder(opened.workspace.runs_dir / "scored")
    write_json(run.config_path, {})
    for step in (2, 4):
        run.step_folder(step).mkdir()
        (run.step_folder(step) / "model_index.json").write_text("{}")
    scores = RunScores("made up", (StepScores(2, 0.8, 0.9, 0.1), StepScores(4, 0.9, 0.3, 0.7)))
    write_scores(run, scores)
    write_chart(scores, None, run.scores_chart_path)
    (look,) = RawEvents(opened.url).call("look", ["scored", {}, ""])
    assert "Step 2 is the best overall" in look.as_html
    assert (
        "Scores of step 4, each from 0 to 1: likeness 0.90, prompts followed 0.30, side effects 0.70." in look.as_html
    )
    assert answer(f"{opened.url}gradio_api/file={urllib.parse.quote(str(run.scores_chart_path))}") == 403
    assert client.predict("scored", api_name="/training_status")["recommended_step"] == 2
    with pytest.raises(AppError, match="scored is not running"):
        client.predict("scored", api_name="/finish_now")


# Calls that are not as described -------------------------------------------------------------------------------------


def test_a_call_of_another_form_is_told_what_is_wrong(client: Client, opened: OpenPage) -> None:
    photo_set = upload(client)
    for endpoint in ("/start_training", "/plan_training"):
        for wrong in (5, "lr=1", ["max_train_steps", 4]):
            with pytest.raises(AppError, match="settings: must be names with values"):
                client.predict(photo_set, str(opened.base), "recommended", wrong, api_name=endpoint)
    with pytest.raises(AppError, match="steps: must be a list of steps"):
        client.predict("a-run", 5, "a dog", api_name="/compare")
    with pytest.raises(AppError, match="as a list of names"):
        client.predict(5, api_name="/train_together")
    with pytest.raises(AppError, match="choices: must be a list of some of"):
        client.predict(5, api_name="/clean_storage")


def test_a_call_with_too_few_values_is_told_how_many_it_takes(opened: OpenPage) -> None:
    answer = RawEvents(opened.url).call("generate", ["starter"])[0]
    told = '"generate" takes 15 values; 1 were given. "Use via API" on the page lists them with their defaults.'
    assert html.unescape(answer.error) == told


@pytest.mark.slow
def test_a_deleted_runs_model_makes_no_more_pictures(tmp_path: Path) -> None:
    """It is still in memory from the last picture."""
    with open_page(tmp_path, takes_folders=True) as page:
        client = Client(page.url, verbose=False)
        run = client.predict(upload(client), str(page.base), "recommended", SHORT, api_name="/start_training")
        model = finished(client, run)["models"][-1]
        picture = (model, "a dog", "", 1, 1, 3.0, "32", "32", "11")
        assert len(client.predict(*picture, api_name="/generate")[0]) == 1
        client.predict(run, True, api_name="/delete_run")
        with pytest.raises(AppError, match="is not there. Its files are gone"):
            client.predict(*picture, api_name="/generate")


# One damaged record --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", ["config.json", "state.json", "scores.json", "events.jsonl", "log.txt"])
def test_one_damaged_record_hides_no_other_run(client: Client, opened: OpenPage, record: str) -> None:
    """Nested 100,000 deep, infinite, no text, a folder in the file's place."""
    good = opened.workspace.run("good-run")
    write_json(good.config_path, {})
    for number, content in enumerate((b"[" * 100_000, b'{"step": 1e999}', b"\xff\xfe", b"5", None)):
        damaged = opened.workspace.run(f"damaged-{record.partition('.')[0]}-{number}")
        write_json(damaged.config_path, {})
        if content is None and record != "config.json":
            (damaged.records / record).mkdir()
        elif content is not None:
            (damaged.records / record).write_bytes(content)
    listed = {one["run"]: one for one in client.predict(api_name="/list_runs")}
    assert listed["good-run"]["status"] == "interrupted"
    assert len([name for name in listed if name.startswith(f"damaged-{record.partition('.')[0]}")]) == 5
    assert client.predict("good-run", api_name="/training_status")["run"] == "good-run"


def test_damaged_words_are_the_usual_ones(client: Client, opened: OpenPage) -> None:
    """A value that is no text, or cannot be shown: the set is listed, checked and trained with usual words."""
    photo_set = upload(client)
    for content in ('{"identifier": 5}', '{"class_word": ["dog"]}', "[" * 100_000, '{"class_prompt": "\\ud800"}'):
        (opened.workspace.datasets_dir / photo_set / "words.json").write_text(content)
        listed = {one["photo_set"]: one for one in client.predict(api_name="/list_photo_sets")}
        assert (listed[photo_set]["identifier"], listed[photo_set]["class_word"]) == ("zwx", "dog")
        assert client.predict("dog", api_name="/propose_identifier") != "zwx"
        plan = client.predict(photo_set, str(opened.base), "recommended", SHORT, api_name="/plan_training")
        assert plan["settings"]["concepts"][0]["instance_prompt"] == "photo of zwx dog"
