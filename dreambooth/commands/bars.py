"""Progress on the terminal: one bar for a count, or stacked bars for work in stages."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from dreambooth.events import Event, OnProgress, PhaseProgress, StepLoss

if TYPE_CHECKING:
    from tqdm import tqdm


@contextlib.contextmanager
def progress_bar(title: str, unit: str, *, delay_s: float = 0) -> Iterator[OnProgress]:
    """Yield a callback that shows (done, total) as a bar, which appears after `delay_s` if there is anything to do."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit, dynamic_ncols=True, delay=delay_s) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


class StageBars:
    """Shows stages one below the other, each with a bar of its own and the time left."""

    def __init__(self, unit: str = "it") -> None:
        self._unit, self._stage = unit, ""
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show the progress of a stage with a note beside its bar; a stage without a total is a line of text."""
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            self._stage = stage
            if total:
                self._bar = tqdm(total=total, desc=stage, initial=done, unit=self._unit, dynamic_ncols=True)
            else:
                tqdm.write(f"{stage} ...")
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)
            if note:
                self._bar.set_postfix_str(note)

    def note_later(self, note: str) -> None:
        """Show a note beside the bar the next time it moves."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)

    def close(self) -> None:
        """End the bar that is shown."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""


class RunBars:
    """Shows a run's events: its phases as bars, with the loss beside them and messages between them."""

    def __init__(self) -> None:
        self._stages = StageBars()

    def __call__(self, event: Event) -> None:
        from tqdm import tqdm

        from dreambooth.records.runlog import as_text

        if isinstance(event, PhaseProgress):
            self._stages(event.phase.capitalize(), event.done, event.total)
        elif isinstance(event, StepLoss):
            self._stages.note_later(f"loss={event.loss:.4f}")
        elif text := as_text(event):
            tqdm.write(text)

    def close(self) -> None:
        """End the bar that is shown."""
        self._stages.close()
