"""The first tab: photos in, shown as they will be trained, and the words for them."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from dreambooth.data.photos import find_photos
from dreambooth.drive import delete_photos
from ui.boundary import Services, shown
from ui.photo_sets import (
    DEFAULT_CLASS_WORDS,
    KINDS,
    PhotoSet,
    Words,
    new_set_name,
    photo_set,
    photo_sets,
    prompts_for,
)
from ui.render import photo_report

RIGHTS = (
    "Only use photos you have the right to use, and photos of people only with their consent. "
    "Photos stay on the machine this app runs on."
)
SAMPLE_SET = "sample-subject"


@dataclass(frozen=True)
class ConceptsTab:
    """The tab's components that others read or that events fill."""

    photo_set: gr.Textbox
    kind: gr.Radio
    files: gr.File
    report: gr.HTML
    views: gr.Gallery
    identifier: gr.Textbox
    class_word: gr.Textbox
    instance_prompt: gr.Textbox
    class_prompt: gr.Textbox
    chosen: gr.State
    remove: gr.Button
    new_set: gr.Button
    delete: gr.Button
    earlier: gr.Dropdown
    sample: gr.Button
    go_on: gr.Button

    @property
    def words(self) -> list[Any]:
        """Return the fields of `Words`, in its order."""
        return [getattr(self, field.name) for field in fields(Words)]

    @property
    def contents(self) -> list[Any]:
        """Return what shows one photo set: its name, words, views and report, and the list of sets."""
        return [self.photo_set, *self.words, self.views, self.report, self.earlier]


def build() -> ConceptsTab:
    """Lay out the tab; `connect` gives it life."""
    usual = Words()
    # The photo set's name is the page's only memory of it; the photos and words lie on the server.
    name = gr.Textbox("", label="Photo set", visible=False, elem_id="photo-set")
    chosen = gr.State(None)
    with gr.Row(equal_height=False):
        with gr.Column(scale=5):
            kind = gr.Radio(
                [(word.capitalize(), word) for word in KINDS], value=usual.kind, elem_id="kind",
                label="What do the photos show?", info="Sets the class word and the recommended number of steps.",
            )  # fmt: skip
            files = gr.File(
                label="Drop 3 to 5 photos here", file_count="multiple", height=150, elem_id="photos",
            )  # fmt: skip
            report = gr.HTML(photo_report(0, []), elem_id="report")
            sample = gr.Button("Try it with sample photos", elem_id="try-sample")
        with gr.Column(scale=7):
            gr.HTML("<b>As the model will see them</b> <span class='db-hint'>upright, and cut square</span>")
            views = gr.Gallery(
                label="As the model will see them", show_label=False, columns=4, height=330,
                object_fit="contain", interactive=False, allow_preview=False, format="png", elem_id="views", buttons=[],
            )  # fmt: skip
            with gr.Row():
                remove = gr.Button("Remove the chosen photo", size="sm", interactive=False, elem_id="remove")
                new_set = gr.Button("Start with new photos", size="sm", elem_id="new-set")
                delete = gr.Button("Delete my photos", size="sm", variant="stop", elem_id="delete-photos")
    with gr.Row(equal_height=False):
        identifier = gr.Textbox(
            usual.identifier, label="Identifier", max_lines=1, elem_id="identifier",
            info="A short made-up word that will mean your subject and nothing else.",
        )  # fmt: skip
        class_word = gr.Textbox(
            usual.class_word, label="Class word", max_lines=1, elem_id="class-word",
            info="What kind of thing it is, in one or two words.",
        )  # fmt: skip
    with gr.Row(equal_height=False):
        instance_prompt = gr.Textbox(
            usual.instance_prompt, label="Words for your photos", elem_id="instance-prompt",
            info="Use these words in prompts later. `instance_prompt`",
        )  # fmt: skip
        class_prompt = gr.Textbox(
            usual.class_prompt, label="Words for the class", elem_id="class-prompt",
            info="What the model should keep knowing. `class_prompt`",
        )  # fmt: skip
    go_on = gr.Button("Continue to training", variant="primary", elem_id="go-on")
    with gr.Accordion("Photos used earlier", open=False):
        earlier = gr.Dropdown([], label="Take photos from before", elem_id="earlier", allow_custom_value=True)
    gr.HTML(f"<p class='db-hint'>{RIGHTS}</p>")
    return ConceptsTab(
        name, kind, files, report, views, identifier, class_word, instance_prompt, class_prompt, chosen, remove,
        new_set, delete, earlier, sample, go_on,
    )  # fmt: skip


def connect(tab: ConceptsTab, services: Services, resolution: gr.Number) -> None:
    """Join the tab's components to what they do."""
    handlers = Handlers(services)
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    tab.files.upload(
        handlers.upload, [tab.files, tab.photo_set, *tab.words, resolution],
        [tab.photo_set, tab.report, tab.views, tab.earlier, tab.files], api_name="upload_photos",
    )  # fmt: skip
    tab.kind.input(
        handlers.kind_chosen, [tab.photo_set, tab.kind, tab.identifier],
        [tab.class_word, tab.instance_prompt, tab.class_prompt], api_name="kind_chosen", **quiet,
    )  # fmt: skip
    gr.on(
        [tab.identifier.input, tab.class_word.input], handlers.words_typed,
        [tab.photo_set, tab.kind, tab.identifier, tab.class_word], [tab.instance_prompt, tab.class_prompt],
        trigger_mode="always_last", api_name="words_typed", **quiet,
    )  # fmt: skip
    gr.on(
        [tab.instance_prompt.input, tab.class_prompt.input, tab.instance_prompt.blur, tab.class_prompt.blur],
        handlers.keep_words, [tab.photo_set, *tab.words], None,
        trigger_mode="always_last", api_name="keep_words", **quiet,
    )  # fmt: skip
    # A paste with the mouse is no `input` to Gradio.
    gr.on(
        [tab.identifier.blur, tab.class_word.blur],
        handlers.words_left,
        [tab.photo_set, *tab.words],
        [tab.instance_prompt, tab.class_prompt],
        api_name="words_left",
        **quiet,
    )
    tab.views.select(handlers.photo_chosen, None, [tab.chosen, tab.remove], api_name="photo_chosen", **quiet)
    tab.remove.click(
        handlers.remove, [tab.photo_set, tab.chosen, resolution],
        [tab.views, tab.report, tab.chosen, tab.remove], api_name="remove_photo", **quiet,
    )  # fmt: skip
    tab.new_set.click(lambda: handlers.contents("", 64), None, tab.contents, api_name="new_photo_set", **quiet)
    tab.delete.click(handlers.delete, [tab.photo_set], tab.contents, api_name="delete_photos", **quiet)
    tab.earlier.input(handlers.contents, [tab.earlier, resolution], tab.contents, api_name="earlier_photos", **quiet)
    resolution.change(handlers.views, [tab.photo_set, resolution], [tab.views], api_name="photo_views", **quiet)


class Handlers:
    """What the tab does, as functions of values."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.upload = shown(self._upload)
        self.kind_chosen = shown(self._kind_chosen)
        self.words_typed = shown(self._words_typed)
        self.words_left = shown(self._words_left)
        self.keep_words = shown(self._keep_words)
        self.remove = shown(self._remove)
        self.delete = shown(self._delete)
        self.contents = shown(self._contents)
        self.views = shown(self._views)

    def _set(self, name: str) -> PhotoSet:
        return photo_set(self._services.workspace, name)

    def _upload(
        self, files: list[str] | None, photo_set: str, kind: str, identifier: str, class_word: str,
        instance_prompt: str, class_prompt: str, resolution: float,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Take uploaded photos in, upright and without metadata, and show them as they will be trained."""
        paths = [Path(file) for file in files or []]
        target = self._set(photo_set or new_set_name())
        try:
            lines = target.add(paths)
        finally:
            # The set holds its own copy; the upload, with all its metadata, is not kept.
            for path in paths:
                if path.resolve().is_relative_to(Path(get_upload_folder()).resolve()):
                    path.unlink(missing_ok=True)
        if not target.photos():
            return photo_set, photo_report(0, lines), [], gr.skip(), None
        target.keep_words(_words(kind, identifier, class_word, instance_prompt, class_prompt))
        report = photo_report(len(target.photos()), lines)
        return target.name, report, self._views(target.name, resolution), self._earlier(target.name), None

    def _views(self, photo_set: str, resolution: float) -> list[str]:
        if not photo_set:
            return []
        side_px = max(16, min(int(resolution or 512), 1024))
        return [self._services.shown.training_view(photo, side_px) for photo in self._set(photo_set).photos()]

    def _earlier(self, value: str) -> Any:
        sets = photo_sets(self._services.workspace)
        choices = [(f"{one.words().instance_prompt} ({len(one.photos())} photos)", one.name) for one in sets]
        return gr.Dropdown(choices=choices, value=value or None)

    def _contents(self, photo_set: str, resolution: float) -> list[Any]:
        """Return everything the tab shows of a set; an empty name is a new one."""
        kept = self._set(photo_set) if photo_set else None
        words = kept.words() if kept else Words()
        photos = kept.photos() if kept else []
        return [
            photo_set, words.kind, words.identifier, words.class_word, words.instance_prompt, words.class_prompt,
            self._views(photo_set, resolution), photo_report(len(photos), []), self._earlier(photo_set),
        ]  # fmt: skip

    def newest(self, resolution: float) -> list[Any]:
        """Return what a freshly opened page shows: the photos last worked with."""
        sets = photo_sets(self._services.workspace)
        return self._contents(sets[0].name if sets else "", resolution)

    def _kind_chosen(self, photo_set: str, kind: str, identifier: str) -> tuple[str, str, str]:
        class_word = DEFAULT_CLASS_WORDS[kind]  # type: ignore[index]
        return (class_word, *self._words_typed(photo_set, kind, identifier, class_word))

    def _words_typed(self, photo_set: str, kind: str, identifier: str, class_word: str) -> tuple[str, str]:
        instance_prompt, class_prompt = prompts_for(kind, identifier, class_word)
        self._keep_words(photo_set, kind, identifier, class_word, instance_prompt, class_prompt)
        return instance_prompt, class_prompt

    def _words_left(
        self, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str
    ) -> tuple[Any, Any]:
        """Make the prompts anew where they lack the words, so that prompts edited by hand stay."""
        if identifier in instance_prompt and class_word in instance_prompt:
            return gr.skip(), gr.skip()
        return self._words_typed(photo_set, kind, identifier, class_word)

    def _keep_words(
        self, photo_set: str, kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str
    ) -> None:
        if photo_set:
            self._set(photo_set).keep_words(_words(kind, identifier, class_word, instance_prompt, class_prompt))

    def photo_chosen(self, event: gr.SelectData) -> tuple[int, Any]:
        """Remember which view was clicked."""
        return int(event.index), gr.Button(interactive=True)

    def _remove(self, photo_set: str, chosen: int | None, resolution: float) -> tuple[Any, ...]:
        photos = self._set(photo_set).photos() if photo_set else []
        if chosen is not None and 0 <= chosen < len(photos):
            self._set(photo_set).remove(photos[chosen].name)
            self._services.shown.forget([photos[chosen]])
        views = self._views(photo_set, resolution)
        return views, photo_report(len(views), []), None, gr.Button(interactive=False)

    def _delete(self, photo_set: str) -> list[Any]:
        """Delete the photos of a set and every copy of them on this machine; runs and their models stay."""
        if photo_set:
            self._services.shown.forget(self._set(photo_set).delete())
            delete_photos(self._services.workspace, photo_set)
        contents = self._contents("", 64)
        contents[-2] = photo_report(0, [(True, "Your photos and all copies of them were deleted.")])
        return contents

    def sample_set(self) -> PhotoSet:
        """Return the bundled sample subject as a photo set, made on first use."""
        from dreambooth.samples import sample_concept

        concept = sample_concept()
        target = self._set(SAMPLE_SET)
        if not target.photos():
            target.add(find_photos(Path(concept.instance_data_dir)).photos)
        identifier, class_word = _identifier_and_class(concept.instance_prompt, concept.class_prompt or "")
        target.keep_words(Words("object", identifier, class_word, concept.instance_prompt, concept.class_prompt or ""))
        return target


def _words(kind: str, identifier: str, class_word: str, instance_prompt: str, class_prompt: str) -> Words:
    known = next((one for one in KINDS if one == kind), KINDS[0])
    return Words(known, identifier.strip(), class_word.strip(), instance_prompt.strip(), class_prompt.strip())


def _identifier_and_class(instance_prompt: str, class_prompt: str) -> tuple[str, str]:
    """Return the word only the instance prompt has, and the class prompt's last word."""
    known = class_prompt.split()
    own = [word for word in instance_prompt.split() if word not in known]
    return (own[-1] if own else ""), (known[-1] if known else "")
