"""The images generated before, read from their folder, so that they survive a restart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.errors import DreamBoothError
from dreambooth.export.archive import zip_pictures
from dreambooth.pictures.painter import folder_of, history
from ui.boundary import QUICK, Services
from ui.events import Answer, on
from ui.generate.handlers import recipe_of_first
from ui.render import size_in_words

PAGE_SIZE = 24
THIS, ALL = "this", "all"


@dataclass(frozen=True)
class History:
    """The section's components."""

    scope: gr.Radio
    count: gr.HTML
    pictures: gr.Gallery
    files: gr.State
    more: gr.Button
    num_shown: gr.State
    pack: gr.Button
    packed: gr.Column
    download: gr.DownloadButton


def build() -> History:
    """Lay out the section."""
    with gr.Accordion("Earlier pictures", open=True, elem_id="history"):
        with gr.Row(equal_height=True):
            scope = gr.Radio(
                [("This model and its run", THIS), ("All", ALL)], value=THIS, show_label=False, container=False,
                elem_id="history-scope", label="Which pictures",
            )  # fmt: skip
            count = gr.HTML(elem_id="history-count")
        pictures = gr.Gallery(
            label="Earlier pictures", show_label=False, columns=6, height="auto", object_fit="cover",
            interactive=False, elem_id="history-pictures", visible=False, buttons=["download", "fullscreen"],
        )  # fmt: skip
        with gr.Row():
            more = gr.Button("Show more", size="sm", visible=False, elem_id="history-more")
            pack = gr.Button("Pack all as .zip", size="sm", visible=False, elem_id="history-pack")
        with gr.Column(visible=False) as packed:
            download = gr.DownloadButton("Download the .zip", size="sm", elem_id="history-download")
    return History(scope, count, pictures, gr.State([]), more, gr.State(PAGE_SIZE), pack, packed, download)


class Handlers:
    """The section's handlers, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def _files(self, model: str, scope: str) -> list[Path]:
        workspace = self._services.workspace
        if scope == ALL:
            return history(workspace.pictures_dir, everything=True)
        return history(folder_of(model, workspace)) if model else []

    @on(
        "model.change scope.change newest_photos.then num_shown.change ended.change", "model scope num_shown",
        "pictures files count more pack packed", api_name="read_history", trigger_mode="always_last", **QUICK,
    )  # fmt: skip
    def read(self, model: str, scope: str, num_shown: int) -> Answer:
        """Show the existing images, read again whenever a request has ended."""
        files = self._files(model, scope)
        copies = self._services.shown.copies(files[:num_shown])
        first = list(copies)
        count = f"{len(files)} picture{'' if len(files) == 1 else 's'}" if files else "None yet."
        if len(files) > len(first):
            count += f", the newest {len(first)} of them here"
        return {
            "pictures": gr.Gallery(list(copies.values()), visible=bool(first)),
            "files": [str(path) for path in first],
            "count": f"<p class='db-hint'>{count}</p>",
            "more": gr.Button(visible=len(files) > len(first)),
            "pack": gr.Button(visible=bool(files)),
            "packed": gr.Column(visible=False),
        }

    @on("seen.change", "seen", "ended", api_name="pictures_ended", **QUICK)
    def ended(self, values: dict[str, Any]) -> Any:
        return values.get("ended")

    @on("more.click", "num_shown", "num_shown", api_name="more_history", **QUICK)
    def show_more(self, number: int) -> int:
        return number + PAGE_SIZE

    @on("pictures.select", "files", "recipe", api_name="earlier_picture_chosen", **QUICK)
    def picture_chosen(self, files: list[str], picture: gr.SelectData) -> str:
        return recipe_of_first(files[picture.index :])

    @on("pack.click", "model scope", "download", api_name="zip_pictures", concurrency_limit=1)
    def zip_pictures(self, model: str, scope: str = THIS) -> str:
        """Write the images of a model (`this`), or `all`, as one archive into the exports folder, and return it."""
        files = self._files(model, scope)
        if not files:
            raise DreamBoothError("There are no pictures yet.", "", "Make some first.")
        name = "pictures" if scope == ALL else f"pictures-{folder_of(model, self._services.workspace).name}"
        return str(zip_pictures(files, self._services.workspace.exports_dir / f"{name}.zip"))

    @on("zip_pictures.success", "download", "download packed", **QUICK)
    def packed(self, archive: str | None) -> Answer:
        """Show the download of the archive, with its size."""
        size = size_in_words(Path(archive).stat().st_size) if archive else ""
        return {"download": gr.DownloadButton(f"Download the .zip ({size})"), "packed": gr.Column(visible=True)}

    @on("programs.click", "model scope", "made", api_name="list_pictures", concurrency_limit=None)
    def list_pictures(self, model: str, scope: str = THIS) -> list[str]:
        """Return the images of a model (`this`: of all steps of its run), or `all`, the newest first."""
        return list(self._services.shown.copies(self._files(model, scope)).values())
