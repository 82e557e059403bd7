"""The first tab: upload, photos shown as they will be trained, and the prompts for them."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

import gradio as gr

from dreambooth.data.identifiers import judged, vocabulary_of
from dreambooth.data.words import KINDS, Words
from dreambooth.models.base import STARTER
from ui.boundary import QUIET, Services
from ui.concepts import api as concepts_api
from ui.concepts import captions as caption_section
from ui.concepts import masks as mask_section
from ui.concepts.captions import CaptionHandlers
from ui.concepts.cards import CARDS_CSS, CARDS_JS, CUT_CSS, EDITOR_CSS, EDITOR_JS, cards, set_report
from ui.concepts.handlers import NOTES, Handlers, class_pictures_text
from ui.concepts.masks import MaskHandlers
from ui.concepts.painter import PAINTER_CSS, PAINTER_JS
from ui.concepts.scripts import FORGET_NEW_SET, KIND_CHOSEN, MAKE_PROMPTS, SHOW_USUAL_CAPTION, WORDS_LEFT
from ui.concepts.welcome import sample_card, sample_time, welcome
from ui.concepts.words import verdict_html
from ui.events import connect as connect_events
from ui.late_answers import Fillable, fillable

RIGHTS = (
    "Only use photos you have the right to use, and photos of people only with their consent. "
    "Photos stay on the machine this app runs on."
)


@dataclass(frozen=True)
class ConceptsTab:
    """The tab's components that others read or that events fill."""

    photo_set: gr.Textbox
    new_name: gr.Textbox
    entries: Fillable
    concepts: gr.Radio
    add_concept: gr.Button
    leave: gr.Button
    kind: gr.Radio
    files: gr.File
    folder: gr.Textbox
    take_folder: gr.Button
    report: gr.HTML
    shape: gr.HTML
    views: gr.HTML
    chosen: gr.Textbox
    box: gr.Column
    editor: gr.HTML
    cut: gr.HTML
    caption: gr.Textbox
    mask_note: gr.HTML
    paint: gr.Button
    use_found: gr.Button
    painter: gr.HTML
    masked: gr.Textbox
    captions: dict[str, Any]
    remove: gr.Button
    close: gr.Button
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


def build(services: Services) -> ConceptsTab:
    """Lay out the tab; `connect` adds its events."""
    usual = Words()
    made: dict[str, Any] = {
        # The set's name is all the page stores of it; photos and words are on the server.
        "photo_set": gr.Textbox("", label="Photo set", visible=False, elem_id="photo-set"),
        "new_name": gr.Textbox("", label="Name of a new photo set", visible=False),
        "chosen": gr.Textbox("", label="Chosen photo", visible=False, elem_id="chosen-photo"),
        "masked": gr.Textbox("", label="Number of masks", visible=False),
        "marked": gr.State([]),
    }
    with gr.Column(elem_id="upload-view"):
        gr.HTML(welcome(), elem_id="welcome", elem_classes=["db-first"])
        made["concepts"] = gr.Radio(
            [], label="Concepts trained together", visible=False, elem_id="concepts",
            info="Select one to see its photos and prompts.",
        )  # fmt: skip
        with gr.Row(equal_height=False, elem_id="intake"):
            with gr.Column(elem_id="own-photos"):
                made |= _intake(usual, services)
            with gr.Column(elem_id="sample-photos"):
                time = sample_time(services)
                gr.HTML(sample_card(time))
                made["sample"] = gr.Button(f"Try it with sample photos ({time})", elem_id="try-sample")
            with gr.Column(elem_id="shown-photos", elem_classes=["db-later"]):
                made |= _photos()
        with gr.Column(elem_classes=["db-later"]):
            made |= _words(usual)
            made |= _class_pictures()
            made["message"] = gr.HTML(elem_id="concept-message")
            made["go_on"] = gr.Button("Continue to training", variant="primary", elem_id="go-on")
        made |= _more()
        gr.HTML(f"<p class='db-hint'>{RIGHTS}</p>")
    made["entries"] = fillable({field.name: made[field.name] for field in fields(Words)}, asdict(usual), together=True)
    return ConceptsTab(**made)


def _intake(usual: Words, services: Services) -> dict[str, Any]:
    gr.HTML("<div class='db-choice'><h3>Use my photos</h3></div>", elem_classes=["db-first"])
    kind = gr.Radio(
        [(word.capitalize(), word) for word in KINDS], value=usual.kind, elem_id="kind",
        label="What do the photos show?", info="Sets the class word, the number of steps and the example prompts.",
    )  # fmt: skip
    files = gr.File(
        label="Drop 3 to 5 photos, or a zip of them", file_count="multiple", height=150, elem_id="photos",
    )  # fmt: skip
    with gr.Accordion(
        "From a folder on this computer", open=False, visible=services.takes_folders, elem_id="from-folder"
    ):
        folder = gr.Textbox(label="Folder", placeholder="/home/me/photos/dog", max_lines=1, elem_id="folder")
        take_folder = gr.Button("Import photos", size="sm", elem_id="take-folder")
    report = gr.HTML(set_report(0, [], {}, usual.kind), elem_id="report")
    return {"kind": kind, "files": files, "folder": folder, "take_folder": take_folder, "report": report}


def _photos() -> dict[str, Any]:
    shape = gr.HTML(shape_hint(buckets=False), elem_id="photo-shape")
    views = gr.HTML(cards([], None), elem_id="views", css_template=CARDS_CSS, js_on_load=CARDS_JS)
    with gr.Column(visible=False, elem_id="editor-box") as box:
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=280):
                gr.HTML("<b>Adjust the crop</b> <span class='db-hint'>drag it, or use the arrow keys, + and -</span>")
                editor = gr.HTML("", elem_id="editor", css_template=EDITOR_CSS, js_on_load=EDITOR_JS)
            with gr.Column(scale=4, min_width=220):
                cut = gr.HTML("", elem_id="cut", css_template=CUT_CSS)
                caption = gr.Textbox(
                    label="Caption for this photo", lines=2, elem_id="caption",
                    info="Leave empty to use the instance prompt.",
                )  # fmt: skip
                with gr.Row():
                    refocus = gr.Button("Auto-crop", size="sm", elem_id="refocus")
                    remove = gr.Button("Remove this photo", size="sm", interactive=False, elem_id="remove")
                    close = gr.Button("Close", size="sm", elem_id="close-editor")
                masks = mask_section.build()
        painter = gr.HTML("", elem_id="painter", css_template=PAINTER_CSS, js_on_load=PAINTER_JS)
    captions = caption_section.build()
    with gr.Row():
        add_concept = gr.Button("Add another concept", size="sm", elem_id="add-concept")
        new_set = gr.Button("Start with new photos", size="sm", elem_id="new-set")
        delete = gr.Button("Delete my photos", size="sm", variant="stop", elem_id="delete-photos")
    return {
        "shape": shape, "views": views, "box": box, "editor": editor, "cut": cut, "caption": caption,
        "refocus": refocus, "remove": remove, "close": close, "captions": captions, "add_concept": add_concept,
        "new_set": new_set, "delete": delete, "painter": painter, **masks,
    }  # fmt: skip


def shape_hint(*, buckets: bool) -> str:
    """Return the hint above the photo cards, whose squares are not what buckets train."""
    if not buckets:
        return "<b>As the model will see them</b> <span class='db-hint'>upright and cropped to a square</span>"
    return (
        "<b>Your photos</b> <span class='db-hint'>Buckets is on: each is trained near its own aspect ratio, around the "
        "centre of the square shown here</span>"
    )


def _words(usual: Words) -> dict[str, Any]:
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            identifier = gr.Textbox(
                usual.identifier, label="Identifier", max_lines=1, elem_id="identifier", info=NOTES["identifier"],
            )  # fmt: skip
            propose = gr.Button("Suggest another", size="sm", elem_id="propose")
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
            usual.instance_prompt, label="Instance prompt", elem_id="instance-prompt",
            info=NOTES["instance_prompt"], min_width=280,
        )  # fmt: skip
        class_prompt = gr.Textbox(
            usual.class_prompt, label="Class prompt", elem_id="class-prompt", info=NOTES["class_prompt"],
            min_width=280,
        )  # fmt: skip
    return {
        "identifier": identifier, "propose": propose, "class_word": class_word, "verdict": verdict,
        "instance_prompt": instance_prompt, "class_prompt": class_prompt,
    }  # fmt: skip


def _class_pictures() -> dict[str, Any]:
    with gr.Accordion("Class images", open=False, elem_id="class-box") as class_box:
        gr.HTML(
            "<p class='db-hint'>While it learns your subject, the model also trains on images of the class, so that "
            "others of its kind don't start to look like it. This matters most for people and animals.</p>"
        )
        with gr.Row(equal_height=False):
            class_on = gr.Checkbox(
                True, label="Train with class images (prior preservation)", elem_id="class-on",
                info="Applies to all concepts trained together. `with_prior_preservation`",
                min_width=220,
            )  # fmt: skip
            class_count = gr.Number(
                50, label="How many", precision=0, elem_id="class-count", min_width=220,
                info="Per concept; missing ones are generated before the training. `num_class_images`",
            )  # fmt: skip
        class_files = gr.File(
            label="Drop your own class images (optional)", file_count="multiple", height=120,
            elem_id="class-photos",
        )  # fmt: skip
        class_note = gr.HTML(class_pictures_text(0, 0), elem_id="class-note")
        class_views = gr.Gallery(
            label="Class images", show_label=False, columns=6, height=260, object_fit="cover", interactive=False,
            format="png", elem_id="class-views", buttons=["fullscreen"], visible=False,
        )  # fmt: skip
        class_remove = gr.Button("Remove my own class images", size="sm", interactive=False, elem_id="class-remove")
    return {
        "class_box": class_box, "class_on": class_on, "class_count": class_count, "class_files": class_files,
        "class_note": class_note, "class_views": class_views, "class_remove": class_remove,
    }  # fmt: skip


def _more() -> dict[str, Any]:
    with gr.Accordion("Photos used earlier, several concepts, concepts_list.json", open=False, elem_id="more"):
        earlier = gr.Dropdown([], label="Use photos from before", elem_id="earlier", allow_custom_value=True)
        leave = gr.Button("Train this concept by itself again", size="sm", elem_id="leave")
        with gr.Row(equal_height=False):
            listed = gr.File(
                label="Import a concepts_list.json", file_types=[".json"], height=110, elem_id="listed",
            )  # fmt: skip
            with gr.Column():
                export = gr.Button("Export concepts_list.json", size="sm", elem_id="export")
                exported = gr.File(label="Download", visible=False, interactive=False, elem_id="exported")
    return {"earlier": earlier, "leave": leave, "listed": listed, "export": export, "exported": exported}


# Events --------------------------------------------------------------------------------------------------------------


def connect(
    tab: ConceptsTab, services: Services, page: gr.Blocks, place: gr.JSON, base: gr.Dropdown, settings: dict[str, Any]
) -> dict[str, Any]:
    """Connect the tab's components with their handlers; return the events; `settings` are the Train tab's fields."""
    handlers = Handlers(services)
    named = by_name(tab) | {"page": page, "place": place, "base": base, "resolution": settings["resolution"]}
    events = connect_events(handlers.photos, named)
    connect_events(CaptionHandlers(services, handlers.photos), named | tab.captions)
    connect_events(MaskHandlers(services, handlers.photos), named)
    events |= connect_events(handlers, named, events | _scripts(tab))
    _connect_class_settings(tab, settings)
    hints = {str(on).lower(): shape_hint(buckets=on) for on in (False, True)}
    settings["buckets"].change(
        None,
        settings["buckets"],
        tab.shape,
        js=f"on => ({json.dumps(hints)})[!!on]",
        api_name="shape_hint",
        **QUIET,
    )
    concepts_api.publish(services, handlers)
    return events


def by_name(tab: ConceptsTab) -> dict[str, Any]:
    """Return the tab's components by the names that its handlers use."""
    words = {field.name: getattr(tab, field.name) for field in fields(Words)}
    prompts = {name: words[name] for name in ("instance_prompt", "class_prompt")}
    return vars(tab) | {"words": words, "prompts": prompts, "answer": tab.entries.answer}


def _scripts(tab: ConceptsTab) -> dict[str, Any]:
    """Connect the words with the browser's own scripts for typing; return the events by name."""
    prompts, named = [tab.instance_prompt, tab.class_prompt], [tab.kind, tab.identifier, tab.class_word]
    tab.instance_prompt.change(None, tab.instance_prompt, None, js=SHOW_USUAL_CAPTION, api_name="prompt_shown", **QUIET)
    tab.photo_set.change(None, tab.photo_set, None, js=FORGET_NEW_SET, api_name="set_shown", **QUIET)
    return {
        "kind_chosen": tab.kind.input(
            None, [tab.kind, tab.identifier], [tab.class_word, *prompts], js=KIND_CHOSEN, api_name="kind_chosen",
            **QUIET,
        ),
        "words_typed": gr.on(
            [tab.identifier.input, tab.class_word.input], None, named, prompts, js=MAKE_PROMPTS,
            api_name="words_typed", **QUIET,
        ),
        "words_left": gr.on(
            [tab.identifier.blur, tab.class_word.blur], None, [*named, tab.instance_prompt], prompts, js=WORDS_LEFT,
            api_name="words_left", **QUIET,
        ),
    }  # fmt: skip


def _connect_class_settings(tab: ConceptsTab, settings: dict[str, Any]) -> None:
    """Keep the class images' switch and number equal to those of the Train tab: both places ask for them."""
    for here, name in ((tab.class_on, "with_prior_preservation"), (tab.class_count, "num_class_images")):
        # In the browser: late answers would overtake each other.
        here.input(None, here, settings[name], js="value => value", api_name=f"{name}_here", **QUIET)
        settings[name].change(None, settings[name], here, js="value => value", api_name=f"{name}_there", **QUIET)
