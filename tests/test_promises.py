"""What docs/reliability.md and docs/files.md name as proof is there: every row, every command, every test."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
FILES = (ROOT / "docs" / "files.md").read_text("utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines() if re.match(r"\| \w", line)
]
COMMANDS = sorted(set(re.findall(r"`(?:python -m )(pytest [^`]+)`", TABLE + FILES)))
AT_EVERY_PUSH = [f"R{n}" for n in (4, 5, 7, 11, 12, 13, 14, 19, 21, 22, 26, 27, 28, 29)]
AT_EVERY_PUSH += [f"S{n}" for n in (*range(1, 11), 12, 15)]


@cache
def promised(file: Path) -> dict[str, tuple[str, set[str]]]:
    """Return a file's tests by name: what `-k` looks through, and the marks of each."""
    tree = ast.parse(file.read_text("utf-8"))
    shared = {mark for node in tree.body if isinstance(node, ast.Assign) for mark in _marks(node.value)}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    return {
        one.name: (
            " ".join([file.name, one.name, *map(ast.unparse, one.decorator_list)]),
            shared | {mark for each in one.decorator_list for mark in _marks(each)},
        )
        for one in functions
    }


def _marks(node: ast.expr) -> set[str]:
    """Return what a decorator or `pytestmark` marks with, not what its parameters are marked with."""
    found = (re.match(r"(?:pytest\.)?mark\.(\w+)", ast.unparse(one)) for one in getattr(node, "elts", [node]))
    return {one[1] for one in found if one}


def chosen(command: str) -> dict[str, set[str]]:
    """Return the tests that a pytest command of the documents runs, with their marks."""
    words = shlex.split(command)[1:]
    expression = words.pop(words.index("-k") + 1) if "-k" in words else ""
    wanted = words.pop(words.index("-m") + 1) if "-m" in words else ""
    files = [ROOT / word for word in words if not word.startswith("-")] or sorted((ROOT / "tests").rglob("test_*.py"))
    found = {}
    for file in files:
        for name, (text, marks) in promised(file).items():
            picked = any(word in text for word in expression.split(" or "))
            long = marks & {"reliability", "full_size"}
            if picked and (wanted in marks if wanted else not long):
                found[f"{file.name}::{name}"] = marks
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_documents_runs_tests_that_are_there(command: str) -> None:
    assert chosen(command)
    if "-k" in command:
        start, _, expression = command.rpartition(" -k ")
        for word in expression.strip('"').split(" or "):
            assert chosen(f"{start} -k {word}"), word


def test_every_promise_has_its_row_with_count_outcome_date_and_command() -> None:
    numbered = {row[0].split(",")[0] for row in ROWS}
    assert {f"R{n}" for n in range(1, 20)} | {f"S{n}" for n in range(1, 15)} <= numbered
    for name, promise, tried, held, date, command in ROWS:
        assert promise, name
        assert re.search(r"\d|every file|^-$", tried), name
        assert re.search(r"\d|all|refused", held), name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", date), name
        assert "pytest" in command, name


@pytest.mark.parametrize("name", AT_EVERY_PUSH)
def test_the_push_tier_tries_it(name: str) -> None:
    commands = [line for row in ROWS if row[0].split(",")[0] == name for line in re.findall(r"`([^`]+)`", row[-1])]
    assert any(
        line.startswith("python -m pytest tests/") and chosen(line.removeprefix("python -m ")) for line in commands
    )


def test_the_documents_name_no_test_file_that_is_not_there() -> None:
    named = set(re.findall(r"\btests/[\w/]+\.py", TABLE + FILES))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
