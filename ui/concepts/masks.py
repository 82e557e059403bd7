"""The mask of a photo, painted by hand or set by a program."""

import base64
import binascii
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from dreambooth.config.training import TrainingConfig
from dreambooth.data.masks import mask_beside, remove_mask, take_mask
from dreambooth.data.photo_sets import PhotoSet
from dreambooth.data.photos import MAX_PHOTO_BYTES
from dreambooth.errors import PhotoError
from ui.bases import CheckedBases, offered_base
from ui.boundary import QUIET, Services
from ui.concepts.painter import painter
from ui.concepts.photos import PARTS, PhotoHandlers, event_data
from ui.events import Answer, on


def build() -> dict[str, Any]:
    """Lay out the components beside the selected photo's crop, and return them by name."""
    note = gr.HTML("", elem_id="mask-note")
    with gr.Row():
        paint = gr.Button("Paint a mask", size="sm", elem_id="paint-mask")
        found = gr.Button("Use the found mask again", size="sm", interactive=False, elem_id="remove-mask")
    return {"mask_note": note, "paint": paint, "use_found": found}


class MaskHandlers:
    """The tab's mask handlers."""

    def __init__(self, services: Services, photos: PhotoHandlers) -> None:
        self._services, self._photos, self._bases = services, photos, CheckedBases(services)

    @on("paint.click", "photo_set chosen", "painter", api_name="mask_opened", **QUIET)
    def open(self, photo_set: str, chosen: str | None) -> str:
        """Return the selected photo with its mask, for painting."""
        if not photo_set or not chosen:
            return ""
        photo, shown = self._photos.set_of(photo_set).photo(chosen), self._services.shown
        mask = mask_beside(photo)
        return self._painter(photo, shown.whole_mask(photo, mask, self._size(photo)) if mask else "")

    def _size(self, photo: Path) -> tuple[int, int]:
        with Image.open(self._services.shown.preview(photo)) as image:
            return image.size

    def _painter(self, photo: Path, begin: str) -> str:
        shown, size = self._services.shown, self._size(photo)
        return painter(photo.name, shown.preview(photo), begin, shown.guessed_mask(photo, size), size)

    @on(
        "painter.edit", "photo_set chosen class_prompt base resolution", "painter", api_name="mask_found",
        api_visibility="private", show_progress_on="painter",
    )  # fmt: skip
    def find(self, photo_set: str, chosen: str | None, class_prompt: str, base: str, resolution: float) -> str:
        """Return the selected photo with the mask that a training would find in it, for painting."""
        if not photo_set or not chosen:
            return ""
        self._services.check_training()
        base = offered_base(self._services, base)
        if self._bases.bytes_to_download(TrainingConfig(pretrained_model_name_or_path=base)):
            what = "The base model, which finds the subject, is not on this machine yet."
            raise PhotoError(what, "A training downloads it.", "Start from a guess, or paint by hand.")
        if not class_prompt.strip():
            raise PhotoError("There is no class prompt.", "Its last word says what to find.", "Write one below.")
        kept = self._photos.set_of(photo_set)
        photo, side_px = kept.photo(chosen), max(64, min(int(resolution or 512), 1024)) // 8 * 8
        found = self._services.jobs.found_subject(photo, kept.focus(chosen), class_prompt, base, side_px)
        return self._painter(photo, self._services.shown.found_mask(photo, found, self._size(photo)))

    @on("painter.release", "photo_set chosen resolution", PARTS, api_name="mask_painted", **QUIET)
    def painted(
        self,
        photo_set: str,
        chosen: str | None,
        resolution: float,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> Answer:
        """Store the painted mask, and close the editor; without a mask only close it."""
        asked = event_data(event)
        if not photo_set or not {"photo", "mask"} <= set(asked):
            return {}
        name, mask = str(asked["photo"]), str(asked["mask"])
        if not mask:
            return {"painter": ""}
        kept = self._photos.set_of(photo_set)
        keep_encoded_mask(kept.photo(name), mask)
        message = f"The mask of {kept.shown_name(name)} was saved."
        return self._photos.parts(photo_set, [(True, message)], resolution, chosen, chosen) | {"painter": ""}

    @on("use_found.click", "photo_set chosen resolution", PARTS, api_name="mask_removed", **QUIET)
    def remove(self, photo_set: str, chosen: str | None, resolution: float) -> Answer:
        if not photo_set or not chosen:
            return {}
        kept = self._photos.set_of(photo_set)
        remove_mask(kept.photo(chosen))
        message = f"The mask of {kept.shown_name(chosen)} was removed: the base model finds the subject."
        return self._photos.parts(photo_set, [(True, message)], resolution, chosen, chosen) | {"painter": ""}


def keep_encoded_mask(photo: Path, encoded: str) -> None:
    """Write the mask of a photo of a set from a base64 image, with or without the prefix of a data URL.

    Raises PhotoError if it is not an image, all black, or of another shape than the photo.
    """
    try:
        content = base64.b64decode(encoded.rpartition(",")[2], validate=True)
    except (binascii.Error, ValueError):
        raise PhotoError("That is not a mask.", "It is not base64.", "Encode the bytes of a PNG.") from None
    if len(content) > MAX_PHOTO_BYTES:
        raise PhotoError("That mask is too large.", f"At most {MAX_PHOTO_BYTES // 1024**2} MB are read.", "")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{photo.stem}.png"
        file.write_bytes(content)
        take_mask(file, photo)


def function_for_programs(there: Callable[[str], PhotoSet]) -> Callable[..., bool]:
    """Return the mask function for programs; `there` raises DreamBoothError for a set that does not exist."""

    def set_mask(photo_set: str, photo: str, mask: str = "") -> bool:
        """Set a photo's mask from a base64 image (white is the subject), or remove it; return whether it has one."""
        target = there(photo_set).photo(photo)
        if mask:
            keep_encoded_mask(target, mask)
        else:
            remove_mask(target)
        return bool(mask)

    return set_mask
