"""Text files as editors write them: what is read, what is refused, and that a refusal names the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth.data.focus import Focus, read_focus
from dreambooth.errors import TextFileError
from dreambooth.formats.text_files import read_text

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16")  # utf-16 writes a byte order mark


def preflight(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask the command line for a trial with these arguments, in a process of its own."""
    command = [sys.executable, "-m", "dreambooth", "preflight", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("encoding", [*ENCODINGS, "utf-16-be"])
def test_text_is_read_in_every_encoding_that_says_what_it_is(tmp_path: Path, encoding: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    (tmp_path / "note.txt").write_bytes(f"{mark}café 犬\n".encode(encoding))
    assert read_text(tmp_path / "note.txt") == "café 犬\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("one\ncafé".encode("cp1252"), "Line 2 has the byte 0xE9"),
        ("café".encode("utf-16-le"), "UTF-8|NUL"),
        ("cafe".encode("utf-16-le"), "NUL"),
        ("café".encode("utf-16")[:-1], "UTF-16 text is cut short"),
        ("café".encode("utf-32"), "NUL"),
        (b"a" * 101, "more than 100 bytes"),
    ],
)
def test_what_is_no_such_text_is_refused_with_its_name(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "3.txt").write_bytes(content)
    with pytest.raises(TextFileError, match=f'"3.txt" cannot be read.*({reason})'):
        read_text(tmp_path / "3.txt", 100)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextFileError, match='"gone.txt" cannot be read. No such file'):
        read_text(tmp_path / "gone.txt")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_squares_are_read_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "focus.json").write_text(json.dumps({"é.png": {"x": 0.5, "y": 0.5, "zoom": 2}}), encoding)
    assert read_focus(tmp_path) == {"é.png": Focus(0.5, 0.5, 2.0)}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_command_line_reads_lists_and_settings_in_every_encoding(
    tmp_path: Path, photos: Path, encoding: str
) -> None:
    listed, settings = tmp_path / "concepts_list.json", tmp_path / "settings.json"
    concept = {"instance_prompt": "photo of café", "instance_data_dir": str(photos)}
    listed.write_text(json.dumps([concept], ensure_ascii=False), encoding)
    settings.write_text(json.dumps({"resolution": 65}), encoding)
    answer = preflight("--concepts_list", str(listed), "--config", str(settings))
    # Both files were read: what is refused is the size that the second asks for.
    assert answer.returncode == 1
    assert "resolution: is 65: it must be a multiple of 8" in answer.stderr
    assert "cannot be read" not in answer.stderr


@pytest.mark.parametrize("flag", ["--concepts_list", "--config"])
def test_the_command_line_names_the_file_that_it_cannot_read(tmp_path: Path, photos: Path, flag: str) -> None:
    file = tmp_path / "from-windows.json"
    file.write_bytes('{"instance_prompt": "photo of café"}'.encode("cp1252"))
    answer = preflight(flag, str(file), "--instance_data_dir", str(photos), "--instance_prompt", "photo of zwx dog")
    assert answer.returncode == 1
    assert '"from-windows.json" cannot be read. Line 1 has the byte 0xE9' in answer.stderr
    assert "Traceback" not in answer.stderr
