"""The README and the documents, and their examples run as a user would."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]


def text() -> str:
    """Return the README and the documents, one after the other."""
    return "\n".join(document.read_text("utf-8") for document in DOCUMENTS)


def block_after(marker: str, language: str) -> str:
    """Return the first code block of a language after a marker."""
    return text().split(f"<!-- {marker} -->")[1].split(f"```{language}\n")[1].split("```")[0]


def run(code: str, folder: Path) -> str:
    """Run code as a user would, in that folder; returns what it printed."""
    (folder / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec(open('example.py').read())"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
