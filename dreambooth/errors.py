"""Every error a user can cause or fix, in one tree.

    DreamBoothError            what happened, why, what to do
    ├── ConfigError            settings that cannot be run: every mistake of a form at once
    ├── PhotoError             a file that is no usable photo
    ├── TextFileError          a text file that cannot be read
    ├── BaseModelError         a base model that cannot be found, read or used
    ├── RunFolderError         an output folder that is not what the command expects
    ├── DeviceError            the device is taken, too small, or absent
    ├── TrainingError          a run that cannot go on (diverged, nothing moved)
    ├── StoppedError           work that its user stopped before it had a result
    └── ExportError            a file for other tools that could not be written

Anything else that is raised is a bug, and keeps its traceback in the run's log.
"""

import base64
import re
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import quote

STARS = "********"
MIN_SECRET_CHARS = 20

_forms: set[str] = set()


def hide(secret: str) -> None:
    """Mask this token in every error, log and traceback from now on.

    Shorter secrets are not masked: a password may be a common word, and asterisks in its place would reveal it.
    """
    # Clients that complain of a line break show it as "\\n": the text on both sides is masked too.
    for text in (secret, *re.split(r"[\s\"'#]+", secret)):
        if len(text) >= MIN_SECRET_CHARS:
            # Services shorten a token to its end.
            _forms.update((text, quote(text, safe=""), text[-8:], *_in_base64(text)))


def _in_base64(secret: str) -> list[str]:
    """Return how a secret appears inside a longer base64 text, at each of its three possible byte offsets."""
    found = []
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret.encode()).decode().rstrip("=")
        # The characters at both ends are shared with their neighbours.
        found.append(encoded[-(-offset * 4 // 3) : len(encoded) - 1])
    return found


def without_secrets(text: str) -> str:
    """Return the text with every hidden secret masked: raw, URL-encoded, in base64, or a token's last 8 characters."""
    for form in sorted(_forms, key=len, reverse=True):
        text = text.replace(form, STARS)
    return text


def quoted(error: BaseException, max_chars: int = 300) -> str:
    """Return the error's type and message; shortened only if it holds no secret, so that no part of one is left."""
    return without_secrets(f"{type(error).__name__}: {error}")[:max_chars]


def traceback_text(error: BaseException) -> str:
    """Return the error with its traceback, for a log."""
    return without_secrets("".join(traceback.format_exception(error)))


def hide_in_tracebacks() -> None:
    """Mask secrets in what is printed when an exception ends this process or one of its threads."""

    def report(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        print(traceback_text(error), file=sys.stderr, end="")

    def report_of_thread(arguments: threading.ExceptHookArgs) -> None:
        if arguments.exc_value is not None and arguments.exc_type is not SystemExit:
            print(traceback_text(arguments.exc_value), file=sys.stderr, end="")

    sys.excepthook, threading.excepthook = report, report_of_thread


# The tree ------------------------------------------------------------------------------------------------------------


class DreamBoothError(Exception):
    """What happened, why, and what to do about it, in words for the user."""

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        self.what, self.why, self.todo = map(without_secrets, (what, why, todo))
        super().__init__(" ".join(part for part in (self.what, self.why, self.todo) if part))


@dataclass(frozen=True)
class FieldProblem:
    """One mistake in one field of a form."""

    field: str
    message: str


class ConfigError(DreamBoothError):
    """Settings that cannot be run; carries every problem found, not just the first."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        self.problems = tuple(FieldProblem(one.field, without_secrets(one.message)) for one in problems)
        lines = "\n".join(f"  {problem.field}: {problem.message}" for problem in self.problems)
        super().__init__(f"These settings cannot be used:\n{lines}")


class PhotoError(DreamBoothError):
    """A file that is no usable photo."""


class TextFileError(DreamBoothError):
    """A text file that cannot be read: missing, too long, or in an unknown encoding."""


class BaseModelError(DreamBoothError):
    """A base model that cannot be found, read or used."""


class RunFolderError(DreamBoothError):
    """An output folder that is not what the command expects."""


class DeviceError(DreamBoothError):
    """The device is in use, too small for what was asked, or absent."""


class TrainingError(DreamBoothError):
    """A run that cannot go on."""


class StoppedError(DreamBoothError):
    """Work that its user stopped before it had a result; not a mistake."""

    signal_number: int = signal.SIGINT


class ExportError(DreamBoothError):
    """A file for other tools that could not be written."""
