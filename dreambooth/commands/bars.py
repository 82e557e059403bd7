"""A count on the terminal, for commands whose work tells how much of how much is done."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar(title: str, unit: str, *, delay_s: float = 0) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows (done, in all) as a bar, which appears after `delay_s` if there is anything to show."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, dynamic_ncols=True, delay=delay_s) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
