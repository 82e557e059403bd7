"""Every error a user can cause or cure, in one tree.

    DreamBoothError            what happened, why, what to do
    ├── ConfigError            settings that cannot be run: every mistake of a form at once
    ├── PhotoError             a file that is no usable photo
    ├── BaseModelError         a base model that cannot be found, read or used
    ├── RunFolderError         an output folder that is not what the command expects
    ├── DeviceError            the device is taken, too small, or absent
    ├── TrainingError          a run that cannot go on (diverged, nothing moved)
    └── ExportError            a file for other tools that could not be written

Anything else that is raised is a bug, and keeps its traceback in the run's log.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class DreamBoothError(Exception):
    """What happened, why, and what to do about it, in words for the person at the page."""

    def __init__(self, what: str, why: str = "", todo: str = "") -> None:
        self.what, self.why, self.todo = what, why, todo
        super().__init__(" ".join(part for part in (what, why, todo) if part))


@dataclass(frozen=True)
class FieldProblem:
    """One mistake in one field of a form."""

    field: str
    message: str


class ConfigError(DreamBoothError):
    """Settings that cannot be run; carries every problem found, not just the first."""

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        self.problems = tuple(problems)
        lines = "\n".join(f"  {problem.field}: {problem.message}" for problem in self.problems)
        super().__init__(f"These settings cannot be used:\n{lines}")


class PhotoError(DreamBoothError):
    """A file that is no usable photo."""


class BaseModelError(DreamBoothError):
    """A base model that cannot be found, read or used."""


class RunFolderError(DreamBoothError):
    """An output folder that is not what the command expects."""


class DeviceError(DreamBoothError):
    """The device is taken, too small for what was asked, or absent."""


class TrainingError(DreamBoothError):
    """A run that cannot go on."""


class ExportError(DreamBoothError):
    """A file for other tools that could not be written."""
