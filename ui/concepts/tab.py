"""The first tab: photos in, shown as they will be trained, and the words for them."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import gradio as gr

from dreambooth.data.identifiers import judged, vocabulary_of
from dreambooth.data.photo_sets import SAMPLE_SET
from dreambooth.data.words import KINDS, Words
from dreambooth.models.base import STARTER
from ui.boundary import QUIET, Services
from ui.concepts import api as concepts_api
from ui.concepts.cards import CARDS_CSS, CARDS_JS, CUT_CSS, EDITOR_CSS, EDITOR_JS, cards, set_report
from ui.concepts.handlers import NOTES, Handlers, class_pictures_text
from ui.concepts.photos import PhotoHandlers
from ui.concepts.scripts import FORGET_NEW_SET, KIND_CHOSEN, MAKE_PROMPTS, NAME_NEW_SET, WORDS_LEFT
from ui.concepts.words import verdict_html
from ui.events import connect as connect_events
from ui.generate.late_answers import Fillable, fillable

__all__ = ["SAMPLE_SET", "ConceptsTab", "Handlers", "build", "connect", "connect_go_on"]

RIGHTS = (
    "Only use photos you have the right to use, and photos of people only with their consent. "
    "Photos stay on the machine this app runs on."
)


@dataclass(frozen=True)
class ConceptsTab:
    """The tab's components that others read or that events fill."""

    photo_set: gr.Textbox
    new_name: gr.Textbox
    said: Fillable
    concepts: gr.Radio
    add_concept: gr.Button
    leave: gr.Button
    kind: gr.Radio
    files: gr.File
    folder: gr.Textbox
    take_folder: gr.Button
    report: gr.HTML
    views: gr.HTML
    chosen: gr.Textbox
    box: gr.Column
    editor: gr.HTML
    cut: gr.HTML
    caption: gr.Textbox
    remove: gr.Button
    refocus: gr.Button
    new_set: gr.Button
    delete: gr.Button
    identifier: gr.Textbox
    propose: gr.Button
    class_word: gr.Textbox
    verdict: gr.HTML
    instance_prompt: gr.Textbox
    class_prompt: gr.Textbox
    marked: gr.State
    message: gr.HTML
    go_on: gr.Button
    sample: gr.Button
    class_box: gr.Accordion
    class_on: gr.Checkbox
    class_count: gr.Number
    class_files: gr.File
    class_note: gr.HTML
    class_views: gr.Gallery
    class_remove: gr.Button
    earlier: gr.Dropdown
    listed: gr.File
    export: gr.Button
    exported: gr.File

    @property
    def words(self) -> list[Any]:
        """Return the fields of `Words`, in its order."""
        return [getattr(self, field.name) for field in fields(Words)]

    @property
    def photo_parts(self) -> list[Any]:
        """Return what shows the photos and the chosen one of them."""
        return [self.report, self.views, self.chosen, self.box, self.editor, self.cut, self.caption, self.remove]

    @property
    def contents(self) -> list[Any]:
        """Return what shows one photo set: its name, words, companions, the list of sets, and its photos."""
        return [self.photo_set, self.said.answer, self.concepts, self.earlier, *self.photo_parts]


def build(services: Services) -> ConceptsTab:
    """Lay out the tab; `connect` gives it life."""
    usual = Words()
    made: dict[str, Any] = {
        # The photo set's name is the page's only memory of it; the photos and words lie on the server.
        "photo_set": gr.Textbox("", label="Photo set", visible=False, elem_id="photo-set"),
        "new_name": gr.Textbox("", label="Name of a new photo set", visible=False),
        "chosen": gr.Textbox("", label="Chosen photo", visible=False, elem_id="chosen-photo"),
        "marked": gr.State([]),
    }
    made["concepts"] = gr.Radio(
        [], label="Concepts trained together", visible=False, elem_id="concepts",
        info="Choose one to see its photos and words.",
    )  # fmt: skip
    with gr.Row(equal_height=False):
        with gr.Column(scale=4, min_width=300):
            made |= _intake(usual, services)
        with gr.Column(scale=8, min_width=320):
            made |= _photos()
    made |= _words(usual)
    made["message"] = gr.HTML(elem_id="concept-message")
    made["go_on"] = gr.Button("Continue to training", variant="primary", elem_id="go-on")
    made |= _class_pictures()
    made |= _more()
    gr.HTML(f"<p class='db-hint'>{RIGHTS}</p>")
    made["said"] = fillable({field.name: made[field.name] for field in fields(Words)}, asdict(usual), together=True)
    return ConceptsTab(**made)


def _intake(usual: Words, services: Services) -> dict[str, Any]:
    kind = gr.Radio(
        [(word.capitalize(), word) for word in KINDS], value=usual.kind, elem_id="kind",
        label="What do the photos show?", info="Sets the class word, the number of steps and the example prompts.",
    )  # fmt: skip
    files = gr.File(
        label="Drop 3 to 5 photos, or a zip of them", file_count="multiple", height=150, elem_id="photos",
    )  # fmt: skip
    with gr.Accordion(
        "From a folder of this computer", open=False, visible=services.takes_folders, elem_id="from-folder"
    ):
        folder = gr.Textbox(label="Folder", placeholder="/home/me/photos/dog", max_lines=1, elem_id="folder")
        take_folder = gr.Button("Take its photos in", size="sm", elem_id="take-folder")
    report = gr.HTML(set_report(0, [], {}, usual.kind), elem_id="report")
    sample = gr.Button("Try it with sample photos", elem_id="try-sample")
    return {
        "kind": kind, "files": files, "folder": folder, "take_folder": take_folder, "report": report, "sample": sample,
    }  # fmt: skip


def _photos() -> dict[str, Any]:
    gr.HTML("<b>As the model will see them</b> <span class='db-hint'>upright, and cut square</span>")
    with gr.Column(visible=False, elem_id="editor-box") as box, gr.Row(equal_height=False):
        with gr.Column(scale=6, min_width=280):
            gr.HTML("<b>Move the square</b> <span class='db-hint'>drag it, or use the arrow keys, + and -</span>")
            editor = gr.HTML("", elem_id="editor", css_template=EDITOR_CSS, js_on_load=EDITOR_JS)
        with gr.Column(scale=4, min_width=220):
            cut = gr.HTML("", elem_id="cut", css_template=CUT_CSS)
            caption = gr.Textbox(
                label="Words for this photo alone", lines=2, elem_id="caption",
                info="Left empty, the words for all photos are its caption.",
            )  # fmt: skip
            with gr.Row():
                refocus = gr.Button("Guess the square again", size="sm", elem_id="refocus")
                remove = gr.Button("Remove the chosen photo", size="sm", interactive=False, elem_id="remove")
    views = gr.HTML(cards([], None), elem_id="views", css_template=CARDS_CSS, js_on_load=CARDS_JS)
    with gr.Row():
        add_concept = gr.Button("Add another concept", size="sm", elem_id="add-concept")
        new_set = gr.Button("Start with new photos", size="sm", elem_id="new-set")
        delete = gr.Button("Delete my photos", size="sm", variant="stop", elem_id="delete-photos")
    return {
        "views": views, "box": box, "editor": editor, "cut": cut, "caption": caption, "refocus": refocus,
        "remove": remove, "add_concept": add_concept, "new_set": new_set, "delete": delete,
    }  # fmt: skip


def _words(usual: Words) -> dict[str, Any]:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            identifier = gr.Textbox(
                usual.identifier, label="Identifier", max_lines=1, elem_id="identifier", info=NOTES["identifier"],
            )  # fmt: skip
            propose = gr.Button("Propose another", size="sm", elem_id="propose")
        class_word = gr.Textbox(
            usual.class_word, label="Class word", max_lines=1, elem_id="class-word", info=NOTES["class_word"],
            min_width=280,
        )  # fmt: skip
    verdict = gr.HTML(
        verdict_html(
            judged(usual.identifier, usual.class_word, vocabulary_of(STARTER)), usual.kind, usual.identifier,
            usual.class_word,
        ), elem_id="verdict",
    )  # fmt: skip
    with gr.Row(equal_height=False):
        instance_prompt = gr.Textbox(
            usual.instance_prompt, label="Words for your photos", elem_id="instance-prompt",
            info=NOTES["instance_prompt"], min_width=280,
        )  # fmt: skip
        class_prompt = gr.Textbox(
            usual.class_prompt, label="Words for the class", elem_id="class-prompt", info=NOTES["class_prompt"],
            min_width=280,
        )  # fmt: skip
    return {
        "identifier": identifier, "propose": propose, "class_word": class_word, "verdict": verdict,
        "instance_prompt": instance_prompt, "class_prompt": class_prompt,
    }  # fmt: skip


def _class_pictures() -> dict[str, Any]:
    with gr.Accordion("Class pictures", open=False, elem_id="class-box") as class_box:
        gr.HTML(
            "<p class='db-hint'>While it learns your subject, the model also looks at usual pictures of the class, so "
            "that not every other one becomes yours. It matters most for people and animals.</p>"
        )
        with gr.Row(equal_height=False):
            class_on = gr.Checkbox(
                True, label="Train with class pictures", elem_id="class-on",
                info="For all concepts that are trained together. `with_prior_preservation`",
                min_width=220,
            )  # fmt: skip
            class_count = gr.Number(
                50, label="How many", precision=0, elem_id="class-count", min_width=220,
                info="Of each concept; missing ones are made before the training. `num_class_images`",
            )  # fmt: skip
        class_files = gr.File(
            label="Drop class pictures of your own, if you have some", file_count="multiple", height=120,
            elem_id="class-photos",
        )  # fmt: skip
        class_note = gr.HTML(class_pictures_text(0, 0), elem_id="class-note")
        class_views = gr.Gallery(
            label="Class pictures", show_label=False, columns=6, height=260, object_fit="cover", interactive=False,
            format="png", elem_id="class-views", buttons=["fullscreen"],
        )  # fmt: skip
        class_remove = gr.Button("Remove my own class pictures", size="sm", interactive=False, elem_id="class-remove")
    return {
        "class_box": class_box, "class_on": class_on, "class_count": class_count, "class_files": class_files,
        "class_note": class_note, "class_views": class_views, "class_remove": class_remove,
    }  # fmt: skip


def _more() -> dict[str, Any]:
    with gr.Accordion("Photos used earlier, several concepts, concepts_list.json", open=False, elem_id="more"):
        earlier = gr.Dropdown([], label="Take photos from before", elem_id="earlier", allow_custom_value=True)
        leave = gr.Button("Train this concept by itself again", size="sm", elem_id="leave")
        with gr.Row(equal_height=False):
            listed = gr.File(
                label="Take concepts from a concepts_list.json", file_types=[".json"], height=110, elem_id="listed",
            )  # fmt: skip
            with gr.Column():
                export = gr.Button("Export concepts_list.json", size="sm", elem_id="export")
                exported = gr.File(label="Download", visible=False, interactive=False, elem_id="exported")
    return {"earlier": earlier, "leave": leave, "listed": listed, "export": export, "exported": exported}


# Events --------------------------------------------------------------------------------------------------------------


def connect(tab: ConceptsTab, services: Services, base: gr.Dropdown, settings: dict[str, Any]) -> None:
    """Join the tab's components to what they do; `settings` are the fields of the Train tab."""
    handlers, resolution = Handlers(services), settings["resolution"]
    taken = _connect_photos(tab, handlers.photos, resolution)
    _connect_words(tab, handlers, base, resolution, taken)
    _connect_sets(tab, handlers, base, resolution)
    _connect_class_pictures(tab, handlers, settings)
    concepts_api.publish(services, handlers)


def _connect_photos(tab: ConceptsTab, handlers: PhotoHandlers, resolution: gr.Number) -> list[Any]:
    """Join what shows photos to what it does; returns the events that take photos in."""
    taken = [tab.photo_set, *tab.photo_parts, tab.earlier, tab.concepts]
    given = [tab.photo_set, *tab.words, resolution, tab.new_name]
    # A second drop while the first is worked on waits its turn, and goes into the same new set.
    dropped = tab.files.upload(
        handlers.upload, [tab.files, *given], [*taken, tab.files, tab.said.answer], js=NAME_NEW_SET,
        api_name="upload_photos", trigger_mode="multiple", concurrency_id="take_photos", concurrency_limit=1,
    )  # fmt: skip
    named = gr.on(
        [tab.take_folder.click, tab.folder.submit], handlers.add_folder, [tab.folder, *given],
        [*taken, tab.said.answer], js=NAME_NEW_SET, api_name="take_folder", api_visibility="private",
        concurrency_id="take_photos", concurrency_limit=1,
    )  # fmt: skip
    tab.photo_set.change(None, tab.photo_set, None, js=FORGET_NEW_SET, api_name="set_shown", **QUIET)
    seen = [tab.photo_set, tab.chosen, resolution]
    tab.views.click(
        handlers.card_clicked,
        [tab.photo_set, resolution, tab.chosen],
        tab.photo_parts,
        api_name="photo_chosen",
        **QUIET,
    )
    tab.editor.release(
        handlers.focus_moved, [tab.photo_set, resolution], [tab.report, tab.views, tab.cut], api_name="square_moved",
        trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    tab.caption.blur(
        handlers.caption_left, [tab.photo_set, tab.chosen, tab.caption, resolution], [tab.report, tab.views],
        api_name="caption_left", **QUIET,
    )  # fmt: skip
    tab.remove.click(handlers.remove, seen, tab.photo_parts, api_name="remove_chosen", **QUIET)
    tab.refocus.click(handlers.refocus, seen, tab.photo_parts, api_name="guess_square", **QUIET)
    resolution.change(handlers.views, seen, tab.photo_parts, api_name="photo_views", **QUIET)
    return [dropped, named]


def _connect_words(
    tab: ConceptsTab, handlers: Handlers, base: gr.Dropdown, resolution: gr.Number, taken: list[Any]
) -> None:
    prompts, named = [tab.instance_prompt, tab.class_prompt], [tab.kind, tab.identifier, tab.class_word]
    # One after the other, so that older words are never written over newer ones.
    keeping: dict[str, Any] = {
        "fn": handlers.keep_words, "inputs": [tab.photo_set, *tab.words], "outputs": None,
        "trigger_mode": "always_last", "concurrency_id": "keep_words", "concurrency_limit": 1, **QUIET,
    }  # fmt: skip
    chosen = tab.kind.input(
        None, [tab.kind, tab.identifier], [tab.class_word, *prompts], js=KIND_CHOSEN, api_name="kind_chosen", **QUIET
    )
    kept = keeping | {"fn": handlers.keep_kind, "inputs": [tab.photo_set, *tab.words, resolution]}
    chosen.then(**kept | {"outputs": tab.report}, api_name="keep_kind")
    typed = gr.on(
        [tab.identifier.input, tab.class_word.input], None, named, prompts, js=MAKE_PROMPTS, api_name="words_typed",
        **QUIET,
    )  # fmt: skip
    typed.then(**keeping, api_name="keep_typed_words")
    left = gr.on(
        [tab.identifier.blur, tab.class_word.blur], None, [*named, tab.instance_prompt], prompts, js=WORDS_LEFT,
        api_name="words_left", **QUIET,
    )  # fmt: skip
    left.then(**keeping, api_name="keep_left_words")
    gr.on(
        [tab.instance_prompt.input, tab.class_prompt.input, tab.instance_prompt.blur, tab.class_prompt.blur],
        **keeping, api_name="keep_words",
    )  # fmt: skip
    # Words that were typed while the photos were on their way.
    for number, event in enumerate(taken):
        tab.said.after(event).then(**keeping, api_name=f"keep_words_of_taken_{number}")
    gr.on(
        [tab.identifier.change, tab.class_word.change, tab.kind.change, base.change], handlers.verdict,
        [tab.identifier, tab.class_word, tab.kind, base], [tab.verdict],
        trigger_mode="always_last", api_name="identifier_read", **QUIET,
    )  # fmt: skip
    proposed = tab.said.asked_by(tab.propose.click).then(
        handlers.propose, [*named, base], tab.said.answer, api_name="identifier_proposed", **QUIET
    )
    tab.said.after(proposed).then(**keeping, api_name="keep_proposed_words")


def _connect_sets(tab: ConceptsTab, handlers: Handlers, base: gr.Dropdown, resolution: gr.Number) -> None:
    for trigger, handler, inputs, outputs, name in (
        (tab.new_set.click, lambda: handlers.photos.contents("", 64), None, tab.contents, "new_photo_set"),
        (tab.delete.click, handlers.photos.delete, [tab.photo_set], tab.contents, "delete_shown_photos"),
        (tab.earlier.input, handlers.photos.contents, [tab.earlier, resolution], tab.contents, "earlier_photos"),
        (tab.concepts.input, handlers.photos.contents, [tab.concepts, resolution], tab.contents, "shown_concept"),
        (tab.add_concept.click, handlers.add_concept, [tab.photo_set, base, resolution], tab.contents,
         "one_more_concept"),
        (tab.leave.click, handlers.leave, [tab.photo_set, resolution], tab.contents, "leave_concepts"),
        (tab.listed.upload, handlers.import_concepts, [tab.listed, resolution], [*tab.contents, tab.listed],
         "list_taken"),
    ):  # fmt: skip
        tab.said.after(tab.said.asked_by(trigger).then(handler, inputs, outputs, api_name=name, **QUIET))
    tab.export.click(handlers.export_concepts, [tab.photo_set], [tab.exported], api_name="list_exported", **QUIET)


def _connect_class_pictures(tab: ConceptsTab, handlers: Handlers, settings: dict[str, Any]) -> None:
    """Show the class pictures; number and switch are those of the Train tab, asked for in both places."""
    shown = [tab.class_views, tab.class_note, tab.class_remove]
    gr.on(
        [tab.class_box.expand, tab.photo_set.change, tab.class_prompt.change], handlers.class_pictures,
        [tab.photo_set, tab.class_prompt], shown, trigger_mode="always_last", api_name="class_pictures_shown", **QUIET,
    )  # fmt: skip
    tab.class_files.upload(
        handlers.add_class_pictures, [tab.class_files, tab.photo_set, tab.class_prompt], [*shown, tab.class_files],
        api_name="class_pictures_dropped", **QUIET,
    )  # fmt: skip
    tab.class_remove.click(
        handlers.remove_class_pictures, [tab.photo_set, tab.class_prompt], shown, api_name="class_pictures_removed",
        **QUIET,
    )  # fmt: skip
    pairs = ((tab.class_on, "with_prior_preservation"), (tab.class_count, "num_class_images"))
    for here, name in pairs:
        # In the browser: echoes that come late would overtake each other.
        here.input(None, here, settings[name], js="value => value", api_name=f"{name}_here", **QUIET)
        settings[name].change(None, settings[name], here, js="value => value", api_name=f"{name}_there", **QUIET)


def connect_go_on(tab: ConceptsTab, services: Services, base: gr.Dropdown, tabs: gr.Tabs) -> None:
    """Let the main button go on to the training when nothing has to be mended."""
    connect_events(Handlers(services), vars(tab) | {"base": base, "tabs": tabs})
