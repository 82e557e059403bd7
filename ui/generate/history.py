"""The pictures made before, read from their folder: they are there again after a restart."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.errors import DreamBoothError
from dreambooth.export.archive import zip_pictures
from dreambooth.pictures.painter import folder_of, history
from ui.boundary import QUIET, Services, shown
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
    """Lay out the section; `connect` gives it life."""
    with gr.Accordion("Pictures made before", open=True, elem_id="history"):
        with gr.Row(equal_height=True):
            scope = gr.Radio(
                [("Of this model and its run", THIS), ("All", ALL)], value=THIS, show_label=False, container=False,
                elem_id="history-scope", label="Which pictures",
            )  # fmt: skip
            count = gr.HTML(elem_id="history-count")
        pictures = gr.Gallery(
            label="Pictures made before", show_label=False, columns=6, height="auto", object_fit="cover",
            interactive=False, elem_id="history-pictures", visible=False, buttons=["download", "fullscreen"],
        )  # fmt: skip
        with gr.Row():
            more = gr.Button("Show more", size="sm", visible=False, elem_id="history-more")
            pack = gr.Button("Pack them all as .zip", size="sm", visible=False, elem_id="history-pack")
        with gr.Column(visible=False) as packed:
            download = gr.DownloadButton("Download the .zip", size="sm", elem_id="history-download")
    return History(scope, count, pictures, gr.State([]), more, gr.State(PAGE_SIZE), pack, packed, download)


def connect(
    section: History, services: Services, page: gr.Blocks, model: gr.Dropdown, seen: gr.State, recipe: gr.Textbox
) -> None:
    """Join the section to what it does; it is read again whenever a request has ended."""
    handlers = Handlers(services)
    quiet = QUIET | {"concurrency_limit": None}
    listed = [section.pictures, section.files, section.count, section.more, section.pack, section.packed]
    asked = [model, section.scope, section.num_shown]
    ended = gr.State(None)
    gr.on(
        [model.change, section.scope.change, page.load, section.num_shown.change, ended.change], handlers.read, asked,
        listed, api_name="read_history", trigger_mode="always_last", **quiet,
    )  # fmt: skip
    seen.change(lambda values: values.get("ended"), seen, ended, api_name="pictures_ended", **quiet)
    section.more.click(
        lambda number: number + PAGE_SIZE, section.num_shown, section.num_shown, api_name="more_history", **quiet
    )
    section.pictures.select(handlers.picture_chosen, section.files, recipe, api_name="earlier_picture_chosen", **quiet)
    section.pack.click(
        handlers.zip_pictures, [model, section.scope], section.download, api_name="zip_pictures", concurrency_limit=1
    ).success(handlers.packed, section.download, [section.download, section.packed], **quiet)
    gr.Button(visible=False).click(
        handlers.list_pictures, [model, section.scope], gr.Gallery(visible=False), api_name="list_pictures",
        concurrency_limit=None,
    )  # fmt: skip


class Handlers:
    """What the section does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.read = shown(self._read)
        self.picture_chosen = shown(self._picture_chosen)
        self.zip_pictures = shown(self._zip_pictures)
        self.list_pictures = shown(self._list_pictures)

    def _files(self, model: str, scope: str) -> list[Path]:
        workspace = self._services.workspace
        if scope == ALL:
            return history(workspace.pictures_dir, everything=True)
        return history(folder_of(model, workspace)) if model else []

    def _read(self, model: str, scope: str, num_shown: int) -> list[Any]:
        files = self._files(model, scope)
        first = files[:num_shown]
        told = f"{len(files)} picture{'' if len(files) == 1 else 's'}" if files else "None yet."
        if len(files) > len(first):
            told += f", the newest {len(first)} of them here"
        return [
            gr.Gallery([self._services.shown.copy(path) for path in first], visible=bool(first)),
            [str(path) for path in first],
            f"<p class='db-hint'>{told}</p>",
            gr.Button(visible=len(files) > len(first)),
            gr.Button(visible=bool(files)),
            gr.Column(visible=False),
        ]

    def _picture_chosen(self, files: list[str], picture: gr.SelectData) -> str:
        return recipe_of_first(files[picture.index :])

    def _zip_pictures(self, model: str, scope: str = THIS) -> str:
        """Write the pictures of a model (`this`), or `all`, as one archive into the exports folder, and return it."""
        files = self._files(model, scope)
        if not files:
            raise DreamBoothError("There are no pictures yet.", "", "Make some first.")
        name = "pictures" if scope == ALL else f"pictures-{folder_of(model, self._services.workspace).name}"
        return str(zip_pictures(files, self._services.workspace.exports_dir / f"{name}.zip"))

    def packed(self, archive: str | None) -> tuple[Any, Any]:
        """Show the download of what was packed, with its size."""
        size = size_in_words(Path(archive).stat().st_size) if archive else ""
        return gr.DownloadButton(f"Download the .zip ({size})"), gr.Column(visible=True)

    def _list_pictures(self, model: str, scope: str = THIS) -> list[str]:
        """Return the pictures of a model (`this`: of all steps of its run), or `all`, the newest first."""
        return [self._services.shown.copy(path) for path in self._files(model, scope)]
