"""What the first tab does with photos, as functions of values: taken in, shown as they will be trained, put right."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dreambooth.config.limits import text_problems
from dreambooth.data.decoded import forget_decoded
from dreambooth.data.findings import Finding
from dreambooth.data.focus import Focus
from dreambooth.data.photo_sets import SAMPLE_SET, Line, PhotoSet, StoredPhoto, new_set_name, photo_set, photo_sets
from dreambooth.data.photos import read_photo
from dreambooth.data.words import Words
from dreambooth.errors import PhotoError
from dreambooth.pictures.prompts import subject_of
from dreambooth.records.drive import delete_photos
from ui.boundary import Services, shown
from ui.concepts.cards import Card, cards, cut_view, editor, set_report
from ui.concepts.words import sample_words, words_told
from ui.generate.late_answers import answer_of


class PhotoHandlers:
    """What the tab does with the photos of a set, and what it shows of one."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.upload = shown(self._upload)
        self.add_folder = shown(self._add_folder)
        self.card_clicked = shown(self._card_clicked)
        self.focus_moved = shown(self._focus_moved)
        self.caption_left = shown(self._caption_left)
        self.remove = shown(self._remove)
        self.refocus = shown(self._refocus)
        self.delete = shown(self._delete)
        self.contents = shown(self.contents_of)
        self.views = shown(self._views)

    def set_of(self, name: str) -> PhotoSet:
        """Return the photo set of this name; refuses names that could leave the datasets folder."""
        return photo_set(self._services.workspace, name)

    # Photos ----------------------------------------------------------------------------------------------------------

    def _upload(
        self, files: list[str] | None, photo_set: str, kind: str, identifier: str, class_word: str,
        instance_prompt: str, class_prompt: str, resolution: float, new_set: str = "",
    ) -> list[Any]:  # fmt: skip
        """Take uploaded photos and zips in, upright and without metadata, and show them as they will be trained.

        With no set open, or the sample's, they begin a set of their own: that of the name `new_set`, if one is given.
        """
        paths = [Path(file) for file in files or []]
        target = self.target_of(photo_set, new_set)
        try:
            lines = target.add(paths)
        finally:
            self.drop_uploads(paths)
        words = words_told(kind, identifier, class_word, instance_prompt, class_prompt)
        taken = self._taken(target, photo_set, words, lines, resolution)
        return [*taken[:-1], None, taken[-1]]

    def target_of(self, photo_set: str, new_set: str = "") -> PhotoSet:
        """Return the set that photos go into: never the sample's, whose subject they do not show."""
        opened = photo_set if photo_set != SAMPLE_SET else ""
        return self.set_of(opened or new_set or new_set_name())

    def drop_uploads(self, paths: Sequence[Path]) -> None:
        """Remove uploads: the set holds its own copies, and what came, with all its metadata, is not kept."""
        for path in paths:
            if path.resolve().is_relative_to(Path(get_upload_folder()).resolve()):
                path.unlink(missing_ok=True)

    def _taken(self, target: PhotoSet, before: str, words: Words, lines: list[Line], resolution: float) -> list[Any]:
        """Return what shows the set that photos went into, and last its words where they are others than the page's."""
        unchanged = answer_of({})
        if not target.photos():
            opened = before if before and self.set_of(before).folder.is_dir() else ""
            parts = self.parts(opened, lines, resolution, None, kind=words.kind)
            return [opened, *parts, gr.skip(), gr.skip(), unchanged]
        # The sample's words, left as they were, are none for other photos.
        of_sample = before == SAMPLE_SET and words == sample_words()
        words = target.words() if of_sample else words
        target.keep_words(words)
        parts = self.parts(target.name, lines, resolution, None)
        answer = answer_of(asdict(words)) if of_sample else unchanged
        return [target.name, *parts, self._earlier(target.name), self._chips(target), answer]

    def _add_folder(
        self, folder: str, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str,
        class_prompt: str, resolution: float, new_set: str = "",
    ) -> list[Any]:  # fmt: skip
        """Take in the photos of a folder of this machine; only where the page is this machine's own."""
        target = self.target_of(photo_set, new_set)
        lines = target.add_folder(self.local_folder(folder))
        words = words_told(kind, identifier, class_word, instance_prompt, class_prompt)
        return self._taken(target, photo_set, words, lines, resolution)

    def local_folder(self, folder: str) -> Path:
        """Return the folder that a user of this machine names; refuses everybody else."""
        if not self._services.takes_folders:
            raise PhotoError(
                "Folders are read only where the page is open on this machine alone, without a login.",
                "Whoever else can open it could read this machine's pictures.", "Drop the photos or a zip instead.",
            )  # fmt: skip
        if text_problems("folder", folder, is_name=True) or not folder.strip():
            raise PhotoError("That is no folder.", "", "Type the whole path, such as /home/me/photos/dog.")
        path = Path(folder.strip()).expanduser()
        data = self._services.workspace.data_dir.resolve()
        if path.resolve().is_relative_to(data) or data.is_relative_to(path.resolve()):
            raise PhotoError("That folder is the app's own.", "", "Name the folder your photos came from.")
        return path

    def parts(
        self, name: str, lines: Sequence[Line], resolution: float, chosen: str | None, before: str | None = None,
        kind: str = "",
    ) -> list[Any]:  # fmt: skip
        """Return what shows the photos: report, cards, the chosen one, its editor, its cut, its caption.

        The caption of the photo that was chosen `before` is left as it is: somebody may be typing it.
        """
        kept = self.set_of(name) if name else None
        side_px = _side(resolution)
        photos = kept.contents() if kept else []
        found = kept.findings(side_px, photos) if kept else {}
        if chosen not in [photo.path.name for photo in photos]:
            chosen = None
        shown_cards = [self._card(photo, found.get(photo.path.name, []), side_px) for photo in photos]
        kind = kind or (kept.words() if kept else Words()).kind
        report = set_report(len(photos), lines, found, kind)
        parts = self._editor_parts(kept, chosen, side_px)
        forget_decoded()
        if chosen and chosen == before:
            parts[3] = gr.skip()
        return [report, cards(shown_cards, chosen), chosen or "", *parts]

    def _card(self, photo: StoredPhoto, found: Sequence[Finding], side_px: int) -> Card:
        try:
            view = self._services.shown.training_view(photo.path, side_px, photo.focus)
        except PhotoError as error:  # damaged since it was stored: the others are shown all the same
            view, found = "", [Finding("unreadable", str(error))]
        return Card(photo.path.name, photo.known_as, view, found, photo.caption)

    def _editor_parts(self, kept: PhotoSet | None, chosen: str | None, side_px: int) -> list[Any]:
        if kept is None or chosen is None:
            return [gr.Column(visible=False), "", "", "", gr.Button(interactive=False)]
        photo, focus = kept.photo(chosen), kept.focus(chosen)
        size = read_photo(photo).image.size
        shape = editor(chosen, self._services.shown.preview(photo), size, focus)
        return [
            gr.Column(visible=True), shape, self._cut(kept, chosen, side_px), kept.caption(chosen),
            gr.Button(interactive=True),
        ]  # fmt: skip

    def _cut(self, kept: PhotoSet, chosen: str, side_px: int) -> str:
        view = self._services.shown.training_view(kept.photo(chosen), side_px, kept.focus(chosen))
        return cut_view(view, f"Exactly what is trained, at {side_px} x {side_px}.")

    def _card_clicked(
        self,
        photo_set: str,
        resolution: float,
        chosen: str | None,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> list[Any]:
        """Do what a card's button says."""
        asked = _told_by(event)
        act, name = str(asked.get("act", "")), str(asked.get("photo", ""))
        if not photo_set or act not in ("choose", "remove", "turn", "brighten", "refocus"):
            return [gr.skip()] * 8
        kept = self.set_of(photo_set)
        if act == "choose":
            return self.parts(photo_set, [], resolution, None if chosen == name else name, chosen)
        lines = self.change(kept, name, act)
        return self.parts(photo_set, lines, resolution, chosen, chosen)

    def change(self, kept: PhotoSet, name: str, act: str) -> list[Line]:
        """Remove, turn or lighten a photo, or guess its square again; returns what to say of it."""
        photo, known = kept.photo(name), kept.shown_name(name)
        if act == "remove":
            kept.remove(name)
            self._services.shown.forget([photo])
            return [(True, f"{known} was removed.")]
        {"turn": kept.turn, "brighten": kept.brighten, "refocus": kept.propose_again}[act](name)
        self._services.shown.forget([photo])
        told = {"turn": "was turned", "brighten": "was lightened", "refocus": "has its square from the guess again"}
        return [(True, f"{known} {told[act]}.")]

    def _focus_moved(
        self,
        photo_set: str,
        resolution: float,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> list[Any]:
        """Keep the square that was moved by hand, and show the cut that will be trained."""
        asked = _told_by(event)
        if not photo_set or not {"photo", "x", "y", "zoom"} <= set(asked):
            return [gr.skip()] * 3
        kept, name = self.set_of(photo_set), str(asked["photo"])
        kept.keep_focus(name, Focus(asked["x"], asked["y"], asked["zoom"]))
        report, photos, *_ = self.parts(photo_set, [], resolution, name)
        return [report, photos, self._cut(kept, name, _side(resolution))]

    def _caption_left(self, photo_set: str, chosen: str | None, caption: str, resolution: float) -> list[Any]:
        if not photo_set or not chosen:
            return [gr.skip()] * 2
        self.set_of(photo_set).keep_caption(chosen, caption or "")
        return self.parts(photo_set, [], resolution, chosen)[:2]

    def _remove(self, photo_set: str, chosen: str | None, resolution: float) -> list[Any]:
        lines = self.change(self.set_of(photo_set), chosen, "remove") if photo_set and chosen else []
        return self.parts(photo_set, lines, resolution, None)

    def _refocus(self, photo_set: str, chosen: str | None, resolution: float) -> list[Any]:
        lines = self.change(self.set_of(photo_set), chosen, "refocus") if photo_set and chosen else []
        return self.parts(photo_set, lines, resolution, chosen, chosen)

    def _views(self, photo_set: str, chosen: str | None, resolution: float) -> list[Any]:
        return self.parts(photo_set or "", [], resolution, chosen, chosen)

    def _earlier(self, value: str) -> Any:
        sets = photo_sets(self._services.workspace)
        choices = [(f"{one.words().instance_prompt} ({len(one.photos())} photos)", one.name) for one in sets]
        return gr.Dropdown(choices=choices, value=value or None)

    def contents_of(self, photo_set: str, resolution: float, lines: Sequence[Line] = ()) -> list[Any]:
        """Return everything the tab shows of a set; an empty name is a new one."""
        kept = self.set_of(photo_set) if photo_set else None
        words = kept.words() if kept else Words()
        return [
            photo_set, answer_of(asdict(words)), self._chips(kept), self._earlier(photo_set),
            *self.parts(photo_set, lines, resolution, None),
        ]  # fmt: skip

    def newest(self, resolution: float) -> list[Any]:
        """Return what a freshly opened page shows: the photos last worked with."""
        sets = photo_sets(self._services.workspace)
        return self.contents_of(sets[0].name if sets else "", resolution)

    def _delete(self, photo_set: str) -> list[Any]:
        """Delete the photos of a set and every copy of them on this machine; runs and their models stay."""
        if photo_set:
            kept = self.set_of(photo_set)
            class_name = kept.class_folder.name
            self._services.shown.forget(kept.delete())
            for name in (photo_set, class_name):
                delete_photos(self._services.workspace, name)
        return self.contents_of("", 64, [(True, "Your photos and all copies of them were deleted.")])

    def _chips(self, kept: PhotoSet | None) -> Any:
        members = kept.together() if kept else []
        choices = [(f"{number}. {subject_of(one.words().instance_prompt)}", one.name) for number, one in
                   enumerate(members, 1)]  # fmt: skip
        return gr.Radio(choices=choices, value=kept.name if kept else None, visible=len(members) > 1)


def _told_by(event: Any) -> dict[str, Any]:
    """Return what a component of our own tells with its event; nothing when a program calls it by number."""
    told = getattr(event, "_data", None)
    return told if isinstance(told, dict) else {}


def _side(resolution: float) -> int:
    return max(16, min(int(resolution or 512), 1024))
