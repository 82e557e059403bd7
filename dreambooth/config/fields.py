"""Metadata of settings: range, unit, help sentence, and the checks that follow from them.

The form, the command line and the README are generated from these, so that they agree.
"""

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dreambooth.config.limits import as_written, text_problems
from dreambooth.errors import FieldProblem
from dreambooth.hints import fits

Group = Literal["model", "photos", "prior", "training", "optimizer", "memory", "samples", "saving"]
# The headings of groups, on the page and in `--help`.
GROUP_TITLES: dict[Group, str] = {
    "model": "Model files",
    "photos": "Photos",
    "prior": "Class images",
    "training": "Training",
    "optimizer": "Optimizer",
    "memory": "Memory and precision",
    "samples": "Sample pictures",
    "saving": "Saving",
}


def setting(
    default: Any,
    sentence: str,
    group: Group,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    in_identity: bool = True,
    only_with: tuple[str, ...] = (),
    method: str = "",
) -> Any:
    """Declare a field with its documentation; `low` and `high` are inclusive.

    A resumed run must have the same values of fields that are `in_identity`: all but those that can change no trained
    weight, and names of things whose contents are compared instead. `only_with` names the settings of which at least
    one must be on, or given, for this one to have an effect; `method` is the only training method that reads it.
    """
    about: dict[str, Any] = {"sentence": sentence, "group": group, "unit": unit, "low": low, "high": high}
    about |= {"in_identity": in_identity, "only_with": only_with, "method": method}
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class FieldInfo:
    """A field as the form, the command line and the README present it."""

    name: str
    type: type
    optional: bool
    choices: tuple[str, ...]
    default: Any
    sentence: str
    group: Group
    unit: str
    low: float | None
    high: float | None
    in_identity: bool
    only_with: tuple[str, ...] = ()
    method: str = ""

    @property
    def range_text(self) -> str:
        """Return the allowed values in words, such as `1 to 64 pictures`."""
        if self.choices:
            return ", ".join(self.choices)
        low, high = (None if bound is None else _plain(bound) for bound in (self.low, self.high))
        bounds = {
            (True, True): f"{low} to {high}",
            (True, False): f"at least {low}",
            (False, True): f"at most {high}",
        }.get((low is not None, high is not None), "")
        return f"{bounds} {self.unit}".strip()


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def describe(config_type: type) -> list[FieldInfo]:
    """Return the documented fields of a settings class, in the order of their declaration."""
    hints = typing.get_type_hints(config_type)
    described = []
    for field in dataclasses.fields(config_type):
        if "sentence" not in field.metadata:
            continue
        kind, optional, choices = _unpacked(hints[field.name])
        described.append(
            FieldInfo(
                name=field.name, type=kind, optional=optional, choices=choices, default=field.default, **field.metadata
            )
        )
    return described


def _unpacked(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if optional:
        hint = next(option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is Literal:
        return str, optional, typing.get_args(hint)
    return hint, optional, ()


def unknown_fields(config_type: type, values: Mapping[str, Any]) -> list[FieldProblem]:
    """Return a problem for every name that is not a field of the settings class."""
    known = {field.name for field in dataclasses.fields(config_type)}
    return [
        FieldProblem(as_written(name).strip('"'), "is not a setting of this version.")
        for name in values
        if name not in known
    ]


def typed(info: FieldInfo, value: Any) -> Any:
    """Return the value as the field's type, or raise ValueError saying what it should be."""
    if value is None and info.optional:
        return None
    if fits(value, info.type):
        return info.type(value)
    is_number = info.type in (int, float)
    if is_number and fits(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if is_number and isinstance(value, int) and not isinstance(value, bool):
        raise ValueError(f"is far too large or too small: it must be {info.range_text or 'a usual number'}.")
    wanted = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}[info.type]
    raise ValueError(f"is {as_written(value)}: it must be {wanted}.")


def parse_numbers(config: Any) -> None:
    """Convert each number of a settings object to its field's type in place, so that 1 and 1.0 are the same settings.

    Called whenever a settings object is made. Values that are no number of that type are left for `out_of_range`.
    """
    for info in _number_fields(config.__class__):
        with contextlib.suppress(ValueError):
            object.__setattr__(config, info.name, typed(info, getattr(config, info.name)))


@functools.cache
def _number_fields(config_type: type) -> tuple[FieldInfo, ...]:
    return tuple(info for info in describe(config_type) if info.type in (int, float))


def out_of_range(config: Any) -> list[FieldProblem]:
    """Return what is wrong with each value by itself: its type, its range, its characters."""
    problems = []
    for info in describe(type(config)):
        value = getattr(config, info.name)
        try:
            value = typed(info, value)
        except ValueError as error:
            problems.append(FieldProblem(info.name, str(error)))
            continue
        if value is None:
            continue
        if info.choices and value not in info.choices:
            problems.append(FieldProblem(info.name, f"is {as_written(value)}: it must be one of {info.range_text}."))
        elif isinstance(value, str):
            problems += text_problems(info.name, value, is_name=info.group in ("model", "saving"))
        elif not isinstance(value, bool) and not _within(value, info):
            problems.append(FieldProblem(info.name, f"is {float(value):g}: it must be {info.range_text}."))
    return problems


def others(known: list[FieldProblem], found: list[FieldProblem]) -> list[FieldProblem]:
    """Return the problems with fields for which none was reported yet."""
    return [problem for problem in found if problem.field not in {one.field for one in known}]


def _within(value: float, info: FieldInfo) -> bool:
    low = -math.inf if info.low is None else info.low
    high = math.inf if info.high is None else info.high
    return math.isfinite(value) and low <= value <= high
