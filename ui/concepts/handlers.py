"""Handlers of the first tab besides photos, as functions of values: prompts, several concepts, class images, lists."""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth.config.concepts import Concept, dump_concepts_list, load_concepts_list
from dreambooth.config.limits import text_problems
from dreambooth.data.class_images import made_class_images
from dreambooth.data.identifiers import SHAPE, Verdict, Vocabulary, judged, proposed, vocabulary_of
from dreambooth.data.photo_sets import SAMPLE_SET, PhotoSet, new_set_name, photo_sets
from dreambooth.data.photos import find_photos
from dreambooth.data.words import Words, prompts_for
from dreambooth.errors import BaseModelError, DreamBoothError, FieldProblem, PhotoError
from dreambooth.records.drive import delete_photos
from ui.address import to
from ui.bases import offered_base
from ui.boundary import QUIET, Services
from ui.concepts.photos import CONTENTS, OTHER_SET, Line, PhotoHandlers
from ui.concepts.words import kind_named, sample_words, verdict_html, words_from, words_of
from ui.events import Answer, on
from ui.fields import marks
from ui.late_answers import answer_of

MAX_SHOWN_CLASS_PICTURES = 60
CLASS_PARTS = "class_views class_note class_remove"
# One after the other, so that older words never overwrite newer ones.
KEEPING: dict[str, Any] = {
    "trigger_mode": "always_last", "concurrency_id": "keep_words", "concurrency_limit": 1, **QUIET,
}  # fmt: skip
NOTES = {
    "identifier": "A short made-up word that stands for your subject.",
    "class_word": "What the photos show, in one or two words. Write your own if this is not it.",
    "instance_prompt": "Use this prompt later to get your subject. `instance_prompt`",
    "class_prompt": "Describes the class without your subject. `class_prompt`",
}


# Where the page asks for each of them.
LINKS = {
    "photos": ("photos", "Photos"),
    "identifier": ("identifier", "Identifier"),
    "class_word": ("class-word", "Class word"),
    "instance_prompt": ("instance-prompt", "Instance prompt"),
    "class_prompt": ("class-prompt", "Class prompt"),
}


class Handlers:
    """The tab's handlers; every public name is an event or a function of the API, those of photos in `photos`."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.photos = PhotoHandlers(services)

    # Words -----------------------------------------------------------------------------------------------------------

    def judge(self, identifier: str, class_word: str, base: str) -> Verdict:
        """Return whether an identifier is suitable for a base."""
        return judged(identifier, class_word, self._vocabulary(base))

    def _vocabulary(self, base: str) -> Vocabulary | None:
        try:
            return vocabulary_of(offered_base(self._services, base), self._services.workspace.models_dir)
        except BaseModelError:  # half typed, or not this visitor's to name: it is as little known as a misspelt one
            return None

    @on(
        "identifier.change class_word.change kind.change base.change", "identifier class_word kind base", "verdict",
        trigger_mode="always_last", api_name="identifier_read", **QUIET,
    )  # fmt: skip
    def verdict(self, identifier: str, class_word: str, kind: str, base: str) -> str:
        return verdict_html(self.judge(identifier, class_word, base), kind, identifier, class_word)

    def propose_identifier(self, identifier: str, class_word: str, base: str) -> str:
        """Return a word that has no meaning in the base and names no other set."""
        taken = [one.words().identifier for one in photo_sets(self._services.workspace)]
        vocabulary = self._vocabulary(base)
        return proposed([*taken, identifier], class_word, vocabulary)

    @on(
        "propose.click", "kind identifier class_word base", "answer", api_name="identifier_proposed", **OTHER_SET,
    )  # fmt: skip
    def propose(self, kind: str, identifier: str, class_word: str, base: str) -> dict[str, Any]:
        word = self.propose_identifier(identifier, class_word, base)
        return answer_of(asdict(Words(kind_named(kind), word, class_word, *prompts_for(kind, word, class_word))))

    # For imported photos: words that were typed while the photos were uploading.
    @on("upload_photos.then", "photo_set words", api_name="keep_words_of_taken_0", **KEEPING)
    @on("take_folder.then", "photo_set words", api_name="keep_words_of_taken_1", **KEEPING)
    @on("words_typed.then", "photo_set words", api_name="keep_typed_words", **KEEPING)
    @on("words_left.then", "photo_set words", api_name="keep_left_words", **KEEPING)
    @on("prompts.input prompts.blur", "photo_set words", api_name="keep_words", **KEEPING)
    @on("identifier_proposed.then", "photo_set words", api_name="keep_proposed_words", **KEEPING)
    def keep_words(
        self, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str
    ) -> None:
        if photo_set:
            self.photos.set_of(photo_set).keep_words(
                words_from(kind, identifier, class_word, instance_prompt, class_prompt)
            )

    @on("kind_chosen.then", "photo_set words resolution", "report", api_name="keep_kind", **KEEPING)
    def keep_kind(
        self, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str,
        resolution: float,
    ) -> str:  # fmt: skip
        """Store the words, and return the report with what matters for photos of this kind."""
        self.keep_words(photo_set, kind, identifier, class_word, instance_prompt, class_prompt)
        parts = self.photos.parts(photo_set or "", [], resolution, None, kind=kind_named(kind))
        return str(parts["report"])

    def problems(self, photo_set: str, words: Words, base: str) -> list[FieldProblem]:
        """Return everything that is wrong with the words and photos of a set, each at its field."""
        problems = []
        if not photo_set or not self.photos.set_of(photo_set).photos():
            problems.append(FieldProblem("photos", "drop at least one photo, better 3 to 5."))
        if not SHAPE.fullmatch(words.identifier):
            message = "must be one word of 2 to 20 letters and digits, such as zwx."
            problems.append(FieldProblem("identifier", message))
        if not words.class_word:
            problems.append(FieldProblem("class_word", "is empty: say what kind of thing it is, such as dog."))
        if words.identifier and words.identifier.lower() not in words.instance_prompt.lower():
            problems.append(
                FieldProblem(
                    "instance_prompt",
                    "does not contain the identifier: the model could not connect your subject with it.",
                )
            )
        if not words.class_prompt:
            problems.append(FieldProblem("class_prompt", "is empty: write the plain class, such as photo of dog."))
        for name in ("identifier", "class_word", "instance_prompt", "class_prompt"):
            problems += text_problems(name, getattr(words, name), is_name=False)
        return problems

    @on(
        "go_on.click", "marked photo_set kind identifier class_word instance_prompt class_prompt base",
        "place marked message identifier class_word instance_prompt class_prompt", api_name="go_on", **QUIET,
    )  # fmt: skip
    def go_on(
        self, marked: list[str], photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str,
        class_prompt: str, base: str,
    ) -> Answer:  # fmt: skip
        """Continue to the training, or mark every field that must be fixed first."""
        words = words_from(kind, identifier, class_word, instance_prompt, class_prompt)
        problems = self.problems(photo_set, words, base)
        updates = marks(NOTES, NOTES, problems, marked or [])
        names = [problem.field for problem in problems]
        message = "" if not problems else _problems_panel(problems)
        go = {} if problems else {"place": to("train", view="new")}
        return {**go, "marked": names, "message": message, **updates}

    # Several concepts ------------------------------------------------------------------------------------------------

    @on("add_concept.click", "photo_set base resolution", CONTENTS, api_name="one_more_concept", **OTHER_SET)
    def add_concept(self, photo_set: str, base: str, resolution: float) -> Answer:
        """Start one more concept that is trained together with this one."""
        if not photo_set or not self.photos.set_of(photo_set).photos():
            raise PhotoError("Start with the photos of the first concept.", "It has none yet.", "Drop some photos.")
        kept, new = self.photos.set_of(photo_set), self.photos.set_of(new_set_name())
        words = kept.words()
        identifier = self.propose_identifier(words.identifier, words.class_word, base)
        prompts = prompts_for(words.kind, identifier, words.class_word)
        new.keep_words(Words(words.kind, identifier, words.class_word, *prompts))
        kept.keep_together([*kept.together(), new])
        message = "A new concept: drop its photos and choose its prompts. All concepts are trained together."
        return self.photos.contents(new.name, resolution, [(True, message)])

    @on("leave.click", "photo_set resolution", CONTENTS, api_name="leave_concepts", **OTHER_SET)
    def leave(self, photo_set: str, resolution: float) -> Answer:
        """Train this concept by itself again; its photos stay."""
        if not photo_set:
            return self.photos.contents("", resolution)
        kept = self.photos.set_of(photo_set)
        others = [one for one in kept.together() if one != kept]
        kept.leave()
        message = "It is trained by itself again; the others are listed under photos used earlier."
        return self.photos.contents(others[0].name if others else photo_set, resolution, [(True, message)])

    # Class images --------------------------------------------------------------------------------------------------

    @on(
        "class_files.upload", "class_files photo_set class_prompt", f"{CLASS_PARTS} class_files",
        api_name="class_pictures_dropped", **QUIET,
    )  # fmt: skip
    def add_class_pictures(self, files: list[str] | None, photo_set: str, class_prompt: str) -> Answer:
        paths = [Path(file) for file in files or []]
        try:
            if not photo_set:
                raise PhotoError("Drop the photos of your subject first.", "Class images belong to them.", "")
            self.photos.set_of(photo_set).add_class_pictures(paths)
        finally:
            self.photos.drop_uploads(paths)
        return {**self.class_pictures(photo_set, class_prompt), "class_files": None}

    @on(
        "class_remove.click", "photo_set class_prompt", CLASS_PARTS, api_name="class_pictures_removed", **QUIET,
    )  # fmt: skip
    def remove_class_pictures(self, photo_set: str, class_prompt: str) -> Answer:
        if photo_set:
            self._services.shown.forget(self.photos.set_of(photo_set).remove_class_pictures())
            delete_photos(self._services.workspace, self.photos.set_of(photo_set).class_folder.name)
        return self.class_pictures(photo_set, class_prompt)

    @on(
        "class_box.expand photo_set.change class_prompt.change", "photo_set class_prompt", CLASS_PARTS,
        trigger_mode="always_last", api_name="class_pictures_shown", **QUIET,
    )  # fmt: skip
    def class_pictures(self, photo_set: str, class_prompt: str) -> Answer:
        """Return the class images, the user's own before those generated for this prompt, and their description."""
        own = self.photos.set_of(photo_set).class_pictures() if photo_set else []
        pictures = own or made_class_images(self._services.workspace, class_prompt)
        copies = list(self._services.shown.copies(pictures[:MAX_SHOWN_CLASS_PICTURES]).values())
        return {
            "class_views": gr.Gallery(copies, visible=bool(copies)),
            "class_note": class_pictures_text(len(own), len(pictures)),
            "class_remove": gr.Button(interactive=bool(own)),
        }

    # concepts_list.json ----------------------------------------------------------------------------------------------

    def concepts_list(self, photo_set: str) -> str:
        """Return the set and those trained with it as a `concepts_list.json`.

        Folders have full paths only if the page is this machine's own; otherwise they start at the data folder.
        """
        if not photo_set or not self.photos.set_of(photo_set).photos():
            raise PhotoError("There is nothing to export yet.", "The concept has no photos.", "Drop some photos.")
        words = self.photos.set_of(photo_set).words()
        concepts = self.photos.set_of(photo_set).concepts(words.instance_prompt, words.class_prompt)
        return dump_concepts_list(concepts if self._services.takes_folders else map(self._unrooted, concepts))

    def _unrooted(self, concept: Concept) -> Concept:
        def name(folder: str | None) -> str | None:
            return f"datasets/{Path(folder).name}" if folder else None

        return Concept(
            concept.instance_prompt, str(name(concept.instance_data_dir)), concept.class_prompt,
            name(concept.class_data_dir),
        )  # fmt: skip

    @on("export.click", "photo_set", "exported", api_name="list_exported", **QUIET)
    def export_concepts(self, photo_set: str) -> Any:
        path = self._services.shown.note("concepts_list.json", self.concepts_list(photo_set))
        return gr.File(value=path, visible=True)

    @on("listed.upload", "listed resolution", f"{CONTENTS} listed", api_name="list_taken", **OTHER_SET)
    def import_concepts(self, file: str | None, resolution: float) -> Answer:
        """Import the concepts of a list, with the photos of their folders."""
        if not file:
            return {"listed": None}
        try:
            concepts = load_concepts_list(Path(file))
        finally:
            self.photos.drop_uploads([Path(file)])
        names, lines = self.take_concepts(concepts)
        return {**self.photos.contents(names[0], resolution, lines), "listed": None}

    def take_concepts(self, concepts: Sequence[Concept]) -> tuple[list[str], list[Line]]:
        """Make a photo set of each concept, trained together; all of their folders are checked before."""
        if not concepts:
            raise PhotoError("That list names no concepts.", "", "Export one to see how it looks.")
        sources = [self._source(concept.instance_data_dir) for concept in concepts]
        sets, lines = [], []
        for concept, source in zip(concepts, sources, strict=True):
            if isinstance(source, PhotoSet):
                target = source
            else:
                target = self.photos.set_of(new_set_name())
                lines += target.add_folder(source)
            target.keep_words(words_of(concept))
            if concept.class_data_dir and not isinstance(source, PhotoSet):
                with contextlib.suppress(PhotoError):
                    lines += target.add_class_pictures(
                        find_photos(self.photos.local_folder(concept.class_data_dir)).photos
                    )
            sets.append(target)
        if len(sets) > 1:
            sets[0].keep_together(sets)
        head = (True, f"{len(sets)} concept{'s were' if len(sets) > 1 else ' was'} imported.")
        return [one.name for one in sets], [head, *lines]

    def _source(self, folder: str) -> "PhotoSet | Path":
        """Return the set here that a list's folder stands for, else the folder of this machine."""
        name = folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
        with contextlib.suppress(DreamBoothError):
            known = self.photos.set_of(name)
            if folder in (str(known.folder), f"datasets/{name}") and known.photos():
                return known
        path = self.photos.local_folder(folder)
        find_photos(path)
        return path

    def sample_set(self) -> PhotoSet:
        """Return the bundled sample subject as a photo set, made on first use."""
        from dreambooth.data.samples import sample_folder

        target = self.photos.set_of(SAMPLE_SET)
        if not target.photos():
            target.add(find_photos(sample_folder()).photos)
        target.keep_words(sample_words())
        return target


def _problems_panel(problems: Sequence[FieldProblem]) -> str:
    """Return the problems, beside the button that was pressed, with links to the fields above it."""
    items = []
    for problem in problems:
        place, label = LINKS[problem.field]
        items.append(f"<li><a href='#{place}'>{label}</a> {escape(problem.message)}</li>")
    return f"<div class='db-panel db-bad' role='alert'><strong>To continue:</strong><ul>{''.join(items)}</ul></div>"


def class_pictures_text(num_own: int, num_all: int) -> str:
    """Return the description of the class images shown."""
    if num_own:
        text = f"{num_own} class images of your own; a training generates the missing ones."
    elif num_all:
        text = f"{num_all} class images that a training made for this class prompt; they are reused."
    else:
        text = "None yet for this class prompt: the training generates them with the base model before its first step."
    more = f" The first {MAX_SHOWN_CLASS_PICTURES} are shown." if num_all > MAX_SHOWN_CLASS_PICTURES else ""
    return f"<p class='db-hint'>{text}{more}</p>"
