"""Natural order of file names, 2 before 10: the same on every disk and in every copy."""

import unicodedata
from collections.abc import Callable, Iterable
from typing import TypeVar

from natsort import natsorted

Item = TypeVar("Item")


def in_natural_order(items: Iterable[Item], name: Callable[[Item], str] = str) -> list[Item]:
    """Return the items in the order of their names, ignoring case and the Unicode form of letters.

    Names that are equal in this order (a and A, 1 and 01) are ordered by their characters, never by the order in which
    they came.
    """
    in_order: list[Item] = natsorted(
        sorted(items, key=lambda item: (unicodedata.normalize("NFC", name(item)), name(item))),
        key=lambda item: unicodedata.normalize("NFC", name(item)).lower(),
    )
    return in_order
