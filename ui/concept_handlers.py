"""What the first tab does, as functions of values: photos, squares, words, several concepts, class pictures."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dreambooth.config import Concept, dump_concepts_list, load_concepts_list
from dreambooth.data.focus import Focus
from dreambooth.data.photos import find_photos, read_photo
from dreambooth.drive import delete_photos
from dreambooth.errors import DreamBoothError, FieldProblem, PhotoError
from dreambooth.identifiers import SHAPE, Verdict, judged, proposed, vocabulary_of
from dreambooth.limits import text_problems
from dreambooth.prompts import EXAMPLES, KIND_WORDS, subject_of
from ui.boundary import Services, shown
from ui.fields import marks
from ui.late_answers import answer_of
from ui.photo_cards import Card, cards, cut_view, editor, set_report
from ui.photo_sets import (
    KINDS,
    PhotoSet,
    Words,
    new_set_name,
    photo_set,
    photo_sets,
    prompts_for,
)

SAMPLE_SET = "sample-subject"
MAX_SHOWN_CLASS_PICTURES = 60
# What `contents` shows of a set.
NUM_CONTENTS = 12
NOTES = {
    "identifier": "A short made-up word that will mean your subject and nothing else.",
    "class_word": "What kind of thing it is, in one or two words.",
    "instance_prompt": "Use these words in prompts later. `instance_prompt`",
    "class_prompt": "What the model should keep knowing. `class_prompt`",
}
Line = tuple[bool, str]


class Handlers:
    """What the tab does; every public name is an event or a function of the API."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.upload = shown(self._upload)
        self.add_folder = shown(self._add_folder)
        self.card_clicked = shown(self._card_clicked)
        self.focus_moved = shown(self._focus_moved)
        self.caption_left = shown(self._caption_left)
        self.remove = shown(self._remove)
        self.refocus = shown(self._refocus)
        self.keep_words = shown(self._keep_words)
        self.keep_kind = shown(self._keep_kind)
        self.verdict = shown(self._verdict)
        self.propose = shown(self._propose)
        self.add_concept = shown(self._add_concept)
        self.leave = shown(self._leave)
        self.delete = shown(self._delete)
        self.contents = shown(self._contents)
        self.views = shown(self._views)
        self.add_class_pictures = shown(self._add_class_pictures)
        self.remove_class_pictures = shown(self._remove_class_pictures)
        self.class_pictures = shown(self._class_pictures)
        self.export_concepts = shown(self._export_concepts)
        self.import_concepts = shown(self._import_concepts)
        self.go_on = shown(self._go_on)

    def set_of(self, name: str) -> PhotoSet:
        """Return the photo set of this name; refuses names that could leave the datasets folder."""
        return photo_set(self._services.workspace, name)

    # Photos ----------------------------------------------------------------------------------------------------------

    def _upload(
        self, files: list[str] | None, photo_set: str, kind: str, identifier: str, class_word: str,
        instance_prompt: str, class_prompt: str, resolution: float,
    ) -> list[Any]:  # fmt: skip
        """Take uploaded photos and zips in, upright and without metadata, and show them as they will be trained."""
        paths = [Path(file) for file in files or []]
        target = self.set_of(photo_set or new_set_name())
        try:
            lines = target.add(paths)
        finally:
            self._drop_uploads(paths)
        words = _words(kind, identifier, class_word, instance_prompt, class_prompt)
        return [*self._taken(target, photo_set, words, lines, resolution), None]

    def _drop_uploads(self, paths: Sequence[Path]) -> None:
        """Remove uploads: the set holds its own copies, and what came, with all its metadata, is not kept."""
        for path in paths:
            if path.resolve().is_relative_to(Path(get_upload_folder()).resolve()):
                path.unlink(missing_ok=True)

    def _taken(self, target: PhotoSet, before: str, words: Words, lines: list[Line], resolution: float) -> list[Any]:
        if not target.photos():
            empty = before if before and self.set_of(before).folder.is_dir() else ""
            return [empty, *self._photo_parts("", lines, resolution, None, kind=words.kind), gr.skip(), gr.skip()]
        target.keep_words(words)
        parts = self._photo_parts(target.name, lines, resolution, None)
        return [target.name, *parts, self._earlier(target.name), self._chips(target)]

    def _add_folder(
        self, folder: str, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str,
        class_prompt: str, resolution: float,
    ) -> list[Any]:  # fmt: skip
        """Take in the photos of a folder of this machine; only where the page is this machine's own."""
        target = self.set_of(photo_set or new_set_name())
        lines = target.add_folder(self.local_folder(folder))
        words = _words(kind, identifier, class_word, instance_prompt, class_prompt)
        return self._taken(target, photo_set, words, lines, resolution)

    def local_folder(self, folder: str) -> Path:
        """Return the folder that a user of this machine names; refuses everybody else."""
        if not self._services.takes_folders:
            raise PhotoError(
                "Folders are read only where the page is open on this machine alone.",
                "Whoever else can open it could read this machine's pictures.", "Drop the photos or a zip instead.",
            )  # fmt: skip
        if text_problems("folder", folder, is_name=True) or not folder.strip():
            raise PhotoError("That is no folder.", "", "Type the whole path, such as /home/me/photos/dog.")
        path = Path(folder.strip()).expanduser()
        data = self._services.workspace.data_dir.resolve()
        if path.resolve().is_relative_to(data) or data.is_relative_to(path.resolve()):
            raise PhotoError("That folder is the app's own.", "", "Name the folder your photos came from.")
        return path

    def _photo_parts(
        self, name: str, lines: Sequence[Line], resolution: float, chosen: str | None, before: str | None = None,
        kind: str = "",
    ) -> list[Any]:  # fmt: skip
        """Return what shows the photos: report, cards, the chosen one, its editor, its cut, its caption.

        The caption of the photo that was chosen `before` is left as it is: somebody may be typing it.
        """
        kept = self.set_of(name) if name else None
        side_px = _side(resolution)
        photos = kept.photos() if kept else []
        found = kept.findings(side_px) if kept else {}
        if chosen not in [photo.name for photo in photos]:
            chosen = None
        shown_cards = [self._card(kept, photo, found.get(photo.name, []), side_px) for photo in photos if kept]
        kind = kind or (kept.words() if kept else Words()).kind
        report = set_report(len(photos), lines, found, kind)
        parts = self._editor_parts(kept, chosen, side_px)
        if chosen and chosen == before:
            parts[3] = gr.skip()
        return [report, cards(shown_cards, chosen), chosen or "", *parts]

    def _card(self, kept: PhotoSet, photo: Path, found: Sequence[Any], side_px: int) -> Card:
        view = self._services.shown.training_view(photo, side_px, kept.focus(photo.name))
        return Card(photo.name, kept.shown_name(photo.name), view, found, kept.caption(photo.name))

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
            return self._photo_parts(photo_set, [], resolution, None if chosen == name else name, chosen)
        lines = self.change(kept, name, act)
        return self._photo_parts(photo_set, lines, resolution, chosen, chosen)

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
        report, photos, *_ = self._photo_parts(photo_set, [], resolution, name)
        return [report, photos, self._cut(kept, name, _side(resolution))]

    def _caption_left(self, photo_set: str, chosen: str | None, caption: str, resolution: float) -> list[Any]:
        if not photo_set or not chosen:
            return [gr.skip()] * 2
        self.set_of(photo_set).keep_caption(chosen, caption or "")
        return self._photo_parts(photo_set, [], resolution, chosen)[:2]

    def _remove(self, photo_set: str, chosen: str | None, resolution: float) -> list[Any]:
        lines = self.change(self.set_of(photo_set), chosen, "remove") if photo_set and chosen else []
        return self._photo_parts(photo_set, lines, resolution, None)

    def _refocus(self, photo_set: str, chosen: str | None, resolution: float) -> list[Any]:
        lines = self.change(self.set_of(photo_set), chosen, "refocus") if photo_set and chosen else []
        return self._photo_parts(photo_set, lines, resolution, chosen, chosen)

    def _views(self, photo_set: str, chosen: str | None, resolution: float) -> list[Any]:
        return self._photo_parts(photo_set or "", [], resolution, chosen, chosen)

    def _earlier(self, value: str) -> Any:
        sets = photo_sets(self._services.workspace)
        choices = [(f"{one.words().instance_prompt} ({len(one.photos())} photos)", one.name) for one in sets]
        return gr.Dropdown(choices=choices, value=value or None)

    def _contents(self, photo_set: str, resolution: float, lines: Sequence[Line] = ()) -> list[Any]:
        """Return everything the tab shows of a set; an empty name is a new one."""
        kept = self.set_of(photo_set) if photo_set else None
        words = kept.words() if kept else Words()
        return [
            photo_set, answer_of(asdict(words)), self._chips(kept), self._earlier(photo_set),
            *self._photo_parts(photo_set, lines, resolution, None),
        ]  # fmt: skip

    def newest(self, resolution: float) -> list[Any]:
        """Return what a freshly opened page shows: the photos last worked with."""
        sets = photo_sets(self._services.workspace)
        return self._contents(sets[0].name if sets else "", resolution)

    def _delete(self, photo_set: str) -> list[Any]:
        """Delete the photos of a set and every copy of them on this machine; runs and their models stay."""
        if photo_set:
            kept = self.set_of(photo_set)
            class_name = kept.class_folder.name
            self._services.shown.forget(kept.delete())
            for name in (photo_set, class_name):
                delete_photos(self._services.workspace, name)
        return self._contents("", 64, [(True, "Your photos and all copies of them were deleted.")])

    # Words -----------------------------------------------------------------------------------------------------------

    def _keep_words(
        self, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str
    ) -> None:
        if photo_set:
            self.set_of(photo_set).keep_words(_words(kind, identifier, class_word, instance_prompt, class_prompt))

    def _keep_kind(
        self, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str,
        resolution: float,
    ) -> str:  # fmt: skip
        """Keep the words, and return the report with what matters for photos of this kind."""
        self._keep_words(photo_set, kind, identifier, class_word, instance_prompt, class_prompt)
        report: str = self._photo_parts(photo_set or "", [], resolution, None, kind=_kind(kind))[0]
        return report

    def judge(self, identifier: str, class_word: str, base: str) -> Verdict:
        """Return whether an identifier will do in a base."""
        return judged(identifier, class_word, vocabulary_of(base or "", self._services.workspace.models_dir))

    def _verdict(self, identifier: str, class_word: str, kind: str, base: str) -> str:
        return verdict_html(self.judge(identifier, class_word, base), kind, identifier, class_word)

    def propose_identifier(self, identifier: str, class_word: str, base: str) -> str:
        """Return a word that means nothing in the base and names no other set."""
        taken = [one.words().identifier for one in photo_sets(self._services.workspace)]
        vocabulary = vocabulary_of(base or "", self._services.workspace.models_dir)
        return proposed([*taken, identifier], class_word, vocabulary)

    def _propose(self, kind: str, identifier: str, class_word: str, base: str) -> dict[str, Any]:
        word = self.propose_identifier(identifier, class_word, base)
        return answer_of(asdict(Words(_kind(kind), word, class_word, *prompts_for(kind, word, class_word))))

    def problems(self, photo_set: str, words: Words, base: str) -> list[FieldProblem]:
        """Return all that is wrong with the words and photos of a set, each at its field."""
        problems = []
        if not photo_set or not self.set_of(photo_set).photos():
            problems.append(FieldProblem("photos", "drop at least one photo, better 3 to 5."))
        if not SHAPE.fullmatch(words.identifier):
            message = "must be one word of 2 to 20 letters and digits, such as zwx."
            problems.append(FieldProblem("identifier", message))
        if not words.class_word:
            problems.append(FieldProblem("class_word", "is empty: say what kind of thing it is, such as dog."))
        if words.identifier and words.identifier.lower() not in words.instance_prompt.lower():
            problems.append(FieldProblem("instance_prompt", "lacks the identifier: nothing would be taught to it."))
        if not words.class_prompt:
            problems.append(FieldProblem("class_prompt", "is empty: write the plain class, such as photo of dog."))
        for name in ("identifier", "class_word", "instance_prompt", "class_prompt"):
            problems += text_problems(name, getattr(words, name), is_name=False)
        return problems

    def _go_on(
        self, marked: list[str], photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str,
        class_prompt: str, base: str,
    ) -> list[Any]:  # fmt: skip
        """Go on to the training, or mark every field that has to be mended first."""
        words = _words(kind, identifier, class_word, instance_prompt, class_prompt)
        problems = self.problems(photo_set, words, base)
        updates = marks(NOTES, NOTES, problems, marked or [])
        names = [problem.field for problem in problems]
        told = "" if not problems else _told(problems)
        return [gr.skip() if problems else gr.Tabs(selected="train"), names, told, *updates]

    # Several concepts ------------------------------------------------------------------------------------------------

    def _chips(self, kept: PhotoSet | None) -> Any:
        members = kept.together() if kept else []
        choices = [(f"{number}. {subject_of(one.words().instance_prompt)}", one.name) for number, one in
                   enumerate(members, 1)]  # fmt: skip
        return gr.Radio(choices=choices, value=kept.name if kept else None, visible=len(members) > 1)

    def _add_concept(self, photo_set: str, base: str, resolution: float) -> list[Any]:
        """Begin one more concept that is trained together with this one."""
        if not photo_set or not self.set_of(photo_set).photos():
            raise PhotoError("Begin with the photos of the first concept.", "It has none yet.", "Drop some photos.")
        kept, new = self.set_of(photo_set), self.set_of(new_set_name())
        words = kept.words()
        identifier = self.propose_identifier(words.identifier, words.class_word, base)
        prompts = prompts_for(words.kind, identifier, words.class_word)
        new.keep_words(Words(words.kind, identifier, words.class_word, *prompts))
        kept.keep_together([*kept.together(), new])
        said = "A new concept: drop its photos and choose its words. Both are trained together."
        return self._contents(new.name, resolution, [(True, said)])

    def _leave(self, photo_set: str, resolution: float) -> list[Any]:
        """Train this concept by itself again; its photos stay."""
        if not photo_set:
            return self._contents("", resolution)
        kept = self.set_of(photo_set)
        others = [one for one in kept.together() if one != kept]
        kept.leave()
        said = "It is trained by itself again; its photos are among those used earlier."
        return self._contents(others[0].name if others else photo_set, resolution, [(True, said)])

    # Class pictures --------------------------------------------------------------------------------------------------

    def _add_class_pictures(self, files: list[str] | None, photo_set: str, class_prompt: str) -> list[Any]:
        paths = [Path(file) for file in files or []]
        try:
            if not photo_set:
                raise PhotoError("Drop the photos of your subject first.", "Class pictures belong to them.", "")
            self.set_of(photo_set).add_class_pictures(paths)
        finally:
            self._drop_uploads(paths)
        return [*self._class_pictures(photo_set, class_prompt), None]

    def _remove_class_pictures(self, photo_set: str, class_prompt: str) -> list[Any]:
        if photo_set:
            self._services.shown.forget(self.set_of(photo_set).remove_class_pictures())
            delete_photos(self._services.workspace, self.set_of(photo_set).class_folder.name)
        return self._class_pictures(photo_set, class_prompt)

    def _class_pictures(self, photo_set: str, class_prompt: str) -> list[Any]:
        """Return the class pictures there are, the user's own before those made for this prompt, and what they are."""
        own = self.set_of(photo_set).class_pictures() if photo_set else []
        pictures = own or self.made_class_pictures(class_prompt)
        copies = [self._services.shown.copy(path) for path in pictures[:MAX_SHOWN_CLASS_PICTURES]]
        return [copies, class_pictures_text(len(own), len(pictures)), gr.Button(interactive=bool(own))]

    def made_class_pictures(self, class_prompt: str) -> list[Path]:
        """Return the newest class pictures that a training made for this prompt."""
        found: list[tuple[int, list[Path]]] = []
        for folder in self._services.workspace.class_images_dir.iterdir():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, PhotoError, RecursionError):
                if json.loads((folder / "info.json").read_text("utf-8"))["prompt"] == class_prompt.strip():
                    found.append((folder.stat().st_mtime_ns, find_photos(folder).photos))
        return max(found, default=(0, []))[1]

    # concepts_list.json ----------------------------------------------------------------------------------------------

    def concepts_list(self, photo_set: str) -> str:
        """Return the set and those trained with it as a `concepts_list.json`.

        Folders are told whole only where the page is this machine's own; elsewhere from the data folder on.
        """
        if not photo_set or not self.set_of(photo_set).photos():
            raise PhotoError("There is nothing to export yet.", "The concept has no photos.", "Drop some photos.")
        words = self.set_of(photo_set).words()
        concepts = self.set_of(photo_set).concepts(words.instance_prompt, words.class_prompt)
        return dump_concepts_list(concepts if self._services.takes_folders else map(self._unrooted, concepts))

    def _unrooted(self, concept: Concept) -> Concept:
        def name(folder: str | None) -> str | None:
            return f"datasets/{Path(folder).name}" if folder else None

        return Concept(
            concept.instance_prompt, str(name(concept.instance_data_dir)), concept.class_prompt,
            name(concept.class_data_dir),
        )  # fmt: skip

    def _export_concepts(self, photo_set: str) -> Any:
        path = self._services.shown.note("concepts_list.json", self.concepts_list(photo_set))
        return gr.File(value=path, visible=True)

    def _import_concepts(self, file: str | None, resolution: float) -> list[Any]:
        """Take the concepts of a list in, with the photos of their folders."""
        if not file:
            return [*[gr.skip()] * NUM_CONTENTS, None]
        try:
            concepts = load_concepts_list(Path(file))
        finally:
            self._drop_uploads([Path(file)])
        names, lines = self.take_concepts(concepts)
        return [*self._contents(names[0], resolution, lines), None]

    def take_concepts(self, concepts: Sequence[Concept]) -> tuple[list[str], list[Line]]:
        """Make a photo set of each concept, trained together; all of their folders are looked at before."""
        if not concepts:
            raise PhotoError("That list names no concepts.", "", "Export one to see how it looks.")
        sources = [self._source(concept.instance_data_dir) for concept in concepts]
        sets, lines = [], []
        for concept, source in zip(concepts, sources, strict=True):
            if isinstance(source, PhotoSet):
                target = source
            else:
                target = self.set_of(new_set_name())
                lines += target.add_folder(source)
            target.keep_words(words_of(concept))
            if concept.class_data_dir and not isinstance(source, PhotoSet):
                with contextlib.suppress(PhotoError):
                    lines += target.add_class_pictures(find_photos(self.local_folder(concept.class_data_dir)).photos)
            sets.append(target)
        if len(sets) > 1:
            sets[0].keep_together(sets)
        head = (True, f"{len(sets)} concept{'s were' if len(sets) > 1 else ' was'} taken from the list.")
        return [one.name for one in sets], [head, *lines]

    def _source(self, folder: str) -> "PhotoSet | Path":
        """Return the set here that a list's folder means, else the folder of this machine."""
        name = folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
        with contextlib.suppress(DreamBoothError):
            known = self.set_of(name)
            if folder in (str(known.folder), f"datasets/{name}") and known.photos():
                return known
        path = self.local_folder(folder)
        find_photos(path)
        return path

    def sample_set(self) -> PhotoSet:
        """Return the bundled sample subject as a photo set, made on first use."""
        from dreambooth.samples import sample_concept

        concept = sample_concept()
        target = self.set_of(SAMPLE_SET)
        if not target.photos():
            target.add(find_photos(Path(concept.instance_data_dir)).photos)
        target.keep_words(words_of(concept, "object"))
        return target


# Words ---------------------------------------------------------------------------------------------------------------


def _kind(kind: str) -> Any:
    return next((one for one in KINDS if one == kind), KINDS[0])


def _words(kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str) -> Words:
    texts = [str(text or "").strip() for text in (identifier, class_word, instance_prompt, class_prompt)]
    return Words(_kind(kind), *texts)


def words_of(concept: Concept, kind: str = "") -> Words:
    """Return the words that a concept's prompts are made of, as far as they tell."""
    class_prompt = concept.class_prompt or ""
    identifier, class_word = _identifier_and_class(concept.instance_prompt, class_prompt)
    guessed = next((name for name, known in KIND_WORDS.items() if class_word.lower() in known), "object")
    return Words(_kind(kind or guessed), identifier, class_word, concept.instance_prompt, class_prompt)


def _identifier_and_class(instance_prompt: str, class_prompt: str) -> tuple[str, str]:
    """Return the word only the instance prompt has, and the class prompt's last word."""
    known = class_prompt.split()
    own = [word for word in instance_prompt.split() if word not in known]
    return (own[-1] if own else ""), (known[-1] if known else "")


def _told_by(event: Any) -> dict[str, Any]:
    """Return what a component of our own tells with its event; nothing when a program calls it by number."""
    told = getattr(event, "_data", None)
    return told if isinstance(told, dict) else {}


def _side(resolution: float) -> int:
    return max(16, min(int(resolution or 512), 1024))


def _told(problems: Sequence[FieldProblem]) -> str:
    """Return what is wrong with what is no field of text; the fields say the rest themselves."""
    own = [problem.message for problem in problems if problem.field == "photos"]
    rest = len(problems) - len(own)
    marked = [f"{rest} field{'s are' if rest > 1 else ' is'} marked below."] if rest else []
    sentence = " ".join([*(message[0].upper() + message[1:] for message in own), *marked])
    return f"<div class='db-panel db-bad' role='alert'>{sentence}</div>"


def verdict_html(verdict: Verdict, kind: str, identifier: str, class_word: str) -> str:
    """Return what the base makes of the identifier, and prompts to try with it later."""
    subject = subject_of(prompts_for(kind, identifier, class_word)[0])
    examples = [text.format(subject=subject) for text in EXAMPLES[_kind(kind)][:3]]
    tone = "db-ok" if verdict.fine else "db-warn"
    shown_examples = " · ".join(f"<i>{escape(text)}</i>" for text in examples)
    return (
        f"<div class='db-report'><ul><li class='{tone}'>{escape(verdict.sentence)}</li></ul>"
        f"<p class='db-hint'>Prompts for later: {shown_examples}</p></div>"
    )


def class_pictures_text(num_own: int, num_all: int) -> str:
    """Return what the class pictures shown are."""
    if num_own:
        text = f"{num_own} class pictures of your own; a training makes those that are missing."
    elif num_all:
        text = f"{num_all} class pictures that a training made for these words; they are used again."
    else:
        text = "None yet for these words: the training makes them before its first step, from the base itself."
    more = f" The first {MAX_SHOWN_CLASS_PICTURES} are shown." if num_all > MAX_SHOWN_CLASS_PICTURES else ""
    return f"<p class='db-hint'>{text}{more}</p>"
