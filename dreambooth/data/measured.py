"""Cache of measurements of photos, valid while neither the photo nor its crop changes."""

from pathlib import Path

from dreambooth.data.findings import Measures, measure
from dreambooth.data.focus import Focus
from dreambooth.data.photos import read_photo

MAX_REMEMBERED = 2000  # of 5 kB each; a set has up to 500 photos

_measured: dict[tuple[str, int, Focus, int], Measures] = {}


def measured(photo: Path, focus: Focus, resolution_px: int) -> Measures:
    """Return the measurements of the photo as it is trained; raises PhotoError if it cannot be read."""
    key = (str(photo), photo.stat().st_mtime_ns, focus, resolution_px)
    if key not in _measured:
        if len(_measured) >= MAX_REMEMBERED:
            _measured.clear()
        _measured[key] = measure(read_photo(photo).image, focus, resolution_px)
    return _measured[key]
