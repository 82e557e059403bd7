"""Dependencies: the versions below which a known hole is open are not accepted, and the tested set is above them."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
# The first version without the hole: see the comment in requirements.txt.
FLOORS = {"torch": "2.10", "pillow": "12.2", "gradio": "6.20"}


def lines(name: str) -> dict[str, Requirement]:
    """Return the requirements of a file by name."""
    texts = (line.split("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    found = [Requirement(text) for text in texts if text and not text.startswith("-")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


@pytest.mark.parametrize("name", FLOORS)
def test_versions_with_known_holes_are_not_accepted(name: str) -> None:
    """S14: floors stand in requirements.txt, and the tested set is above them."""
    wanted = lines("requirements.txt")[name].specifier
    floor = Version(FLOORS[name])
    lowest = min(Version(part.version) for part in wanted if part.operator == ">=")
    assert lowest >= floor
    (pinned,) = lines("constraints.txt")[name].specifier
    assert pinned.operator == "=="
    assert Version(pinned.version) >= floor


def test_the_command_that_looks_for_known_vulnerabilities_is_documented() -> None:
    """S14: one command over the tested set, which is pinned to the version throughout."""
    assert re.search(r"`pip-audit -r constraints\.txt", (ROOT / "requirements.txt").read_text("utf-8"))
    pinned = lines("constraints.txt")
    assert set(lines("requirements.txt")) <= set(pinned)
    assert all(len(requirement.specifier) == 1 for requirement in pinned.values())
