"""Settings from anywhere: every field refuses what it cannot use by one message naming its limit; no name is a path."""

import ast
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from dreambooth.commands.cli import main
from dreambooth.config.concepts import Concept
from dreambooth.config.fields import FieldInfo, describe
from dreambooth.config.generation import GenerationConfig
from dreambooth.config.training import TrainingConfig
from dreambooth.environment import Secret
from dreambooth.errors import ConfigError, DreamBoothError
from dreambooth.records.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [(kind, info) for kind in (TrainingConfig, GenerationConfig) for info in describe(kind)]
NUMBERS: list[Any] = [
    float("nan"), float("inf"), float("-inf"), -1, -0.001, -1e308, 1e308, 10**400, -(10**400), 10**5000, 2**63,
    2**64 + 1, 0.5, True, "7", "1e999", "", None, [], {}, b"1",
]  # fmt: skip
TEXTS: list[Any] = [
    "x" * 10_000, "a\0b", "a\x1b[31m", "a\x07", "\ud800", "x\udfffy", "\x9b", 7, 1.5, True, [], {}, ["a"], b"bytes",
]  # fmt: skip
HOSTILE = [
    "../../../etc/passwd", "/etc/passwd", "..", ".", "", "~root", "~/.ssh/id_rsa", "a/../../b", "..\\..\\x", "C:\\x",
    "\\\\server\\share", "CON", "nul.txt", "a:b", "x" * 300, "\u202egpj", "\u200b", "\uff0e\uff0e\uff0fetc",
    "%2e%2e%2f", "-rf", "--output_dir=/tmp", ".run", ".run/state.json", "$(touch canary)", "`touch canary`",
    "; touch canary",
    "| touch canary", "&& touch canary", "\n touch canary", "a\0b", "{{7*7}}", "${jndi:ldap://x}",
    "<img src=x onerror=y>",
    "' OR 1=1 --", "%n%s%x", "file:///etc/passwd", "http://127.0.0.1/", "*", "?", "!!python/object/apply:os.system [x]",
]  # fmt: skip


def refusal(kind: type, name: str, value: Any, photos: Path) -> ConfigError | None:
    """Return the error that this one field's value causes in otherwise good settings."""
    good: dict[str, Any] = {"prompt": "a dog"}
    if kind is TrainingConfig:
        good = {"concepts": (Concept("photo of zwx dog", str(photos), "photo of dog"),), "train_text_encoder": True}
    try:
        kind(**(good | {name: value})).checked()
    except ConfigError as error:
        return error
    return None


def is_usable(info: FieldInfo, value: Any) -> bool:
    """Return by the field's own description, and not by the product's check, whether the value is one of its own."""
    if value is None:
        return info.optional
    if info.type in (bool, str):
        return isinstance(value, info.type) and not info.choices
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return False
    if info.type is int and (value in (float("inf"), float("-inf")) or value != int(value)):
        return False
    low, high = (-1e300 if info.low is None else info.low), (1e300 if info.high is None else info.high)
    return low <= value <= high and not (info.name in ("resolution", "height", "width") and value % 8)


@pytest.mark.parametrize(("kind", "info"), FIELDS, ids=[f"{kind.__name__}.{info.name}" for kind, info in FIELDS])
def test_every_field_refuses_what_it_cannot_use_and_names_its_limit(kind: type, info: FieldInfo, photos: Path) -> None:
    """S12: NaN, infinite, negative, huge and mistyped values, 10,000 characters: one message, naming the limit."""
    values = TEXTS if info.type is str else NUMBERS
    for value in values:
        error = refusal(kind, info.name, value, photos)
        if info.type is not str and is_usable(info, value):
            continue  # inside the range
        assert error is not None, f"{info.name} took {value!r:.60}"
        assert {problem.field for problem in error.problems} == {info.name}
        (message,) = {problem.message for problem in error.problems if problem.field == info.name}
        assert len(message) < 300
        assert message.isprintable()
        if isinstance(value, int | float) and not isinstance(value, bool) and info.type in (int, float):
            limits = [f"{bound:g}" for bound in (info.low, info.high) if bound is not None]
            assert not limits or info.range_text in message or "a whole number" in message or "a number" in message
        if value == "x" * 10_000 and not info.choices and info.name not in ("revision", "variant"):
            assert "at most 2000" in message


@pytest.mark.parametrize("field", ["instance_prompt", "class_prompt", "instance_data_dir", "class_data_dir"])
def test_every_field_of_a_concept_refuses_what_it_cannot_use(field: str, photos: Path) -> None:
    """S12: the words and folders of a concept have the same limits."""
    good = {"instance_prompt": "photo of zwx dog", "instance_data_dir": str(photos), "class_prompt": "photo of dog"}
    for value in [text for text in TEXTS if isinstance(text, str)]:
        config = TrainingConfig(concepts=(Concept(**(good | {field: value})),))
        with pytest.raises(ConfigError) as told:
            config.checked()
        assert {problem.field for problem in told.value.problems} == {field}
        assert all(problem.message.isprintable() and len(problem.message) < 300 for problem in told.value.problems)
    with pytest.raises(ConfigError, match="must be text"):
        TrainingConfig.from_json({"concepts": [good | {field: 7}]})


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_name_leaves_its_folder(name: str, tmp_path: Path, photos: Path, monkeypatch: Any) -> None:
    """S10, S5: 40 hostile prompts, names and paths: no canary, nothing made outside the data folder."""
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.chdir(room)
    workspace = Workspace(tmp_path / "data")
    assert workspace.runs_dir.is_dir()
    before = set(tmp_path.rglob("*"))
    made = workspace.runs_dir / workspace.new_run_name(name)
    assert made.parent == workspace.runs_dir
    assert re.fullmatch(r"[A-Za-z0-9_-]+", made.name)
    assert not made.name.startswith("-")
    with contextlib.suppress(DreamBoothError):
        assert workspace.run(name).path.resolve().parent == workspace.runs_dir.resolve()
    for field in ("logging_dir", "revision", "variant", "tokenizer_name", "save_sample_prompt", "output_dir"):
        refusal(TrainingConfig, field, name, photos)
    for field in ("prompt", "negative_prompt"):
        refusal(GenerationConfig, field, name, photos)
    assert set(tmp_path.rglob("*")) == before | {made}
    assert list(room.iterdir()) == []


@pytest.mark.parametrize("name", ["/tmp/logs", "../logs", "logs/../../..", "a/../../b"])
def test_the_log_folder_stays_in_the_run(name: str, photos: Path) -> None:
    """S5: `logging_dir` is a folder under `0/`, whatever it says."""
    error = refusal(TrainingConfig, "logging_dir", name, photos)
    assert error is not None
    assert "points outside" in str(error)
    assert refusal(TrainingConfig, "logging_dir", "logs/mine", photos) is None


@pytest.mark.parametrize("name", ["../../x", "a/../b", "*", "[a-z]", "fp16 ", "-x", "a\nb", "", "x" * 101])
def test_a_revision_or_variant_is_a_plain_name(name: str, photos: Path) -> None:
    """S5: they become parts of addresses and of patterns for files."""
    assert refusal(TrainingConfig, "variant", name, photos) is not None
    assert refusal(TrainingConfig, "revision", name, photos) is not None
    assert refusal(TrainingConfig, "variant", "fp16", photos) is None
    assert refusal(TrainingConfig, "revision", "refs/pr/7", photos) is None


def test_no_command_goes_through_a_shell() -> None:
    """S10: `shell=True`, os.system, os.popen and their like: 0 uses in the product, the page and the benchmarks."""
    found = []
    for folder in ("dreambooth", "ui", "benchmarks", "."):
        pattern = "*.py" if folder == "." else "**/*.py"
        for path in (ROOT / folder).glob(pattern):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.keyword) and node.arg == "shell":
                    found.append(f"{path}:{node.value.lineno}")
                if isinstance(node, ast.Call) and re.fullmatch(
                    r"os\.(system|popen|spawn\w*|exec\w*)|subprocess\.(getoutput|getstatusoutput)|eval|exec|pty\.spawn",
                    ast.unparse(node.func),
                ):
                    found.append(f"{path}:{node.lineno}")
    assert found == []


# Tokens --------------------------------------------------------------------------------------------------------------

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}|hf_oauth_[A-Za-z0-9._-]{30,}")
SKIPPED = {".git", "outputs", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}


def test_nothing_in_the_repository_looks_like_a_hub_token() -> None:
    """S9: the seed's document carried a leaked token; no file here has anything like one, weights included."""
    found = []
    for path in ROOT.rglob("*"):
        if path.is_file() and not SKIPPED & set(path.relative_to(ROOT).parts):
            found += [f"{path}: {match[:8]!r}..." for match in TOKEN.findall(path.read_bytes())]
    assert found == []


def test_the_token_scan_finds_one(tmp_path: Path) -> None:
    """S9, control: a token of the Hub's shape is seen, and a Secret never prints it."""
    token = "hf_" + "aB3" * 12
    assert TOKEN.search(json.dumps({"token": token}).encode())
    assert token not in f"{Secret(token)} {Secret(token)!r}"


@pytest.mark.parametrize(
    "name", ["x" * 5000 + ".zip", "a\0b.zip", "gone.zip", "/etc/passwd.zip", "x" * 300, "a\0b", "."]
)
def test_a_hostile_folder_of_photos_is_a_sentence_on_the_command_line(
    name: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """S10, S12: whatever stands for the photos, the shell gets words and status 1."""
    monkeypatch.chdir(tmp_path)
    flags = ["train", "--instance_data_dir", name, "--instance_prompt", "photo of zwx dog", "--max_train_steps", "1"]
    if name == ".":
        flags += ["--output_dir", "y" * 300]
    assert main([*flags, "--pretrained_model_name_or_path", "starter"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told
    assert list(tmp_path.iterdir()) == []
