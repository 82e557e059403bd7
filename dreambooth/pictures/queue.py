"""The queue of generation requests, processed one after the other by one thread.

A request outlives the browser that made it. One that arrives during a training starts when that run has ended, or has
the training lend the device and continue by itself.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dreambooth.errors import DreamBoothError, traceback_text, without_secrets
from dreambooth.pictures.painter import OnNotice, OnStep

OrderState = Literal["waiting", "making", "done", "cancelled", "failed"]
ENDED: frozenset[OrderState] = frozenset({"done", "cancelled", "failed"})
MAX_WAITING = 20
MAX_ENDED = 50

Work = Callable[[OnStep, Callable[[], bool], OnNotice], Iterator[Path]]


@dataclass
class Order:
    """A generation request: the queue's thread writes its state, the page reads it."""

    number: int
    title: str
    num_pictures: int
    work: Work
    after: str = ""
    state: OrderState = "waiting"
    share: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    files: list[Path] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    error: DreamBoothError | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    # The browser that asked; empty for programs.
    owner: str = ""
    # The folder that the models lie in.
    source: Path | None = None

    @property
    def seconds_left(self) -> float | None:
        """Return the time left at the pace so far, None while it is too early to say."""
        if self.state != "making" or self.share < 0.05:
            return None
        return (time.monotonic() - self.began_s) * (1 - self.share) / self.share


class PictureQueue:
    """The queue. `changed` is shared with the runs; `is_at_work` says whether a run is training or waiting.

    `device` surrounds the generation: it has a training lend the device for that time.
    """

    def __init__(
        self,
        changed: threading.Condition,
        is_at_work: Callable[[str], bool],
        device: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._changed, self._is_at_work, self._device = changed, is_at_work, device
        self._queue: list[Order] = []
        self._ended: deque[Order] = deque(maxlen=MAX_ENDED)
        self._count = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def add(self, title: str, num_pictures: int, work: Work, after: str = "", source: Path | None = None) -> Order:
        """Queue a request, to start when the run `after` has ended; raises DreamBoothError if too many are waiting."""
        with self._changed:
            if len(self._queue) >= MAX_WAITING or self._closing:
                raise DreamBoothError(
                    f"{len(self._queue)} requests for pictures are queued.", "They are made one after the other.",
                    "Wait for some of them, or cancel some.",
                )  # fmt: skip
            self._count += 1
            order = Order(self._count, title, num_pictures, work, after, source=source)
            self._queue.append(order)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="picture-line", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return order

    def shown(self, owner: str | None = None) -> tuple[Order | None, int]:
        """Return the request being processed, else the next, else the last one; and how many are waiting behind it.

        Of all requests, or of those of one browser.
        """
        with self._changed:
            line = [order for order in self._queue if owner in (None, order.owner)]
            line.sort(key=lambda order: order.state != "making")
            last = next((order for order in reversed(self._ended) if owner in (None, order.owner)), None)
            return (line[0], len(line) - 1) if line else (last, 0)

    def uses(self, folder: Path) -> bool:
        """Return whether a current or waiting request uses models from there. Call it under `changed`."""
        return any(order.source == folder and not order.cancel.is_set() for order in self._queue)

    def is_due(self) -> bool:
        """Return whether a request could start now: no further run starts before it. Call it under `changed`."""
        return self._next() is not None

    def cancel(self, order: Order | None = None) -> int:
        """Cancel a request, or all, after the current denoising step, and return how many were cancelled."""
        with self._changed:
            ending = [one for one in self._queue if order is None or one is order]
            for one in ending:
                one.cancel.set()
                if one.state == "waiting":
                    self._leave(one, "cancelled")
            return len(ending)

    def follow(self, order: Order) -> Iterator[Path]:
        """Yield a request's files as they are written; raises its error, and cancels it if the caller stops."""
        given: list[Path] = []
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: len(order.files) > len(given) or order.state in ENDED)
                    new = order.files[len(given) :]
                if not new:
                    break
                for path in new:
                    given.append(path)
                    yield path
        finally:
            if order.state not in ENDED:
                self.cancel(order)
        if order.error is not None:
            raise order.error

    def close(self) -> None:
        """Cancel everything, and return when nothing is being generated."""
        with self._changed:
            self._closing = True
        self.cancel()
        with self._changed:
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _next(self) -> Order | None:
        free = (order for order in self._queue if order.state == "making" or not self._is_at_work(order.after))
        return next(free, None)

    def _leave(self, order: Order, state: OrderState) -> None:
        self._queue.remove(order)
        order.state, order.ended_s = state, time.monotonic()
        self._ended.append(order)
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._next() is not None)
                order = self._next()
                if order is None:
                    return
                order.state, order.began_s = "making", time.monotonic()
            # A separate thread: torch's threads in it end with the request, and do not slow down a training after it.
            making = threading.Thread(target=self._make_on_device, args=(order,), name="pictures", daemon=True)
            making.start()
            making.join()
            with self._changed:
                self._leave(order, "failed" if order.error else "cancelled" if order.cancel.is_set() else "done")

    def _make_on_device(self, order: Order) -> None:
        try:
            with self._device():
                self._make(order)
        # Top level of the thread: an unexpected error is shown on the page, with its traceback in the terminal.
        except BaseException as error:
            # A request cancelled while it waited for the device has not failed.
            if not (isinstance(error, DreamBoothError) and order.cancel.is_set()):
                order.error = error if isinstance(error, DreamBoothError) else unexpected(error)

    def _make(self, order: Order) -> None:
        def on_step(done: int, total: int) -> None:
            order.share = done / max(total, 1)

        for path in order.work(on_step, order.cancel.is_set, order.notices.append):
            with self._changed:
                order.files.append(path)
                self._changed.notify_all()


def unexpected(error: BaseException) -> DreamBoothError:
    """Return the message for an unexpected error during generation."""
    print(traceback_text(error), file=sys.stderr)
    if type(error).__name__ == "OutOfMemoryError":
        return DreamBoothError(
            "The device ran out of memory.", "The pictures need more memory than is free.",
            "Make smaller pictures, or close other programs that use the GPU.",
        )  # fmt: skip
    why = without_secrets(str(error))[:300]
    return DreamBoothError(f"The pictures ended with an unexpected {type(error).__name__}.", why, "")
