"""What people read uses the field's words: terms with a better one appear in no text of the page, commands or docs.

Names are exempt, since others rely on them: code spans, flags, settings, and the recorded values in `CONTRACTS`.
"""

import argparse
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth.commands.cli import build_parser

ROOT = Path(__file__).resolve().parent.parent

# A pattern, and what a technical writer of the field says instead.
BETTER = {
    r"(un)?taught": "trained, fine-tuned, learned; for a model without training: the base model",
    r"class pictures?": "class images",
    r"words for (your photos|the class|this photo)": "instance prompt, class prompt, caption",
    r"not in the picture": "negative prompt",
    r"usual words": "default negative prompt",
    r"(waits?|waiting) in line|place \d+ in (the )?line|(in|out of) the line": "queue, queued, position 2 in the queue",
    r"(is|was|while|runs) at work|at work or": "running, training",
    r"gauges?|looks at fixed noise|looks at the losses": "evaluation at fixed noise",
    r"views? (it|the model|training) never saw": "held-out views",
    r"steps? to take": "recommended step",
    r"what takes how much": "disk usage",
    r"by heart": "overfitting, memorization",
    r"amid": "during, in the middle of",
    r"broken off": "interrupted",
    r"mend(s|ed|ing)?": "fix, repair",
    r"make room": "free some space",
    r"seldom": "rarely",
    r"anew": "again, from scratch",
    r"(lie|lies|lay) (in|on|at|beside|there|here)": "is in, is at; saved to",
    r"wants? (a|an|the|its|another|torch)": "needs",
    r"(is|was|are) told": "is shown, reported, listed",
    r"nothing to complain of|will all do|all of them will do": "looks good, usable",
    r"nobody has looked|looked at by": "scored by, not measured yet",
    r"greyed": "not available, not enough memory for",
    r"one household": "anyone who can open this page",
    r"order of authority": "precedence",
    r"cannot be: \w+ says": "some settings are invalid",
    r"time told": "time estimate",
    r"(been|are) let in": "has access",
    r"(holds|has|is) no recipe|picture's recipe": "settings (a picture has settings, a training has a recipe)",
    r"(?<!there )is no (?!longer|more|other|better|part of|need|room|default)": "is not a",
}
PATTERNS = {re.compile(rf"\b(?:{pattern})\b", re.IGNORECASE): better for pattern, better in BETTER.items()}

# Recorded values and titles of measures: names in files, not prose.
CONTRACTS = {"class pictures", "photos by the class prompt", "the starter's judge"}
NAMES = re.compile(r"`[^`]*`|<[^>]*>|--[\w-]+|\b\w+_\w+\b|\]\([^)]*\)|https?://\S+")


def texts_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the strings of a source file that are prose, with their lines; docstrings are none."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            parts = [one.value if isinstance(one, ast.Constant) else "{}" for one in node.values]
            skipped |= {id(one) for one in ast.walk(node)}
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def texts() -> Iterator[tuple[str, str]]:
    """Yield everything that users read, each with where it is."""
    for path in [*sorted(ROOT.glob("dreambooth/**/*.py")), *sorted(ROOT.glob("ui/**/*.py")), ROOT / "app.py"]:
        for line, text in texts_of_code(path):
            is_prose = (" " in text.strip() or text[:1].isupper()) and "=>" not in text  # no scripts of the page
            if is_prose and text not in CONTRACTS:
                yield f"{path.relative_to(ROOT)}:{line}", text
    for path in [ROOT / "README.md", ROOT / ".env.example", *sorted(ROOT.glob("docs/*.md"))]:
        prose = re.sub(
            r"```.*?```", lambda block: "\n" * block[0].count("\n"), path.read_text("utf-8"), flags=re.DOTALL
        )
        for number, text in enumerate(prose.splitlines(), 1):
            yield f"{path.relative_to(ROOT)}:{number}", text
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for number, cell in enumerate(json.loads(path.read_text("utf-8"))["cells"]):
            yield f"{path.relative_to(ROOT)}, cell {number}", "".join(cell["source"])
    for name, parser in commands().items():
        yield f"python -m dreambooth {name} --help", " ".join(parser.format_help().split())


def commands() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, that of the program under no name."""
    parser = build_parser()
    (subparsers,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    return {"": parser, **subparsers.choices}


def worse_words(where: str, text: str) -> list[str]:
    """Return what to change in a text: each term that has a better one."""
    prose = NAMES.sub(" ", text)
    return [f'{where}: "{found[0]}": {better}' for term, better in PATTERNS.items() for found in term.finditer(prose)]


def test_no_text_uses_a_word_that_has_a_better_one() -> None:
    found = [one for where, text in texts() for one in worse_words(where, text)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("Pictures of the untaught base", True),
        ("50 Class pictures", True),
        ("It waits in line, at place 2.", True),
        ('"dog" is no folder', True),
        ("There is no photo set of that name.", False),
        ("`gauge_interval` and --gauge_interval are names", False),
        ("A trained model and its class images", False),
    ],
)
def test_a_planted_word_is_found_and_a_name_is_not(text: str, is_found: bool) -> None:
    assert bool(worse_words("here", text)) == is_found
