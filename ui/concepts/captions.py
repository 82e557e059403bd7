"""All captions of a set at once: find and replace, and a prefix."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from dreambooth.data.captioner import load_captioner
from dreambooth.data.captioner import write_captions as write_missing
from dreambooth.data.captions import edit_captions
from dreambooth.data.photo_sets import PhotoSet
from dreambooth.events import OnProgress, unwatched
from ui.boundary import QUIET, Services
from ui.concepts.photos import PARTS, PhotoHandlers
from ui.events import Answer, on

AUTOMATIC = (
    "A small model (BLIP, 1 GB, downloaded the first time) describes each photo that has no caption; its words follow "
    "the instance prompt. Read them before you train."
)


def build() -> dict[str, Any]:
    """Lay out the fields, and return them by name."""
    with gr.Accordion("Edit all captions", open=False, elem_id="all-captions"):
        with gr.Row(equal_height=False):
            find = gr.Textbox("", label="Find", max_lines=1, elem_id="caption-find", min_width=160)
            replacement = gr.Textbox(
                "", label="Replace with", max_lines=1, elem_id="caption-replacement", min_width=160
            )
            replace = gr.Button("Replace in all captions", size="sm", elem_id="caption-replace", min_width=160)
        with gr.Row(equal_height=False):
            prefix = gr.Textbox(
                "", label="Prefix", max_lines=1, elem_id="caption-prefix", min_width=160, scale=2,
                info="Photos without a caption get the instance prompt after it.",
            )  # fmt: skip
            add_prefix = gr.Button("Add before all captions", size="sm", elem_id="caption-add-prefix", min_width=160)
        gr.HTML(f"<p class='db-hint'>{AUTOMATIC}</p>")
        write = gr.Button("Caption photos automatically", size="sm", elem_id="caption-write")
        written = gr.HTML(elem_id="caption-written")
    return {
        "find": find, "replacement": replacement, "replace": replace, "prefix": prefix, "add_prefix": add_prefix,
        "write": write, "written": written,
    }  # fmt: skip


class CaptionHandlers:
    """The fields' handlers, as functions of values."""

    def __init__(self, services: Services, photos: PhotoHandlers) -> None:
        self._services, self._photos = services, photos

    def edit(self, photo_set: str, find: str = "", replacement: str = "", prefix: str = "") -> int:
        """Return how many captions of a set changed by find and replace, or by a prefix."""
        kept = self._photos.set_of(photo_set)
        usual = kept.words().instance_prompt
        return edit_captions(kept.photos(), usual, find=find or "", replacement=replacement or "", prefix=prefix or "")

    @on("replace.click", "photo_set find replacement resolution", PARTS, api_name="captions_replaced", **QUIET)
    def replace(self, photo_set: str, find: str, replacement: str, resolution: float) -> Answer:
        return self._changed(photo_set, resolution, self.edit(photo_set, find, replacement) if photo_set else 0)

    @on("add_prefix.click", "photo_set prefix resolution", PARTS, api_name="captions_prefixed", **QUIET)
    def add_prefix(self, photo_set: str, prefix: str, resolution: float) -> Answer:
        return self._changed(photo_set, resolution, self.edit(photo_set, prefix=prefix) if photo_set else 0)

    def write(self, photo_set: str, on_photo: OnProgress = unwatched) -> int:
        """Caption the photos of a set that have no caption; return how many."""
        self._services.check_training()
        kept = self._photos.set_of(photo_set)
        missing = [one.path for one in kept.contents() if not one.caption]
        if not missing:
            return 0
        captioner = load_captioner(self._services.settings.hub_token)
        for number, _ in enumerate(write_missing(missing, kept.words().instance_prompt, captioner), 1):
            on_photo(number, len(missing))
        return len(missing)

    @on(
        "write.click", "photo_set resolution", f"{PARTS} written", api_name="captions_written",
        api_visibility="private", concurrency_limit=1, show_progress_on="written",
    )  # fmt: skip
    def write_all(
        self,
        photo_set: str,
        resolution: float,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Answer:
        progress(None, desc="Getting the captioner ready")
        count = self.write(photo_set, lambda done, total: progress((done, total), "Captioning")) if photo_set else 0
        return {**self._changed(photo_set, resolution, count), "written": ""}

    def _changed(self, photo_set: str, resolution: float, count: int) -> Answer:
        message = f"{count} caption{'' if count == 1 else 's'} changed."
        return self._photos.parts(photo_set or "", [(count > 0, message)], resolution, None)


def functions_for_programs(
    captions: CaptionHandlers, there: Callable[[str], PhotoSet]
) -> tuple[Callable[..., str | int], ...]:
    """Return the caption functions for programs; `there` raises DreamBoothError for a set that does not exist."""

    def set_caption(photo_set: str, photo: str, caption: str = "") -> str:
        """Give a photo its own caption; if empty, it uses the instance prompt."""
        there(photo_set).keep_caption(photo, caption)
        return there(photo_set).caption(photo)

    def edit_captions(photo_set: str, find: str = "", replacement: str = "", prefix: str = "") -> int:
        """Replace text in all captions of a set and put a prefix before each; return how many changed."""
        there(photo_set)
        return captions.edit(photo_set, find, replacement, prefix)

    def write_captions(photo_set: str) -> int:
        """Have a small model caption the photos without a caption, and return how many; downloads it if necessary."""
        there(photo_set)
        return captions.write(photo_set)

    return set_caption, edit_captions, write_captions
