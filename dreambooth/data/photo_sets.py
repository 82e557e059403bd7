"""The photos of one subject with its prompts, as the page stores them: a folder under the data folder's datasets.

Beside the photos it has their crops (`focus.json`), captions (`<photo>.txt`), masks (`<photo>-masklabel.png`), records
(`photos.json`), the prompts (`words.json`) and the sets trained together with this one (`together.json`). The user's
own class images are in a folder of the same name that ends in `.class`.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreambooth.config.concepts import Concept
from dreambooth.data.archives import unpack_photos
from dreambooth.data.captions import CAPTION_SUFFIX, caption_beside, caption_files, read_caption, write_caption
from dreambooth.data.colour import lightened
from dreambooth.data.decoded import keep_decoded
from dreambooth.data.findings import Finding, findings
from dreambooth.data.focus import Focus, chosen_focuses, keep_focus, proposed_focus, read_focus
from dreambooth.data.masks import mask_beside, mask_files, take_mask, take_named_mask, turn_mask, usable_masks
from dreambooth.data.measured import measured
from dreambooth.data.photo_records import add_records, read_records, record
from dreambooth.data.photos import (
    PHOTO_READER,
    Photo,
    find_photos,
    ingest,
    ingested,
    read_photo,
    save_photo,
    shown,
)
from dreambooth.data.removed_photos import bring_back, removed_folder, set_aside
from dreambooth.data.words import Words
from dreambooth.durable import remove_folder, write_json
from dreambooth.errors import DreamBoothError, PhotoError
from dreambooth.events import checked_record
from dreambooth.formats.json_file import read_json, read_object
from dreambooth.formats.photo_files import is_mask_name, is_photo_name
from dreambooth.records.workspace import Workspace

SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")
WORDS_FILE, TOGETHER_FILE = "words.json", "together.json"
CLASS_SUFFIX = ".class"
SAMPLE_SET = "sample-subject"
MAX_FOLDER_PHOTOS = 500

Line = tuple[bool, str]  # whether it went well, and a sentence
Taken = Callable[[Path, Focus], None]


@dataclass(frozen=True)
class StoredPhoto:
    """A photo of a set with its crop, caption and records; `known_as` is the name by which the user knows it."""

    path: Path
    known_as: str
    notes: tuple[str, ...]
    focus: Focus
    caption: str
    mask: Path | None


@dataclass(frozen=True)
class PhotoSet:
    """A folder of photos, re-encoded by `ingest`, with its prompts."""

    folder: Path

    @property
    def name(self) -> str:
        """Return the folder's name, which is the set's."""
        return self.folder.name

    def photos(self) -> list[Path]:
        """Return the photos in upload order."""
        return self._in_order(read_records(self.folder))

    def _in_order(self, records: Mapping[str, Any]) -> list[Path]:
        if not self.folder.is_dir():
            return []
        files = [path for path in self.folder.iterdir() if is_photo_name(path.name)]
        place = {name: number for number, name in enumerate(records)}
        return sorted(files, key=lambda path: (place.get(path.name, len(place)), path.stat().st_mtime_ns, path.name))

    def contents(self) -> list[StoredPhoto]:
        """Return the photos in upload order with crop, caption and records; every file is read once."""
        records, focuses = read_records(self.folder), self.focuses()
        nothing_known = {"name": "", "notes": []}
        return [
            StoredPhoto(
                photo, str(known["name"] or photo.name), tuple(known["notes"]), focuses.get(photo.name, Focus()),
                caption_beside(photo), mask_beside(photo),
            )
            for photo in self._in_order(records)
            for known in [records.get(photo.name, nothing_known)]
        ]  # fmt: skip

    def photo(self, name: str) -> Path:
        """Return the photo of this file name; raises PhotoError when it is not there."""
        for photo in self.photos():
            if photo.name == name:
                return photo
        raise PhotoError("That photo is not in this set.", "It was removed already.", "")

    # Words -----------------------------------------------------------------------------------------------------------

    def words(self) -> Words:
        """Return the words stored with the photos, or the default ones."""
        try:
            words: Words = checked_record(Words, read_object(self.folder / WORDS_FILE))
        except (OSError, ValueError, TypeError):
            return Words()
        return words

    def keep_words(self, words: Words) -> None:
        """Write the words beside the photos; unchanged ones do not update the set's time."""
        if words == self.words() and (self.folder / WORDS_FILE).exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / WORDS_FILE, asdict(words))

    def caption(self, name: str) -> str:
        """Return the photo's own caption; empty if it uses the instance prompt."""
        return caption_beside(self.photo(name))

    def keep_caption(self, name: str, text: str) -> None:
        """Write or remove the photo's own caption."""
        write_caption(self.photo(name), text)

    def has_captions(self) -> bool:
        """Return whether any photo has a caption of its own."""
        return any(caption_beside(photo) for photo in self.photos())

    # Photos ----------------------------------------------------------------------------------------------------------

    def add(self, files: Iterable[Path], taken: Taken | None = None) -> list[Line]:
        """Add photos, masks and zips of them; return for each file whether it was added, and a sentence about it.

        `taken` is called with each new photo and its crop while the decoded image is still in memory.
        """
        report: list[Line] = []
        for file in sorted(files, key=lambda file: is_mask_name(file.name)):
            try:
                if is_mask_name(file.name):
                    photo = take_named_mask(file, {one.known_as: one.path for one in self.contents()})
                    report.append((True, f"{shown(file)} was added as the mask of {photo}."))
                elif file.suffix.lower() == ".zip":
                    report += self._add_archive(file, taken)
                else:
                    report.append(self._take(file, taken)[1])
            except PhotoError as error:
                report.append((False, str(error)))
        return report

    def _take(self, file: Path, taken: Taken | None, focus: Focus | None = None) -> tuple[Path, Line]:
        stored = ingested(file, self.folder)
        if stored.path.suffix == ".png":  # it holds exactly these pixels; a JPEG's are others
            keep_decoded(Photo(stored.path, stored.image, ()), PHOTO_READER)
        add_records(self.folder, {stored.path.name: record(file.name, stored.notes)})
        self._place({stored.path: focus}, taken)
        notes = "; ".join(stored.notes)
        return stored.path, (True, f"{shown(file)} was added{': it ' + notes if notes else ''}.")

    def _place(self, photos: Mapping[Path, Focus | None], taken: Taken | None = None) -> None:
        """Write the crops of new photos: a proposed one if the upload had none."""
        new: dict[str, Focus] = {}
        for photo, chosen in photos.items():
            new[photo.name] = focus = chosen or proposed_focus(read_photo(photo).image)
            if taken is not None:
                taken(photo, focus)
        keep_focus(self.folder, self.focuses() | new)

    def _add_archive(self, archive: Path, taken: Taken | None) -> list[Line]:
        room = self.folder.with_name(f".{self.folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
        try:
            unpacked = unpack_photos(archive, room)
            self.folder.mkdir(parents=True, exist_ok=True)
            new = [photo for photo in unpacked.photos if not (self.folder / photo.name).exists()]
            captions = [photo.with_suffix(CAPTION_SUFFIX) for photo in new if caption_beside(photo)]
            chosen, problems = chosen_focuses(room, [photo.name for photo in unpacked.photos])
            for file in [*captions, *usable_masks(new), *new]:
                file.rename(self.folder / file.name)
            records = read_records(room)
            add_records(self.folder, {photo.name: records[photo.name] for photo in new})
            if new:
                self._place({self.folder / photo.name: chosen.get(photo.name) for photo in new}, taken)
        finally:
            if room.is_dir():
                remove_folder(room)
        lines = [(True, f"{shown(archive)}: {len(new)} photos were added."), *((False, text) for text in problems)]
        return lines + [(False, f"{shown(path)} {reason}.") for path, reason in unpacked.skipped]

    def add_folder(self, folder: Path, taken: Taken | None = None) -> list[Line]:
        """Add the photos in a folder of this machine, with their captions and crops."""
        found = find_photos(folder)
        if len(found.photos) > MAX_FOLDER_PHOTOS:
            raise PhotoError(
                f"{folder.name} holds {len(found.photos)} photos.", f"At most {MAX_FOLDER_PHOTOS} can be imported.",
                "Put the best ones into a folder of their own.",
            )  # fmt: skip
        captions, masks = caption_files(found.photos), mask_files(found.photos)
        chosen, problems = chosen_focuses(folder, [photo.name for photo in found.photos])
        report: list[Line] = []
        for photo in found.photos:
            try:
                stored, line = self._take(photo, taken, chosen.get(photo.name))
                report.append(line)
                if photo in captions:
                    write_caption(stored, read_caption(captions[photo]))
                if photo in masks:
                    take_mask(masks[photo], stored)
            except PhotoError as error:
                report.append((False, str(error)))
        problems += [f"{shown(path)} {reason}." for path, reason in found.skipped]
        return report + [(False, text) for text in problems]

    def remove(self, name: str) -> None:
        """Remove a photo by its file name; it can be restored for an hour. Raises PhotoError if it does not exist."""
        set_aside(self.photo(name))

    def restore(self, name: str) -> None:
        """Restore a removed photo with its caption and crop; raises PhotoError if it was permanently deleted."""
        bring_back(self.folder, name)

    def delete(self) -> list[Path]:
        """Delete the folder with everything in it; return the photos that were in it."""
        photos = [*self.photos(), *self.class_pictures()]
        for other in self.together():
            if other != self:
                other.keep_together([one for one in other.together() if one != self])
        for folder in (self.folder, self.class_folder, removed_folder(self.folder)):
            if folder.is_dir():
                remove_folder(folder)
        return photos

    def turn(self, name: str) -> None:
        """Rotate a photo by 90 degrees clockwise, and its crop and mask with it."""
        from PIL import Image

        photo, focus = self.photo(name), self.focus(name)
        save_photo(read_photo(photo).image.transpose(Image.Transpose.ROTATE_270), photo)
        turn_mask(photo)
        keep_focus(self.folder, self.focuses() | {name: Focus(1 - focus.y, focus.x, focus.zoom)})

    def brighten(self, name: str) -> None:
        """Brighten a dark photo, shadows most, so that its mean comes close to that of a typical photo."""
        photo = self.photo(name)
        save_photo(lightened(read_photo(photo).image), photo)

    # What is known of them -------------------------------------------------------------------------------------------

    def focuses(self) -> dict[str, Focus]:
        """Return the chosen or proposed crops; an unreadable file counts as none."""
        try:
            return read_focus(self.folder)
        except PhotoError:
            return {}

    def focus(self, name: str) -> Focus:
        """Return the photo's crop; the centre one if none was chosen."""
        return self.focuses().get(name, Focus())

    def keep_focus(self, name: str, focus: Focus) -> None:
        """Choose the crop of a photo for training."""
        size = read_photo(self.photo(name)).image.size
        keep_focus(self.folder, self.focuses() | {name: focus.checked().inside(size)})

    def propose_again(self, name: str) -> None:
        """Reset the crop to the proposed one."""
        self._place({self.photo(name): None})

    def findings(self, resolution_px: int, contents: Sequence[StoredPhoto] | None = None) -> dict[str, list[Finding]]:
        """Return the findings of each photo as it is trained; photos that can no longer be read are left out.

        `contents` are those of the set, if they were already read.
        """
        photos = self.contents() if contents is None else contents
        measures = {}
        for photo in photos:
            with contextlib.suppress(PhotoError):
                measures[photo.path.name] = measured(photo.path, photo.focus, resolution_px)
        found = findings(measures, resolution_px)
        for photo in photos:
            if photo.path.name in found:
                found[photo.path.name] += [
                    Finding("sideways" if "sideways" in note else "note", f"It {note}.") for note in photo.notes
                ]
        return found

    def shown_name(self, name: str) -> str:
        """Return the name by which the user knows the photo."""
        return str(read_records(self.folder).get(name, {}).get("name") or name)

    # Class images --------------------------------------------------------------------------------------------------

    @property
    def class_folder(self) -> Path:
        """Return the folder of the user's own class images."""
        return self.folder.with_name(self.folder.name + CLASS_SUFFIX)

    def class_pictures(self) -> list[Path]:
        """Return the user's own class images, and those a training added to them."""
        try:
            return find_photos(self.class_folder).photos
        except PhotoError:
            return []

    def add_class_pictures(self, files: Iterable[Path]) -> list[Line]:
        """Add class images of the user's own."""
        report = []
        for file in files:
            try:
                ingest(file, self.class_folder)
                report.append((True, f"{shown(file)} was added."))
            except PhotoError as error:
                report.append((False, str(error)))
        return report

    def remove_class_pictures(self) -> list[Path]:
        """Delete the user's own class images; return them."""
        pictures = self.class_pictures()
        if self.class_folder.is_dir():
            remove_folder(self.class_folder)
        return pictures

    # Several concepts ------------------------------------------------------------------------------------------------

    def together(self) -> list["PhotoSet"]:
        """Return the sets trained together with this one, including itself, in their order."""
        try:
            names = read_json(self.folder / TOGETHER_FILE)
        except (OSError, ValueError):
            names = []
        listed = names if isinstance(names, list) else []
        known = [name for name in listed if isinstance(name, str) and SET_NAME.fullmatch(name)]
        sets = [PhotoSet(self.folder.with_name(name)) for name in dict.fromkeys(known)]
        there = [one for one in sets if one.folder.is_dir()]
        return there if self in there else [self, *there]

    def keep_together(self, sets: Sequence["PhotoSet"]) -> None:
        """Train these sets together, this one among them."""
        members = list(dict.fromkeys([*sets, self])) if self not in sets else list(dict.fromkeys(sets))
        for one in members:
            one.folder.mkdir(parents=True, exist_ok=True)
            write_json(one.folder / TOGETHER_FILE, [member.name for member in members])

    def leave(self) -> None:
        """Train this set by itself again, and the others without it."""
        for other in self.together():
            if other != self:
                other.keep_together([one for one in other.together() if one != self])
        (self.folder / TOGETHER_FILE).unlink(missing_ok=True)

    def concept(self, instance_prompt: str, class_prompt: str) -> Concept:
        """Return the training concept: this folder with these two prompts."""
        class_dir = str(self.class_folder) if self.class_pictures() else None
        return Concept(instance_prompt.strip(), str(self.folder), class_prompt.strip() or None, class_dir)

    def with_captions(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of a run, with captions read from files if any photo has its own."""
        captioned = any(one.has_captions() for one in self.together())
        return settings | ({"read_prompts_from_txts": True} if captioned else {})

    def concepts(self, instance_prompt: str, class_prompt: str) -> tuple[Concept, ...]:
        """Return this set's concept with these prompts, and those of the sets trained with it with their own."""
        found = []
        for one in self.together():
            words = one.words()
            prompts = (instance_prompt, class_prompt) if one == self else (words.instance_prompt, words.class_prompt)
            if one == self or one.photos():
                found.append(one.concept(*prompts))
        return tuple(found)


def photo_sets(workspace: Workspace) -> list[PhotoSet]:
    """Return every set that holds photos, the most recently changed first."""
    found = [PhotoSet(folder) for folder in workspace.datasets_dir.iterdir() if SET_NAME.fullmatch(folder.name)]
    kept = [photo_set for photo_set in found if photo_set.photos()]
    return sorted(kept, key=lambda photo_set: photo_set.folder.stat().st_mtime_ns, reverse=True)


def photo_set(workspace: Workspace, name: str) -> PhotoSet:
    """Return the set of this name, which need not exist; refuses names that would lead outside the datasets folder."""
    if not isinstance(name, str) or not SET_NAME.fullmatch(name):
        raise DreamBoothError(f"{name!r} cannot be a photo set's name.", "The name becomes a folder.", "Use letters.")
    return PhotoSet(workspace.datasets_dir / name)


def new_set_name() -> str:
    """Return a name no other set has."""
    return f"photos-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
