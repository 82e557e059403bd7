"""Limits of texts and names that come from users."""

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from dreambooth.errors import ConfigError, FieldProblem
from dreambooth.formats.text_files import printable

MAX_PROMPT_CHARS = 2000
MAX_FILE_NAME_BYTES = 255
TOKEN = re.compile(r"[A-Za-z0-9_.-]+")
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")


def text_problems(name: str, text: str, *, is_name: bool) -> list[FieldProblem]:
    """Return why a text cannot be used: its length, characters that cannot be encoded, line breaks in a name."""
    if len(text) > MAX_PROMPT_CHARS:
        return [FieldProblem(name, f"has {len(text)} characters: at most {MAX_PROMPT_CHARS}.")]
    allowed = "" if is_name else "\n\r\t"
    # Control characters and lone surrogates: some file, log or tokenizer fails on them.
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in allowed for character in text):
        return [FieldProblem(name, "contains control or invalid characters: type it again.")]
    if is_name and any(len(part.encode()) > MAX_FILE_NAME_BYTES for part in re.split(r"[/\\]", text)):
        return [FieldProblem(name, f"has a part of more than {MAX_FILE_NAME_BYTES} bytes: no file has such a name.")]
    return []


def sizes_off_grid(sizes: Mapping[str, object]) -> list[FieldProblem]:
    """Return a problem for each image size, by field name, that is not a multiple of 8 pixels, a latent pixel."""
    return [
        FieldProblem(name, f"is {as_written(size)}: it must be a multiple of 8.")
        for name, size in sizes.items()
        if isinstance(size, int) and size % 8
    ]


def run_path_problem(name: str, text: str) -> list[FieldProblem]:
    """Return what is wrong with a folder that must be inside the run's folder."""
    path = PurePath(text)
    if path.is_absolute() or ".." in path.parts:
        return [FieldProblem(name, "points outside the run's folder: it must be a name such as logs.")]
    return []


def plain_name_problem(name: str, text: str, *, slashes: bool) -> list[FieldProblem]:
    """Return what is wrong with a name that becomes part of URLs and file patterns."""
    if PLAIN_NAME.fullmatch(text) and ".." not in text and (slashes or "/" not in text):
        return []
    return [FieldProblem(name, f"is {as_written(text)}: it must be a name of at most 100 letters, digits, . - and _.")]


def token_problem(text: str) -> str:
    """Return why this text cannot be a Hub token, without repeating it; None if it may be one."""
    if "\n" in text or "\r" in text:
        return "has more than one line: give the token alone."
    if text.lower().startswith("bearer"):
        return 'begins with "Bearer": give the token alone.'
    if text[:1] in ("'", '"') or text[-1:] in ("'", '"'):
        return "has quotation marks around it: remove them."
    if "#" in text:
        return "is followed by a comment: give the token alone."
    return "" if TOKEN.fullmatch(text) else "has a space or a character that no token has: copy it again."


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path a user wrote, with `~` expanded: a shell leaves it alone after an equals sign."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # nobody of that name has a home here
        return Path(text)


def expand_paths(record: Any, names: Iterable[str]) -> None:
    """Expand `~` in these path fields of a record, in place."""
    for name in names:
        value = getattr(record, name)
        if isinstance(value, os.PathLike) or (isinstance(value, str) and value.startswith("~")):
            object.__setattr__(record, name, str(user_path(value)))


def place_problem(path: Path, *, is_folder: bool = True) -> str:
    """Return why this folder or file cannot be created or written to; None if it can, or is not a path at all."""
    try:
        return _place_problem(path, is_folder=is_folder)
    except (OSError, ValueError):  # too long for any file, or with a NUL in it
        return ""


def _place_problem(path: Path, *, is_folder: bool) -> str:
    if is_folder and path.exists() and not path.is_dir():
        return f'is a file ("{path}"): name a folder.'
    if not is_folder and path.is_dir():
        return f'is a folder ("{path}"): name a file.'
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir() and there != path:
        return f'is inside "{there}", which is a file: choose another place.'
    if not os.access(there, os.W_OK):
        return f'cannot be written: "{there}" is read-only, or belongs to another user.'
    return ""


def refuse_place(name: str, path: Path, *, is_folder: bool = True) -> None:
    """Raise ConfigError if this folder or file cannot be created or written to, before any work is done for it."""
    if problem := place_problem(path, is_folder=is_folder):
        raise ConfigError([FieldProblem(name, problem)])


def is_folder(name: str) -> bool:
    """Return whether this value, whatever its type, names a folder."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):  # too long for any file, or with a NUL in it
        return False


def as_written(value: object) -> str:
    """Return the value as shown in a message, whatever its type and length: text in quotation marks."""
    if isinstance(value, str):
        return f'"{printable(value[:60])}"'
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > 2**64:
        return "too large a number"
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
