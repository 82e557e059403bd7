"""The one reader of this program's JSON files, which may be damaged by a kill, a disk or an editor."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

# Far more than any record has: settings, scores, captions of five hundred photos.
MAX_JSON_BYTES = 64 * 1024**2
# What fits a machine's whole number; larger ones cannot even be turned into a float.
TOO_LARGE = 2**63


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the values of a JSON file.

    Raises OSError where it cannot be read, and ValueError for all that this program never writes: other contents than
    JSON in UTF-8, more than `max_bytes`, nesting too deep to follow, numbers that are infinite, not a number or beyond
    64 bits, and text with halves of characters.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than {max_bytes:,} bytes")
    text = content.decode("utf-8")
    try:
        values = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if "\\u" in text:
        # An escaped half of a character could be read, and then neither shown nor written.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    return values


def read_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the values of a JSON file by name; raises as `read_json` does, and ValueError for all but an object."""
    values = read_json(path, max_bytes)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def _whole(digits: str) -> int:
    number = int(digits)
    if abs(number) >= TOO_LARGE:
        raise ValueError("it has a number beyond 64 bits")
    return number


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("it has an infinite number")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it has {name} for a number")
