"""Turns the engine's errors into messages on the page, and holds the services of every tab."""

import contextlib
import functools
import hashlib
import inspect
import itertools
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import gradio as gr
from gradio.blocks import BlockFunction
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from dreambooth.data.focus import Focus, focused
from dreambooth.data.masks import guessed_subject
from dreambooth.data.photos import read_photo
from dreambooth.device.hardware import Device, driver_device
from dreambooth.durable import new_file
from dreambooth.environment import Settings
from dreambooth.errors import DreamBoothError, traceback_text
from dreambooth.records.workspace import Workspace
from dreambooth.runs.jobs import Jobs
from ui.access.connections import bounded_server
from ui.access.sessions import bound_answers, bound_numbers, forget_state
from ui.render import error_text

if TYPE_CHECKING:
    from PIL import Image

# Events that the page triggers by itself: no progress bar over their outputs, and no name in the API.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# Events that are answered at once: any number of pages may trigger them at the same time.
QUICK: dict[str, Any] = QUIET | {"concurrency_limit": None}

P = ParamSpec("P")
R = TypeVar("R")

DEVICE_POLL_S = 10.0
# A card's load and temperature are shown while a run is in progress.
CARD_POLL_S = 3.0
PREVIEW_PX = 900
# What is painted as the subject, over a photo.
MASK_COLOUR, MASK_OPACITY, MASK_PX = "#ff3b30", 0.55, 256
NOT_UPLOADED = "This page cannot accept that; upload the file here first."

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """Copies of images for the browser: nothing in the runs folder or among the photos is served directly.

    `folder` is this process's own; Gradio also keeps uploads and its copies of these copies in it.
    """

    folder: Path

    def copy(self, path: Path) -> str:
        """Return a byte-for-byte copy, so that an image keeps the settings in its text."""
        state = path.stat()
        target = self.folder / "shown" / _digest(path, state.st_mtime_ns, state.st_size) / path.name
        if not target.exists():
            with new_file(target) as temporary:
                shutil.copyfile(path, temporary)
        return str(target)

    def copies(self, paths: Iterable[Path]) -> dict[Path, str]:
        """Return the copies of those images that still exist: a run can be deleted while a page shows it."""
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                found[path] = self.copy(path)
        return found

    def training_view(self, photo: Path, resolution_px: int, focus: Focus) -> str:
        """Return the photo's crop as it is trained, pixel for pixel."""
        target = self._place(f"{photo.stem}.png", photo, photo.stat().st_mtime_ns, resolution_px, focus)
        if not target.exists():
            with new_file(target) as temporary:
                focused(read_photo(photo).image, resolution_px, focus).save(temporary, format="PNG")
        return str(target)

    def preview(self, photo: Path) -> str:
        """Return the whole photo, scaled down for a screen."""
        target = self._place(f"{photo.stem}.jpg", photo, photo.stat().st_mtime_ns, "preview")
        if not target.exists():
            image = read_photo(photo).image.copy()
            image.thumbnail((PREVIEW_PX, PREVIEW_PX))
            with new_file(target) as temporary:
                image.save(temporary, format="JPEG", quality=88)
        return str(target)

    def mask_view(self, photo: Path, mask: Path, focus: Focus) -> str:
        """Return the mask of the photo's crop, in colour, to be laid over it."""
        return self._coloured(
            photo, lambda: focused(_grey(mask), MASK_PX, focus), MASK_OPACITY, mask, mask.stat().st_mtime_ns, focus
        )

    def whole_mask(self, photo: Path, mask: Path, size: tuple[int, int]) -> str:
        """Return the mask of the whole photo at this (width, height), in colour, to be painted on."""
        return self._coloured(photo, lambda: _grey(mask).resize(size), 1.0, mask, mask.stat().st_mtime_ns, size)

    def found_mask(self, photo: Path, mask: "Image.Image", size: tuple[int, int]) -> str:
        """Return a mask that a base model found, like `whole_mask`."""
        return self._coloured(photo, lambda: mask.resize(size), 1.0, size, mask.tobytes())

    def guessed_mask(self, photo: Path, size: tuple[int, int]) -> str:
        """Return an estimate of the subject, from colour and sharpness alone, like `whole_mask`."""
        return self._coloured(
            photo, lambda: guessed_subject(read_photo(photo).image).resize(size), 1.0, photo.stat().st_mtime_ns, size,
            "guess",
        )  # fmt: skip

    def _coloured(self, photo: Path, mask: "Callable[[], Image.Image]", opacity: float, *what: object) -> str:
        """Return a grey mask as an image in one colour, transparent where the mask is black; `what` identifies it."""
        target = self._place(f"{photo.stem}.png", photo, *what)
        if not target.exists():
            from PIL import Image

            grey = mask()
            view = Image.new("RGBA", grey.size, MASK_COLOUR)
            view.putalpha(grey.point(lambda level: round(level * opacity)))
            with new_file(target) as temporary:
                view.save(temporary, format="PNG")
        return str(target)

    def note(self, name: str, text: str) -> str:
        """Return a text as a file to download under this name."""
        target = self._place(name, text)
        if not target.exists():
            with new_file(target) as temporary:
                temporary.write_text(text, "utf-8")
        return str(target)

    def _place(self, name: str, *what: object) -> Path:
        return self.folder / "shown" / _digest(*what) / name

    def forget(self, photos: Iterable[Path]) -> None:
        """Remove every copy of these photos; a photo's name contains the digest of its content."""
        stems = {photo.stem for photo in photos}
        for path in list(self.folder.rglob("*")):
            if path.stem in stems:
                path.unlink(missing_ok=True)


def _grey(mask: Path) -> "Image.Image":
    return read_photo(mask).image.convert("L")


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


class DeviceWatch:
    """The device and its free memory, read at most every few seconds: asking the driver takes a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: Device | None = None
        self._seen_s = 0.0

    def __call__(self) -> Device:
        """Return the device as of a moment ago."""
        with self._lock:
            poll_s = CARD_POLL_S if self._seen is not None and self._seen.kind == "cuda" else DEVICE_POLL_S
            if self._seen is None or time.monotonic() - self._seen_s > poll_s:
                self._seen, self._seen_s = driver_device(), time.monotonic()
            return self._seen


@dataclass(frozen=True)
class Services:
    """The services that the tabs use."""

    jobs: Jobs
    workspace: Workspace
    settings: Settings
    shown: Shown
    training_refusal: DreamBoothError | None = None
    device: Callable[[], Device] = field(default_factory=DeviceWatch)
    takes_folders: bool = False

    def check_training(self) -> None:
        """Raise the reason why nobody may train here, if there is one."""
        if self.training_refusal is not None:
            raise self.training_refusal


class Page(gr.Blocks):
    """Gradio's page, with safe handling of its components' inputs, and limits on its server's connections."""

    def launch(self, *args: Any, **kwargs: Any) -> Any:
        """Open the page as Gradio does, however long a busy machine takes to build it."""
        bound_answers(self)
        with bounded_server():
            # Gradio has just checked that its server answers; it would then give the page three seconds, and take a
            # slow start for a proxy problem.
            return super().launch(*args, **({"_frontend": False} | kwargs))

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Answer a call; one without a session, identified by its own number, leaves no state behind."""
        is_over, event = True, kwargs.get("event_id")
        try:
            answer: dict[str, Any] = await super().process_api(*args, **kwargs)
            is_over = not answer.get("is_generating")
        finally:
            bound_numbers(self)
            if is_over and event is not None and event == kwargs.get("session_hash"):
                forget_state(self, event)
        return answer

    def show_hidden_progress_on(self, place: gr.blocks.Block) -> None:
        """Give events without a progress display one hidden place for it, instead of all their outputs.

        A browser would update every such component at each status of each event, which at one poll a second is most of
        its work.
        """
        for function in self.fns.values():
            if function.show_progress == "hidden" and function.outputs:
                function.show_progress_on = [place]  # type: ignore[list-item]

    async def preprocess_data(self, block_fn: BlockFunction, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Return the inputs as handlers take them; a refused one is quoted as text, not as HTML.

        Programs written before an argument was added send fewer: the last ones then have their defaults.
        """
        inputs = [*inputs, *_last_defaults(block_fn, len(inputs))]
        if len(inputs) < len(block_fn.inputs):
            text = f'"{block_fn.api_name}" takes {len(block_fn.inputs)} values; {len(inputs)} were given.'
            raise gr.Error(f'{text} "Use via API" on the page lists them with their defaults.', print_exception=False)
        # Gradio would download a URL's content, however large.
        traverse(inputs, _refuse_address, is_file_obj_with_meta)
        try:
            return await super().preprocess_data(block_fn, inputs, *args, **kwargs)
        except gr.Error as error:
            raise gr.Error(escape(str(error.message)), print_exception=False) from None
        # Gradio's own InvalidPathError, impossible file names, and values that a slider cannot compare with its range.
        except (ValueError, OSError, TypeError):
            raise gr.Error(NOT_UPLOADED, print_exception=False) from None


def _last_defaults(block_fn: BlockFunction, count: int) -> list[Any]:
    """Return the defaults of a function's arguments after the first `count`, up to one without a default."""
    parameters = [] if block_fn.fn is None else list(inspect.signature(block_fn.fn).parameters.values())
    # Gradio passes that one by itself.
    parameters = [parameter for parameter in parameters if not isinstance(parameter.default, gr.Progress)]
    if len(parameters) != len(block_fn.inputs):
        return []
    defaults = [parameter.default for parameter in parameters[count:]]
    return list(itertools.takewhile(lambda default: default is not inspect.Parameter.empty, defaults))


def _refuse_address(file: dict[str, Any]) -> dict[str, Any]:
    if is_http_url_like(file.get("path")):
        raise gr.Error(NOT_UPLOADED, print_exception=False)
    return file


def shown(handler: Callable[P, R]) -> Callable[P, R]:
    """Turn what a handler raises into a message on the page; a bug keeps its traceback in the app's log."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: P.args, **kwargs: P.kwargs) -> Iterator[Any]:
            try:
                yield from handler(*args, **kwargs)
            except Exception as error:
                raise _message(error) from error

        return stream  # type: ignore[return-value]

    @functools.wraps(handler)
    def once(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return handler(*args, **kwargs)
        except Exception as error:
            raise _message(error) from error

    return once


def _message(error: Exception) -> Exception:
    if isinstance(error, gr.Error):
        return error
    if isinstance(error, DreamBoothError):
        return gr.Error(error_text(error), duration=None, print_exception=False)
    # Top level of the page: anything but a user's mistake is a bug, reported without internals.
    log.error("A handler of the page failed\n%s", traceback_text(error))
    text = f"Something unexpected happened ({type(error).__name__}). The app's log has the details."
    return gr.Error(text, print_exception=False)
