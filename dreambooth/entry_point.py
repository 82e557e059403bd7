"""What the command line and the app share as programs: output, signals, exit status, error messages."""

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TextIO, cast

from dreambooth.durable import is_disk_full
from dreambooth.errors import DreamBoothError, StoppedError, hide_in_tracebacks, without_secrets

# A shell reports 128 plus the signal's number for a program ended by a signal.
SIGNAL_STATUS = 128
# Long enough for the cleanup after the first one.
INTERRUPT_AGAIN_S = 5.0
SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none.


def run_program(command: Callable[[], int]) -> int:
    """Run a program and return its exit status: 1 for a user's mistake, reported in words, 130 for Ctrl-C."""
    hide_in_tracebacks()
    with lasting_output(), _insisting_on_interrupts() as interrupts:
        try:
            return command()
        except (Exception, KeyboardInterrupt) as error:
            interrupts.over.set()
            # A failure after a library has lost an interrupt, such as that of the interrupted import, is no bug.
            if isinstance(error, KeyboardInterrupt) or (
                interrupts.begun.is_set() and not isinstance(error, StoppedError)
            ):
                print("\nInterrupted.", file=sys.stderr)
                return SIGNAL_STATUS + signal.SIGINT
            return _report(error)


def _report(error: Exception) -> int:
    """Report an error in words and return the exit status; re-raise it if it may be a bug."""
    if isinstance(error, StoppedError):
        print(_in_lines(error), file=sys.stderr)
        return SIGNAL_STATUS + error.signal_number
    sentence = _in_lines(error) if isinstance(error, DreamBoothError) else None
    if isinstance(error, OSError):
        sentence = _in_words(error)
    if sentence is None:
        raise error
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def _in_lines(error: DreamBoothError) -> str:
    return "\n".join(part for part in (error.what, error.why, error.todo) if part)


def _in_words(error: OSError) -> str | None:
    """Return a sentence about a file or folder that the system refused; None for other errors, which may be bugs."""
    if is_disk_full(error):
        todo = "Free some space, then run the command again; `python -m dreambooth clean` lists what can be deleted."
        return f"The disk is full.\n{todo}"
    if error.filename is None or error.strerror is None:
        return None
    name = without_secrets(os.fsdecode(error.filename))
    return f'"{name}" cannot be used.\n{error.strerror}.\nCheck that place, or choose another one.'


# Output --------------------------------------------------------------------------------------------------------------


class _LastingStream:
    """A stream that drops what it cannot write and continues: hours of work must not end with their terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: Exception | None = None
        if reconfigure := getattr(stream, "reconfigure", None):
            # A character that the terminal's encoding lacks is written as an escape.
            reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._noting():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._noting():
            self._stream.flush()

    def end(self) -> None:
        """Flush, and give up what still cannot be written: at exit Python would try again and complain."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.lost = self.lost or error
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        # RuntimeError: a signal handler wrote while the same stream was being written to.
        except (OSError, ValueError, RuntimeError) as error:
            self.lost = self.lost or error


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Let no failure of standard output or error end the work in the block.

    A reader that went away (`| head`) is not an error; any other lost output is reported on standard error.
    """
    kept = sys.stdout, sys.stderr
    out, err = (None if stream is None else _LastingStream(stream) for stream in kept)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = kept
        if out is not None:
            out.end()
        if err is not None:
            if out is not None and isinstance(out.lost, OSError) and not isinstance(out.lost, BrokenPipeError):
                err.write(f"Some of the output could not be written: {out.lost.strerror or out.lost}.\n")
            err.end()


# Signals -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Interrupts:
    """Whether an interrupt has arrived, and whether further ones are ignored."""

    begun: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def _insisting_on_interrupts() -> Iterator[_Interrupts]:
    """Raise KeyboardInterrupt at Ctrl-C, and again every few seconds until it has arrived or the block has ended.

    Libraries sometimes catch every exception, mostly during imports: the first one may be lost.
    """
    interrupts = _Interrupts()

    def repeat() -> None:
        interrupts.begun.wait()
        while not interrupts.over.wait(INTERRUPT_AGAIN_S):
            # A signal interrupts system calls; Python's own way of interrupting would wait for them.
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:  # Windows
                _thread.interrupt_main()

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupts.over.is_set():
            return
        interrupts.begun.set()
        raise KeyboardInterrupt

    # In other threads, and where interrupts are ignored (a shell's background job), nothing is changed.
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    # Started here: the handler may run while another thread starts, and would wait for its locks.
    repeater = threading.Thread(target=repeat, daemon=True)
    repeater.start()
    signal.signal(signal.SIGINT, handle)
    try:
        yield interrupts
    finally:
        interrupts.over.set()
        interrupts.begun.set()
        repeater.join()
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def calling_on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C, SIGTERM or SIGHUP in the block; a second Ctrl-C or SIGTERM exits at once.

    A SIGHUP that is ignored (`nohup`) stays ignored. A closed terminal sends several; the later ones are ignored.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_IGN if number == SIGHUP else signal.SIG_DFL)
        stop()

    numbers: list[int] = [signal.SIGINT, signal.SIGTERM]
    if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:
        numbers.append(SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    except StoppedError as stopped:
        stopped.signal_number = received[0] if received else signal.SIGINT
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
