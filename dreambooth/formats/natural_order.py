"""Files in the order of their names as people count, 2 before 10: the same on every disk and in every copy."""

import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

from natsort import natsorted

Item = TypeVar("Item")


def in_natural_order(items: Iterable[Item], name: Callable[[Item], str] = str) -> list[Item]:
    """Return the items by their names: upper and lower case alike, and so are both Unicode forms of one letter.

    Names that are alike in this order (a and A, 1 and 01) follow their characters, never the order they came in.
    """
    in_order: list[Item] = natsorted(
        sorted(items, key=lambda item: (unicodedata.normalize("NFC", name(item)), name(item))),
        key=lambda item: unicodedata.normalize("NFC", name(item)).lower(),
    )
    return in_order
