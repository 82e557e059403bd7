"""The first tab for programs: photos, crops, prompts, concepts and class images, in plain values."""

from typing import Any

import gradio as gr

from dreambooth.data.class_images import made_class_images
from dreambooth.data.focus import Focus
from dreambooth.data.photo_sets import PhotoSet, photo_sets
from dreambooth.data.words import KINDS, Words, prompts_for
from dreambooth.errors import ConfigError, DreamBoothError, PhotoError
from dreambooth.models.base import STARTER
from ui.boundary import Services, shown
from ui.concepts.captions import CaptionHandlers, functions_for_programs
from ui.concepts.handlers import Handlers
from ui.concepts.masks import function_for_programs
from ui.concepts.photos import ACTS


def publish(services: Services, handlers: Handlers) -> None:
    """Give programs the functions of the tab's buttons."""

    def there(photo_set: str) -> PhotoSet:
        kept = handlers.photos.set_of(photo_set)
        if not kept.folder.is_dir():
            raise DreamBoothError(f"There is no photo set {photo_set!r}.", "", "list_photo_sets lists them.")
        return kept

    def list_photo_sets() -> list[dict[str, Any]]:
        """Return every photo set, the most recently changed first."""
        return [{"photo_set": one.name, "photos": len(one.photos()), **vars(one.words())} for one in
                photo_sets(services.workspace)]  # fmt: skip

    def check_photos(photo_set: str, resolution: int = 512) -> list[dict[str, Any]]:
        """Return the photos of a set with their crops, captions and findings."""
        kept = there(photo_set)
        photos = kept.contents()
        found = kept.findings(max(16, min(int(resolution), 2048)), photos)
        return [
            {
                "photo": photo.path.name,
                "name": photo.known_as,
                "caption": photo.caption,
                "mask": photo.mask is not None,
                **vars(photo.focus),
                "findings": [vars(one) for one in found.get(photo.path.name, [])],
            }
            for photo in photos
        ]

    def add_folder(folder: str, photo_set: str = "") -> dict[str, Any]:
        """Add a folder's photos to a set, to a new one without a name or with the sample's; on a local page only."""
        source, kept = handlers.photos.local_folder(folder), handlers.photos.target_of(photo_set)
        lines = kept.add_folder(source)
        return {"photo_set": kept.name, "told": [sentence for _, sentence in lines]}

    def set_focus(photo_set: str, photo: str, x: float, y: float, zoom: float = 1.0) -> dict[str, float]:
        """Choose a photo's crop for training: its centre in 0..1 of width and height, and its zoom."""
        kept = there(photo_set)
        kept.keep_focus(photo, Focus(x, y, zoom))
        return dict(vars(kept.focus(photo)))

    def change_photo(photo_set: str, photo: str, act: str) -> str:
        """Apply `remove`, `restore`, `turn`, `brighten` or `refocus` (propose the crop again) to a photo."""
        if act not in ACTS:
            raise PhotoError("That is not an action for a photo.", "", f"Use one of {', '.join(ACTS)}.")
        return handlers.photos.change(there(photo_set), photo, act)[0][1]

    def set_words(
        photo_set: str, kind: str = "", identifier: str = "", class_word: str = "", instance_prompt: str = "",
        class_prompt: str = "", base: str = STARTER,
    ) -> dict[str, str]:  # fmt: skip
        """Name the subject of a set; prompts that are not given are made from identifier and class word."""
        kept = there(photo_set)
        old = kept.words()
        if kind and kind not in KINDS:
            raise PhotoError("That is not a kind of subject.", "", f"Use one of {', '.join(KINDS)}.")
        kind, identifier, class_word = kind or old.kind, identifier or old.identifier, class_word or old.class_word
        made = prompts_for(kind, identifier, class_word)
        words = Words(
            kind,
            identifier.strip(),
            class_word.strip(),
            instance_prompt or made[0],
            class_prompt or made[1],  # type: ignore[arg-type]
        )
        problems = [one for one in handlers.problems(photo_set, words, base) if one.field != "photos"]
        if problems:
            raise ConfigError(problems)
        kept.keep_words(words)
        return dict(vars(words))

    def check_identifier(identifier: str, class_word: str = "", base: str = STARTER) -> dict[str, Any]:
        """Return whether a word is suitable as an identifier for a base, and why."""
        return dict(vars(handlers.judge(identifier, class_word, base)))

    def propose_identifier(class_word: str = "", base: str = STARTER) -> str:
        """Return a short word that has no meaning in a base and names no other set."""
        return handlers.propose_identifier("", class_word, base)

    def train_together(photo_sets: list[str]) -> list[str]:
        """Train these sets together, each as a concept; a single name separates it from the others."""
        if not isinstance(photo_sets, list):
            raise PhotoError("Give the photo sets as a list of names.", "", "list_photo_sets lists them.")
        sets = [there(str(name)) for name in photo_sets]
        if not sets:
            raise PhotoError("No photo set is named.", "", "Name one to train alone, or several to train together.")
        for one in sets:
            one.leave()
        if len(sets) > 1:
            sets[0].keep_together(sets)
        return [one.name for one in sets[0].together()]

    def export_concepts(photo_set: str) -> str:
        """Return a set and those trained with it as the text of a concepts_list.json."""
        return handlers.concepts_list(photo_set)

    def class_pictures(photo_set: str) -> dict[str, int]:
        """Return how many class images of the user's own a set has, and how many were generated for its prompt."""
        kept = there(photo_set)
        made = made_class_images(services.workspace, kept.words().class_prompt)
        return {"own": len(kept.class_pictures()), "made": len(made)}

    def delete_photos(photo_set: str) -> str:
        """Delete a set's photos and every copy of them here; runs and their models stay."""
        there(photo_set)
        handlers.photos.delete(photo_set)
        return f"{photo_set} and all copies of its photos were deleted."

    for function in (
        list_photo_sets, check_photos, add_folder, set_focus, change_photo, set_words, check_identifier,
        propose_identifier, train_together, export_concepts, class_pictures, delete_photos,
        *functions_for_programs(CaptionHandlers(services, handlers.photos), there), function_for_programs(there),
    ):  # fmt: skip
        gr.api(shown(function), api_name=function.__name__, concurrency_limit=None)
