"""Cache of decoded photos: a phone photo takes a second to decode and is read several times when a training starts."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dreambooth.data.photos import Photo

MAX_KEPT_PIXELS = 100 * 10**6  # 300 MB, until `forget_decoded`

_lock = threading.Lock()
_photos: "dict[tuple[object, ...], Photo]" = {}


def decoded_once(path: Path, reader: int, decode: "Callable[[Path, int], Photo]") -> "Photo":
    """Return this reader's result for the file in its current state; decoded again only if not in the cache."""
    key = _key(path, reader)
    with _lock:
        known = _photos.get(key)
    if known is None:
        known = decode(path, reader)
        _keep(key, known)
    return known


def keep_decoded(photo: "Photo", reader: int) -> None:
    """Add the content of a file that was just written to the cache."""
    _keep(_key(photo.path, reader), photo)


def forget_decoded() -> None:
    """Empty the cache once the photos are no longer needed."""
    with _lock:
        _photos.clear()


def _keep(key: tuple[object, ...], photo: "Photo") -> None:
    with _lock:
        num_pixels = sum(one.image.width * one.image.height for one in (*_photos.values(), photo))
        # Nothing is evicted for it: if more images are read than fit, each pass would evict what the next one needs
        # first.
        if num_pixels <= MAX_KEPT_PIXELS:
            _photos[key] = photo


def _key(path: Path, reader: int) -> tuple[object, ...]:
    try:
        state = path.stat()
    except OSError:  # it went just now: the decoder says so
        return str(path), reader
    return str(path), reader, state.st_ino, state.st_mtime_ns, state.st_ctime_ns, state.st_size
