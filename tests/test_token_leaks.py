"""S9: a token goes to the Hub and nowhere else, also when a library complains with the token in its words."""

import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

import app
from dreambooth.data.samples import sample_folder
from dreambooth.environment import load_settings
from dreambooth.errors import hide_in_tracebacks, traceback_text, without_secrets
from tests.harness.open_page import free_port
from tests.harness.raw_events import RawEvents
from tests.harness.tiny import tiny_base

# In two parts, so that no scan of the repository takes it for one.
CANARY = "hf_" + "CANARYtokenThatNoHubKnows" + "Zq7Wx9Kv"
ROOT = Path(app.__file__).parent
TRAIN = {
    "max_train_steps": 2, "save_interval": 1, "n_save_sample": 1, "save_infer_steps": 1, "mixed_precision": "no",
    "resolution": 32, "num_crop_variants": 1,
}  # fmt: skip
PLAIN = {"use_8bit_adam": False, "with_prior_preservation": False}
LONG = {"max_train_steps": 5000, "save_interval": 5000}

# A hub whose answer repeats the token in each of its spellings, as an error of a library, of the system, of anything.
LEAKING = """
import base64, os, sys, urllib.parse
import huggingface_hub
def leaking(name, *, token=None, **others):
    with open(os.environ["WITNESS"], "a") as witness:
        print(name, "was given the token" if token == os.environ["EXPECTED"][::-1] else "was not", file=witness)
    told = " ".join((
        "401 for", token, "Authorization: Basic", base64.b64encode(b"user:" + token.encode()).decode(),
        urllib.parse.quote(f"?token={token}", safe=""), "..." + token[-8:],
    ))
    kind = {"system": OSError, "value": ValueError, "plain": RuntimeError}[name.split("/")[1]]
    raise kind(told)
huggingface_hub.snapshot_download = leaking
# The first that a push asks the Hub.
huggingface_hub.HfApi.whoami = lambda api, **others: leaking("somebody/system", token=api.token)
# What is asked before a start is told in one sentence. Here the Hub leaks into runs under way, their logs and states.
import dreambooth.models.availability as availability
availability.bytes_to_download = lambda *arguments, **others: 0
"""
COMMANDS = """
import json
from dreambooth.commands.cli import main
out, base, photos = sys.argv[1:4]
flags = [text for name, value in json.loads(sys.argv[4]).items() for text in (f"--{name}", str(value))]
flags += ["--instance_data_dir", photos, "--instance_prompt", "photo of zwx dog"]
def train(base, name, *more):
    return main(["train", *flags, "--pretrained_model_name_or_path", base, "--output_dir", f"{out}/{name}", *more])
assert train(base, "good") == 0
assert main(["convert", f"{out}/good", f"{out}/model.ckpt"]) == 0
assert main(["convert", f"{out}/good", f"{out}/model.safetensors", "--half"]) == 0
picture = ["--prompt", "a dog", "--num_inference_steps", "1", "--num_images_per_prompt", "1", "--output_dir", out]
assert main(["generate", "--model", f"{out}/good", *picture]) == 0
for kind in ("system", "value", "plain"):
    assert train(f"somebody/{kind}", f"failed-{kind}") == 1
assert train(base, "good") == 1
assert main(["push", f"{out}/good", "somebody/system"]) == 1
assert main(["push", f"{out}/good", "somebody/system", "--single_file", "--public"]) == 1
assert main(["generate", "--model", "somebody/system", *picture]) == 1
print("all ran", flush=True)
main(["generate", "--model", "somebody/plain", *picture])
"""
PAGE = """
import app
sys.exit(app.main(sys.argv[1:]))
"""


@dataclasses.dataclass
class Traces:
    """What was left by the commands and by the page: texts by surface, and the folder of all files."""

    folder: Path
    texts: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, surface: str, text: str) -> None:
        """Keep what a surface showed."""
        self.texts[surface] = self.texts.get(surface, "") + text + "\n"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of a process that knows nothing of this machine's user."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DREAMBOOTH_", "GRADIO_"))}
    return kept | {
        "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
        "DREAMBOOTH_HOME": str(folder / "data"), "WITNESS": str(folder / "witness.txt"), "EXPECTED": CANARY[::-1],
        **more,
    }  # fmt: skip


def command_line(process: "subprocess.Popen[str]") -> str:
    """Return a process's arguments as every user of the machine can read them."""
    path = Path(f"/proc/{process.pid}/cmdline")
    if not path.exists():
        return " ".join(map(str, process.args))
    # Linux shows none for an instant after a program was started.
    while not (shown := path.read_bytes().replace(b"\0", b" ").decode()) and process.poll() is None:
        time.sleep(0.01)
    return shown


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Train, fail, convert and generate in one process with the token in its environment, and through the page."""
    folder = tmp_path_factory.mktemp("traces")
    found = Traces(folder)
    base = tiny_base(folder / "data" / "models" / "tiny")
    run_commands(found, folder, base)
    use_the_page(found, folder, base)
    return found


def run_commands(found: Traces, folder: Path, base: Path) -> None:
    """Run the commands with HF_TOKEN; the last one ends in a bug that speaks of the token."""
    program = [sys.executable, "-c", LEAKING + COMMANDS, str(folder / "out"), str(base), str(sample_folder())]
    with subprocess.Popen(
        [*program, json.dumps(TRAIN)], cwd=folder, env=environment(folder, HF_TOKEN=CANARY), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        found.add("arguments of the commands", command_line(process))
        out, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    assert out.endswith("all ran\n"), errors
    assert "Traceback" in errors
    found.add("output of the commands", out)
    found.add("errors of the commands", errors)


def use_the_page(found: Traces, folder: Path, base: Path) -> None:
    """Do the same through the page, whose token stands in .env."""
    (folder / ".env").write_text(f"HF_TOKEN={CANARY}\n")
    port = free_port()
    with (
        (folder / "page-out.txt").open("w") as out,
        (folder / "page-errors.txt").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-c", LEAKING + PAGE, "--port", str(port)], cwd=folder, env=environment(folder),
            stdout=out, stderr=errors, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            visit(found, f"http://127.0.0.1:{port}/", base)
            found.add("arguments of the page", command_line(process))
        finally:
            process.terminate()
            process.wait(60)
    (folder / ".env").unlink()
    found.add("output of the page", (folder / "page-out.txt").read_text())
    found.add("errors of the page", (folder / "page-errors.txt").read_text())


def visit(found: Traces, url: str, base: Path) -> None:
    """Use every function of an open page, and keep what it answers."""
    deadline_s = time.monotonic() + 60
    while True:
        try:
            found.add("HTML", httpx.get(url).text)
            break
        except httpx.HTTPError:
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
    client, told = Client(url, verbose=False), []

    def ask(*given: Any, api_name: str) -> Any:
        try:
            answer = client.predict(*given, api_name=api_name)
        except AppError as error:
            found.add("messages of errors on the page", str(error))
            return None
        told.append(answer)
        return answer

    photo_set = ask([handle_file(str(path)) for path in sorted(sample_folder().glob("*"))], api_name="/upload_photos")[
        0
    ]
    runs = [
        ask(photo_set, name, "recommended", TRAIN | PLAIN, api_name="/start_training")
        for name in (str(base), "somebody/system", "somebody/value", "somebody/plain")
    ]
    for run in runs:
        while ask(run, api_name="/training_status")["status"] not in ("done", "failed"):
            time.sleep(0.2)
    statuses = [ask(run, api_name="/training_status")["status"] for run in runs]
    assert statuses == ["done", "failed", "failed", "failed"]
    model = ask(api_name="/list_models")[0]["model"]
    # One that is stopped keeps its exact state.
    stopped = ask(photo_set, str(base), "recommended", TRAIN | PLAIN | LONG, api_name="/start_training")
    while ask(stopped, api_name="/training_status")["step"] < 1:
        time.sleep(0.1)
    ask(stopped, api_name="/stop_training")
    while ask(stopped, api_name="/training_status")["status"] != "stopped":
        time.sleep(0.1)
    ask(api_name="/list_runs")
    ask(model, ".ckpt", False, api_name="/convert")
    ask(model, "a dog", "", 1, 1, 1.0, "32", "32", "1", api_name="/generate")
    for name in ("somebody/system", "somebody/plain", "somebody/value"):
        ask(name, "a dog", "", 1, 1, 1.0, "32", "32", "1", api_name="/generate")
    for name in ("somebody/system", "somebody/plain", "somebody/value"):
        ask(model, name, True, False, api_name="/push_to_hub")
    ask("x", "somebody/plain", "recommended", {}, api_name="/start_training")
    found.add("answers of the page's API", json.dumps(told))
    for answer in RawEvents(url).call("look", *[[run, None, ""] for run in runs]):
        found.add("what the page shows of runs", json.dumps(answer.outputs) + answer.error)
    for surface, path in {
        "/config": "config",
        "/info": "gradio_api/info",
        "openapi": "gradio_api/openapi.json",
    }.items():
        answer = httpx.get(url + path)
        assert answer.status_code == 200
        found.add(surface, answer.text)
    found.add("HTML", httpx.get(url).text)


# Reading it all ------------------------------------------------------------------------------------------------------


def needles() -> dict[str, bytes]:
    """Return the token as it may be spelled: raw, backwards, URL-encoded, in base64 at any place, its last 8."""
    found = {"raw": CANARY, "url": urllib.parse.quote(CANARY, safe=""), "last 8": CANARY[-8:], "back": CANARY[::-1]}
    for offset in range(3):
        encoded = base64.b64encode(b"x" * offset + CANARY.encode()).decode()
        found[f"base64 at {offset}"] = encoded[4:-4]
    found["hex"] = CANARY.encode().hex()
    return {name: text.encode() for name, text in found.items()}


def hits(content: bytes) -> list[str]:
    """Return which spellings of the token are in there."""
    return [name for name, needle in needles().items() if needle.lower() in content.lower()]


def files(traces: Traces, pattern: str) -> list[Path]:
    """Return the files whose path matches, in every folder that a process wrote to."""
    paths = [path for path in sorted(traces.folder.rglob("*")) if path.is_file()]
    return [path for path in paths if re.search(pattern, str(path.relative_to(traces.folder)))]


TEXTS = (
    "arguments of the commands", "output of the commands", "errors of the commands", "arguments of the page",
    "output of the page", "errors of the page", "HTML", "/config", "/info", "openapi", "answers of the page's API",
    "messages of errors on the page", "what the page shows of runs",
)  # fmt: skip
# A pattern of the paths, and how many there must be at least.
FILES = {
    "args.json": (r"/args\.json$", 4),
    "settings of runs": (r"\.run/config\.json$", 8),
    "states of runs": (r"\.run/state\.json$", 8),
    "events": (r"\.run/events\.jsonl$", 8),
    "logs": (r"\.run/log\.txt$", 8),
    "exact states and their manifests": (r"\.run/state/", 4),
    "every other JSON": (r"\.json$", 20),
    "weights": (r"\.safetensors$", 10),
    "pickled weights": (r"\.ckpt$", 2),
    "pictures": (r"\.(png|jpg)$", 10),
    "everything there is": (r"", 50),
}


@pytest.mark.slow
@pytest.mark.parametrize("surface", TEXTS)
def test_the_token_is_in_no_text(traces: Traces, surface: str) -> None:
    assert traces.texts[surface].strip()
    assert hits(traces.texts[surface].encode()) == []


@pytest.mark.slow
@pytest.mark.parametrize("surface", FILES)
def test_the_token_is_in_no_file(traces: Traces, surface: str) -> None:
    pattern, num_at_least = FILES[surface]
    found = files(traces, pattern)
    assert len(found) >= num_at_least
    for path in found:
        assert hits(path.read_bytes()) == [], path
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert hits(repr(picture.info).encode()) == [], path
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                assert not any(hits(archive.read(name)) for name in archive.namelist()), path


@pytest.mark.slow
def test_the_hub_was_given_the_token_and_the_words_were_told(traces: Traces) -> None:
    """Control: the token did reach the place it is for, and what was said of it arrived with stars."""
    witness = (traces.folder / "witness.txt").read_text().splitlines()
    assert len(witness) >= 10
    assert all(line.endswith("was given the token") for line in witness)
    for surface in ("errors of the commands", "errors of the page", "messages of errors on the page"):
        assert "401 for ********" in traces.texts[surface], surface
    logs = "".join(path.read_text() for path in files(traces, r"\.run/(log\.txt|state\.json|events\.jsonl)$"))
    assert logs.count("401 for ********") >= 12
    print(f"S9: {len(TEXTS) + len(FILES)} surfaces, {len(files(traces, ''))} files, {len(needles())} spellings, 0 hits")


def test_the_scan_finds_each_spelling() -> None:
    """Control: each spelling that an error may have is found, and none after it was hidden."""
    load_settings(env={"HF_TOKEN": CANARY})
    for padding in ("", "u", "us", "user:"):
        for told in (
            CANARY, CANARY[-8:], urllib.parse.quote(f"token={CANARY}", safe=""),
            base64.b64encode(f"{padding}{CANARY}".encode()).decode(),
            base64.b64encode(f"{padding}{CANARY}{padding}".encode()).decode(),
        ):  # fmt: skip
            assert hits(told.encode())
            assert hits(without_secrets(told).encode()) == []
            assert hits(traceback_text(ValueError(told)).encode()) == []


def test_a_thread_that_dies_prints_no_token(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    load_settings(env={"HF_TOKEN": CANARY})
    hide_in_tracebacks()

    def fail() -> None:
        raise OSError(f"refused {CANARY}")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "OSError: refused ********" in capsys.readouterr().err
