"""The one reader of this program's JSON files, which may be damaged by a kill, a disk or an editor."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

# Far larger than any record: settings, scores, captions of five hundred photos.
MAX_JSON_BYTES = 64 * 1024**2
# 64-bit integers; larger ones cannot even be converted to a float.
TOO_LARGE = 2**63


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the values of a JSON file.

    Raises OSError if it cannot be read, and ValueError for everything that this program never writes: anything but JSON
    in UTF-8, more than `max_bytes`, too deep nesting, numbers that are infinite, NaN or beyond 64 bits, and lone
    surrogates.
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
        # A lone surrogate escape could be read, but neither shown nor written.
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    return values


def read_object(path: Path, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the values of a JSON file by name; raises like `read_json`, and ValueError for anything but an object."""
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
