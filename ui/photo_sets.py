"""The photos of one subject and the words for it, as the page keeps them: a folder under the data folder's datasets."""

import json
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from dreambooth.config import Concept, Kind
from dreambooth.data.photos import SUFFIXES, ingest
from dreambooth.errors import DreamBoothError, PhotoError
from dreambooth.workspace import Workspace, remove_folder, write_json

SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
WORDS_FILE = "words.json"
DEFAULT_IDENTIFIER = "zwx"
DEFAULT_CLASS_WORDS: dict[Kind, str] = {"person": "person", "pet": "dog", "object": "toy", "style": "painting"}
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Words:
    """What the subject is called: the identifier no other thing has, its class, and the two prompts made of them."""

    kind: Kind = "pet"
    identifier: str = DEFAULT_IDENTIFIER
    class_word: str = "dog"
    instance_prompt: str = "photo of zwx dog"
    class_prompt: str = "photo of dog"


def prompts_for(kind: str, identifier: str, class_word: str) -> tuple[str, str]:
    """Return the instance prompt and the class prompt that these words make."""
    identifier, class_word = identifier.strip(), class_word.strip()
    if kind == "style":
        return f"{class_word} in {identifier} style", class_word
    return f"photo of {identifier} {class_word}", f"photo of {class_word}"


@dataclass(frozen=True)
class PhotoSet:
    """One folder of photos, re-encoded by `ingest`, with its words beside them."""

    folder: Path

    @property
    def name(self) -> str:
        """Return the folder's name, which is the set's."""
        return self.folder.name

    def photos(self) -> list[Path]:
        """Return the photos in the order of their arrival."""
        if not self.folder.is_dir():
            return []
        files = [path for path in self.folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")]
        return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name))

    def words(self) -> Words:
        """Return the words kept with the photos, or the usual ones."""
        try:
            return Words(**json.loads((self.folder / WORDS_FILE).read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return Words()

    def keep_words(self, words: Words) -> None:
        """Write the words beside the photos."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / WORDS_FILE, asdict(words))

    def add(self, files: Iterable[Path]) -> list[tuple[bool, str]]:
        """Take photos in; returns per file whether it was taken and a sentence about it."""
        report = []
        for file in files:
            try:
                ingest(file, self.folder)
                report.append((True, f"{file.name} was added."))
            except PhotoError as error:
                report.append((False, str(error)))
        return report

    def remove(self, name: str) -> None:
        """Delete one photo by its file name; raises PhotoError when it is not there."""
        for photo in self.photos():
            if photo.name == name:
                photo.unlink()
                return
        raise PhotoError(f"{name} is not in this set.", "It was removed before.", "")

    def delete(self) -> list[Path]:
        """Delete the folder with all photos and words; returns the photos that were in it."""
        photos = self.photos()
        if self.folder.is_dir():
            remove_folder(self.folder)
        return photos

    def concept(self, instance_prompt: str, class_prompt: str) -> Concept:
        """Return what training reads: this folder under these two prompts."""
        return Concept(instance_prompt.strip(), str(self.folder), class_prompt.strip() or None)


def photo_sets(workspace: Workspace) -> list[PhotoSet]:
    """Return every set that holds photos, the one last touched first."""
    found = [PhotoSet(folder) for folder in workspace.datasets_dir.iterdir() if SET_NAME.fullmatch(folder.name)]
    kept = [photo_set for photo_set in found if photo_set.photos()]
    return sorted(kept, key=lambda photo_set: photo_set.folder.stat().st_mtime_ns, reverse=True)


def photo_set(workspace: Workspace, name: str) -> PhotoSet:
    """Return the set of this name, which need not exist yet; refuses names that could leave the datasets folder."""
    if not SET_NAME.fullmatch(name):
        raise DreamBoothError(f"{name!r} cannot be a photo set's name.", "Names become folders.", "Use letters.")
    return PhotoSet(workspace.datasets_dir / name)


def new_set_name() -> str:
    """Return a name no other set has."""
    return f"photos-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
