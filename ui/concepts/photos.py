"""Photo handlers of the first tab: import, preview, edit."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dreambooth.config.limits import text_problems
from dreambooth.data.decoded import forget_decoded
from dreambooth.data.findings import Finding
from dreambooth.data.focus import Focus
from dreambooth.data.masks import mask_beside
from dreambooth.data.measured import measured
from dreambooth.data.photo_sets import SAMPLE_SET, Line, PhotoSet, StoredPhoto, new_set_name, photo_set, photo_sets
from dreambooth.data.photos import read_photo
from dreambooth.data.removed_photos import forget_all_removed
from dreambooth.data.words import Words
from dreambooth.errors import PhotoError
from dreambooth.pictures.prompts import subject_of
from dreambooth.records.drive import delete_photos
from ui.boundary import QUICK, QUIET, Services
from ui.concepts.cards import PhotoCard, cards, cut_view, editor, set_report
from ui.concepts.scripts import NAME_NEW_SET
from ui.concepts.words import sample_words, words_from
from ui.events import Answer, on
from ui.late_answers import answer_of

# The actions on a photo.
ACTS = ("remove", "restore", "turn", "brighten", "refocus")
# The outputs that show the photos and the selected one, and those that show a whole set.
PARTS = "report views chosen box editor cut caption remove mask_note use_found masked painter"
MASK = "This photo has a mask: the background counts only by the background weight."
NO_MASK = "No mask: with a background weight below 1 the base model finds the subject itself."
CONTENTS = f"photo_set answer concepts earlier {PARTS}"
SEEN = "photo_set chosen resolution"
OTHER_SET: dict[str, Any] = {"fills": "entries", "asks": True, **QUIET}
# A second drop during the first waits for it, and goes into the same new set.
TAKING: dict[str, Any] = {
    "js": NAME_NEW_SET,
    "concurrency_id": "take_photos",
    "concurrency_limit": 1,
    "fills": "entries",
}


class PhotoHandlers:
    """The handlers for the photos of a set, and for the selected one."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def set_of(self, name: str) -> PhotoSet:
        """Return the photo set of this name; refuses names that could leave the datasets folder."""
        return photo_set(self._services.workspace, name)

    # Photos ----------------------------------------------------------------------------------------------------------

    @on(
        "files.upload", "files photo_set words resolution new_name",
        f"photo_set {PARTS} earlier concepts files answer", api_name="upload_photos", trigger_mode="multiple", **TAKING,
    )  # fmt: skip
    def upload(
        self, files: list[str] | None, photo_set: str, kind: str, identifier: str, class_word: str,
        instance_prompt: str, class_prompt: str, resolution: float, new_set: str = "",
    ) -> Answer:  # fmt: skip
        """Import uploaded photos and zips, upright and without metadata, and show them as they will be trained.

        If no set is open, or the sample's, they start a new set: with the name `new_set` if one is given.
        """
        paths = [Path(file) for file in files or []]
        target = self.target_of(photo_set, new_set)
        try:
            lines = target.add(paths, self._painter(resolution))
        finally:
            self.drop_uploads(paths)
        words = words_from(kind, identifier, class_word, instance_prompt, class_prompt)
        return {**self._taken(target, photo_set, words, lines, resolution), "files": None}

    def _painter(self, resolution: float) -> Callable[[Path, Focus], None]:
        """Return a callback that prepares the card of an imported photo while its image is in memory."""
        side_px = _side(resolution)

        def paint(photo: Path, focus: Focus) -> None:
            measured(photo, focus, side_px)
            self._services.shown.training_view(photo, side_px, focus)
            forget_decoded()

        return paint

    def target_of(self, photo_set: str, new_set: str = "") -> PhotoSet:
        """Return the set to which photos are added: never the sample's, because they show another subject."""
        opened = photo_set if photo_set != SAMPLE_SET else ""
        return self.set_of(opened or new_set or new_set_name())

    def drop_uploads(self, paths: Sequence[Path]) -> None:
        """Remove uploads: the set has its own copies, and the originals, with all their metadata, are not kept."""
        for path in paths:
            if path.resolve().is_relative_to(Path(get_upload_folder()).resolve()):
                path.unlink(missing_ok=True)

    def _taken(self, target: PhotoSet, before: str, words: Words, lines: list[Line], resolution: float) -> Answer:
        """Return the updates that show the set to which photos were added, with its words if they changed."""
        if not target.photos():
            opened = before if before and self.set_of(before).folder.is_dir() else ""
            parts = self.parts(opened, lines, resolution, None, kind=words.kind)
            return {"photo_set": opened, **parts, "answer": answer_of({})}
        # The sample's words, left unchanged, do not fit other photos.
        of_sample = before == SAMPLE_SET and words == sample_words()
        words = target.words() if of_sample else words
        target.keep_words(words)
        return {
            "photo_set": target.name,
            **self.parts(target.name, lines, resolution, None),
            "earlier": self._earlier(target.name),
            "concepts": self._chips(target),
            "answer": answer_of(asdict(words) if of_sample else {}),
        }

    @on(
        "take_folder.click folder.submit", "folder photo_set words resolution new_name",
        f"photo_set {PARTS} earlier concepts answer", api_name="take_folder", api_visibility="private", **TAKING,
    )  # fmt: skip
    def add_folder(
        self, folder: str, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str,
        class_prompt: str, resolution: float, new_set: str = "",
    ) -> Answer:  # fmt: skip
        """Import the photos of a folder of this machine; only if the page is this machine's own."""
        target = self.target_of(photo_set, new_set)
        lines = target.add_folder(self.local_folder(folder), self._painter(resolution))
        words = words_from(kind, identifier, class_word, instance_prompt, class_prompt)
        return self._taken(target, photo_set, words, lines, resolution)

    def local_folder(self, folder: str) -> Path:
        """Return the folder that a user of this machine names; refuses everybody else."""
        if not self._services.takes_folders:
            raise PhotoError(
                "Folders are read only if nobody else can open this page.",
                "Otherwise other visitors could read this machine's pictures.", "Drop the photos or a zip instead.",
            )  # fmt: skip
        if text_problems("folder", folder, is_name=True) or not folder.strip():
            raise PhotoError("That is not a folder.", "", "Enter the full path, such as /home/me/photos/dog.")
        path = Path(folder.strip()).expanduser()
        data = self._services.workspace.data_dir.resolve()
        if path.resolve().is_relative_to(data) or data.is_relative_to(path.resolve()):
            raise PhotoError("That folder belongs to the app.", "", "Name the folder your photos came from.")
        return path

    def parts(
        self, name: str, lines: Sequence[Line], resolution: float, chosen: str | None, before: str | None = None,
        kind: str = "", removed: tuple[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the updates that show the photos: report, cards, the selected one, its editor, crop, caption and mask.

        The caption of the photo selected `before`, and a mask being painted, are not changed. `removed` is the file and
        the name of a photo that can be restored.
        """
        kept = self.set_of(name) if name else None
        side_px = _side(resolution)
        photos = kept.contents() if kept else []
        found = kept.findings(side_px, photos) if kept else {}
        if chosen not in [photo.path.name for photo in photos]:
            chosen = None
        shown_cards = [self._card(photo, found.get(photo.path.name, []), side_px) for photo in photos]
        words = kept.words() if kept else Words()
        report = set_report(len(photos), lines, found, kind or words.kind)
        parts = self._editor_parts(kept, chosen, side_px)
        forget_decoded()
        if chosen and chosen == before:
            del parts["caption"], parts["painter"]
        views = cards(shown_cards, chosen, words.instance_prompt, removed, side_px)
        # A set with other masks is another one to the settings that are proposed for it.
        num_masked = sum(photo.mask is not None for photo in photos)
        masked = f"{name} {num_masked}" if num_masked else ""
        return {"report": report, "views": views, "chosen": chosen or "", "masked": masked, **parts}

    def _card(self, photo: StoredPhoto, found: Sequence[Finding], side_px: int) -> PhotoCard:
        view = mask = ""
        try:
            view = self._services.shown.training_view(photo.path, side_px, photo.focus)
            if photo.mask is not None:
                mask = self._services.shown.mask_view(photo.path, photo.mask, photo.focus)
        except PhotoError as error:  # damaged since it was stored: the others are shown all the same
            found = [Finding("unreadable", str(error))]
        return PhotoCard(photo.path.name, photo.known_as, view, found, photo.caption, mask)

    def _editor_parts(self, kept: PhotoSet | None, chosen: str | None, side_px: int) -> dict[str, Any]:
        if kept is None or chosen is None:
            nothing = {"box": gr.Column(visible=False), "editor": "", "cut": "", "caption": "", "mask_note": ""}
            off = gr.Button(interactive=False)
            return nothing | {"remove": off, "use_found": off, "painter": ""}
        photo, focus = kept.photo(chosen), kept.focus(chosen)
        size = read_photo(photo).image.size
        return {
            "box": gr.Column(visible=True),
            "editor": editor(chosen, self._services.shown.preview(photo), size, focus),
            "cut": self._cut(kept, chosen, side_px),
            "caption": kept.caption(chosen),
            "remove": gr.Button(interactive=True),
            "mask_note": f"<p class='db-hint'>{MASK if mask_beside(photo) else NO_MASK}</p>",
            "use_found": gr.Button(interactive=mask_beside(photo) is not None),
            "painter": "",
        }

    def _cut(self, kept: PhotoSet, chosen: str, side_px: int) -> str:
        view = self._services.shown.training_view(kept.photo(chosen), side_px, kept.focus(chosen))
        return cut_view(view, f"Exactly what is trained, at {side_px} x {side_px}.")

    @on("views.click", "photo_set resolution chosen", PARTS, api_name="photo_chosen", **QUIET)
    def card_clicked(
        self,
        photo_set: str,
        resolution: float,
        chosen: str | None,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> Answer:
        """Do what the clicked button of a card says."""
        asked = event_data(event)
        act, name = str(asked.get("act", "")), str(asked.get("photo", ""))
        if not photo_set or act not in ("choose", *ACTS):
            return {}
        kept = self.set_of(photo_set)
        if act == "choose":
            return self.parts(photo_set, [], resolution, None if chosen == name else name, chosen)
        known = kept.shown_name(name)
        lines = self.change(kept, name, act)
        parts = self.parts(
            photo_set, lines, resolution, chosen, chosen, removed=(name, known) if act == "remove" else None
        )
        return parts | ({"painter": ""} if name == chosen else {})  # what is painted is the photo as it was

    @on("views.edit", "photo_set chosen", "caption", api_name="caption_edited", **QUIET)
    def caption_edited(
        self,
        photo_set: str,
        chosen: str | None,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> Any:
        """Store the caption typed under a photo; the cards are not updated, because somebody may be typing in them."""
        asked = event_data(event)
        if not photo_set or not {"photo", "caption"} <= set(asked):
            return gr.skip()
        name, caption = str(asked["photo"]), str(asked["caption"])
        self.set_of(photo_set).keep_caption(name, caption)
        return caption if name == chosen else gr.skip()

    def change(self, kept: PhotoSet, name: str, act: str) -> list[Line]:
        """Remove, restore, turn or brighten a photo, or propose its crop again; return the message about it."""
        if act == "restore":
            kept.restore(name)
            return [(True, f"{kept.shown_name(name)} is back.")]
        photo, known = kept.photo(name), kept.shown_name(name)
        if act == "remove":
            kept.remove(name)
            self._services.shown.forget([photo])
            return [(True, f"{known} was removed.")]
        {"turn": kept.turn, "brighten": kept.brighten, "refocus": kept.propose_again}[act](name)
        self._services.shown.forget([photo])
        outcome = {"turn": "was turned", "brighten": "was lightened", "refocus": "was cropped automatically"}
        return [(True, f"{known} {outcome[act]}.")]

    @on(
        "editor.release", "photo_set resolution", "report views cut", api_name="square_moved",
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    def focus_moved(
        self,
        photo_set: str,
        resolution: float,
        event: gr.EventData = None,  # type: ignore[assignment]
    ) -> Answer:
        """Store the crop that was moved by hand, and show it as it will be trained."""
        asked = event_data(event)
        if not photo_set or not {"photo", "x", "y", "zoom"} <= set(asked):
            return {}
        kept, name = self.set_of(photo_set), str(asked["photo"])
        kept.keep_focus(name, Focus(asked["x"], asked["y"], asked["zoom"]))
        return self._some_parts("report views cut", photo_set, resolution, name)

    @on("caption.blur", "photo_set chosen caption resolution", "report views", api_name="caption_left", **QUIET)
    def caption_left(self, photo_set: str, chosen: str | None, caption: str, resolution: float) -> Answer:
        if not photo_set or not chosen:
            return {}
        self.set_of(photo_set).keep_caption(chosen, caption or "")
        return self._some_parts("report views", photo_set, resolution, chosen)

    def _some_parts(self, names: str, photo_set: str, resolution: float, chosen: str) -> Answer:
        parts = self.parts(photo_set, [], resolution, chosen)
        return {name: parts[name] for name in names.split()}

    @on("remove.click", SEEN, PARTS, api_name="remove_chosen", **QUIET)
    def remove(self, photo_set: str, chosen: str | None, resolution: float) -> Answer:
        if not photo_set or not chosen:
            return self.parts(photo_set, [], resolution, None)
        known = self.set_of(photo_set).shown_name(chosen)
        lines = self.change(self.set_of(photo_set), chosen, "remove")
        return self.parts(photo_set, lines, resolution, None, removed=(chosen, known))

    @on("close.click", SEEN, PARTS, api_name="close_editor", **QUIET)
    def close_editor(self, photo_set: str, chosen: str | None, resolution: float) -> Answer:
        return self.parts(photo_set or "", [], resolution, None)

    @on("refocus.click", SEEN, PARTS, api_name="guess_square", **QUIET)
    def refocus(self, photo_set: str, chosen: str | None, resolution: float) -> Answer:
        lines = self.change(self.set_of(photo_set), chosen, "refocus") if photo_set and chosen else []
        return self.parts(photo_set, lines, resolution, chosen, chosen)

    @on("resolution.change", SEEN, PARTS, api_name="photo_views", **QUIET)
    def views(self, photo_set: str, chosen: str | None, resolution: float) -> Answer:
        # Without photos nothing changes; and a newly opened page, with restored edits, has no set yet.
        return self.parts(photo_set, [], resolution, chosen, chosen) if photo_set else {}

    def _earlier(self, value: str) -> Any:
        sets = photo_sets(self._services.workspace)
        choices = [(f"{one.words().instance_prompt} ({len(one.photos())} photos)", one.name) for one in sets]
        return gr.Dropdown(choices=choices, value=value or None)

    @on("earlier.input", "earlier resolution", CONTENTS, api_name="earlier_photos", **OTHER_SET)
    @on("concepts.input", "concepts resolution", CONTENTS, api_name="shown_concept", **OTHER_SET)
    def contents(self, photo_set: str, resolution: float, lines: Sequence[Line] = ()) -> Answer:
        """Return everything the tab shows of a set; an empty name is a new one."""
        kept = self.set_of(photo_set) if photo_set else None
        words = kept.words() if kept else Words()
        return {
            "photo_set": photo_set,
            "answer": answer_of(asdict(words)),
            "concepts": self._chips(kept),
            "earlier": self._earlier(photo_set),
            **self.parts(photo_set, lines, resolution, None),
        }

    @on("new_set.click", "", CONTENTS, api_name="new_photo_set", **OTHER_SET)
    def begin_new_set(self) -> Answer:
        return self.contents("", 64)

    @on("page.load", "resolution", CONTENTS, api_name="newest_photos", **QUICK)
    def newest(self, resolution: float) -> Answer:
        """Return what a newly opened page shows: the photos last worked on."""
        forget_all_removed(self._services.workspace.datasets_dir)
        sets = photo_sets(self._services.workspace)
        return self.contents(sets[0].name if sets else "", resolution)

    @on("delete.click", "photo_set", CONTENTS, api_name="delete_shown_photos", **OTHER_SET)
    def delete(self, photo_set: str) -> Answer:
        """Delete the photos of a set and every copy of them on this machine; runs and their models stay."""
        if photo_set:
            kept = self.set_of(photo_set)
            class_name = kept.class_folder.name
            self._services.shown.forget(kept.delete())
            for name in (photo_set, class_name):
                delete_photos(self._services.workspace, name)
        return self.contents("", 64, [(True, "Your photos and all copies of them were deleted.")])

    def _chips(self, kept: PhotoSet | None) -> Any:
        members = kept.together() if kept else []
        choices = [(f"{number}. {subject_of(one.words().instance_prompt)}", one.name) for number, one in
                   enumerate(members, 1)]  # fmt: skip
        return gr.Radio(choices=choices, value=kept.name if kept else None, visible=len(members) > 1)


def event_data(event: Any) -> dict[str, Any]:
    """Return the event data of one of our own components; None if a program calls the event by number."""
    data = getattr(event, "_data", None)
    return data if isinstance(data, dict) else {}


def _side(resolution: float) -> int:
    return max(16, min(int(resolution or 512), 1024))
