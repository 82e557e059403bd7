"""Whether a value from a user or a file matches a type hint."""

import types
from typing import Any, Literal, Union, get_args, get_origin

# Larger integers are no seeds, steps or sizes, and some cannot even be printed.
TOO_LARGE = 2**63


def fits(value: object, hint: Any) -> bool:
    """Return whether a value matches the hint; booleans are not numbers, and a number must be finite.

    Hints are those of settings and records: numbers, strings, `Literal` strings, tuples of strings, and unions of
    these.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:
        return isinstance(value, tuple) and all(isinstance(part, str) for part in value)
    if hint in (int, float):
        is_number = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        return is_number and not (isinstance(value, int) and abs(value) >= TOO_LARGE)
    return isinstance(value, hint)
