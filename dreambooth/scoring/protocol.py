"""The DreamBooth paper's benchmark (Ruiz et al. 2023, arXiv 2208.12242, 4.2) as data: 25 prompts for objects, 25 for
live subjects, and the file that names each subject's class.

A subject folder may have its own lists in the data set's own format; otherwise these are used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dreambooth.errors import ConfigError, FieldProblem

FILE = "prompts_and_classes.txt"
TEMPLATE = re.compile(r"^\s*['\"](.*\{0\}.*\{1\}.*)['\"]\.format\(", re.MULTILINE)
SUBJECT = re.compile(r"^([A-Za-z0-9_ -]+),([A-Za-z ]+)$", re.MULTILINE)
LIVE_CLASSES = {"cat", "dog", "person", "man", "woman", "boy", "girl", "child", "baby", "bird", "horse", "rabbit"}

_EVERYWHERE = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
_THINGS_ONLY = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
_LIVE_ONLY = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf", "wearing a black top hat and a monocle",
    "in a chef outfit", "in a firefighter outfit", "in a police outfit", "wearing pink glasses",
    "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")


def _list_of(places: Sequence[str]) -> tuple[str, ...]:
    return (*(f"a {{0}} {{1}} {place}" for place in places), *(f"a {word} {{0}} {{1}}" for word in _PROPERTIES))


OBJECT_PROMPTS = _list_of(_EVERYWHERE + _THINGS_ONLY)
LIVE_PROMPTS = _list_of(_EVERYWHERE + _LIVE_ONLY)


@dataclass(frozen=True)
class Protocol:
    """The class of each subject, and the prompts of both kinds; {0} is the identifier, {1} the class."""

    classes: dict[str, str]
    object_prompts: tuple[str, ...] = OBJECT_PROMPTS
    live_prompts: tuple[str, ...] = LIVE_PROMPTS

    def prompts_for(self, class_word: str) -> tuple[str, ...]:
        """Return the prompts for live subjects, or for objects."""
        return self.live_prompts if class_word.split()[-1] in LIVE_CLASSES else self.object_prompts


def read_protocol(subjects_dir: Path, class_word: str | None) -> Protocol:
    """Return the protocol of a folder of subjects: from its own file, else one class for all of them.

    Raises ConfigError if a subject's class is unknown.
    """
    folders = subject_folders(subjects_dir)
    text = ""
    if (subjects_dir / FILE).is_file():
        text = (subjects_dir / FILE).read_text("utf-8", errors="replace")
    named = {name.strip(): word.strip() for name, word in SUBJECT.findall(text)}
    classes = {folder.name: named.get(folder.name) or class_word or "" for folder in folders}
    nameless = [name for name, word in classes.items() if not word]
    if not folders:
        raise ConfigError([FieldProblem("subjects_dir", f"{subjects_dir} has no folders, one for each subject.")])
    if nameless:
        problem = f"is missing: {FILE} names no class for {', '.join(nameless)}."
        raise ConfigError([FieldProblem("class_word", problem)])
    lists = _prompt_lists(text)
    return Protocol(classes, *lists) if lists else Protocol(classes)


def subject_folders(subjects_dir: Path) -> list[Path]:
    """Return the folders of subjects by name."""
    if not subjects_dir.is_dir():
        return []
    return sorted(entry for entry in subjects_dir.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _prompt_lists(text: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the prompts for objects and for live subjects from the data set's file, None if it lacks one of them."""
    things, heading, live = text.partition("Live Subject Prompts")
    found = tuple(TEMPLATE.findall(things)), tuple(TEMPLATE.findall(live))
    return found if heading and all(found) else None


def filled(template: str, identifier: str, class_word: str) -> str:
    """Return the prompt with these words inserted; without an identifier, as the base model gets it."""
    return " ".join(template.replace("{0}", identifier).replace("{1}", class_word).split())
