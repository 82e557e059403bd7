"""The caption file beside a photo: which one belongs to it, and its text."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from dreambooth.config.limits import MAX_PROMPT_CHARS, text_problems
from dreambooth.durable import write_text
from dreambooth.errors import PhotoError, TextFileError
from dreambooth.formats.photo_files import name_key
from dreambooth.formats.text_files import decoded, printable, read_text

CAPTION_SUFFIX = ".txt"
MAX_CAPTION_BYTES = 16 * MAX_PROMPT_CHARS  # room for line breaks and indents, which become single spaces


def caption_files(photos: Sequence[Path]) -> dict[Path, Path]:
    """Return the caption file of each photo in a folder that has one."""
    folders = {photo.parent for photo in photos}
    texts = [path for folder in folders for path in folder.iterdir() if path.suffix.lower() == CAPTION_SUFFIX]
    names = {str(path): path for path in texts if path.is_file()}
    found = matching_captions(map(str, photos), names)
    return {photo: names[found[str(photo)]] for photo in photos if str(photo) in found}


def matching_captions(photos: Iterable[str], texts: Iterable[str]) -> dict[str, str]:
    """Return the caption path of each photo that has one, by its path: `dog.png.txt` or `dog.txt` for `dog.png`.

    A name that differs only in case or in its Unicode form also matches, unless another photo has the exact name.
    """
    left = set(texts)
    photos = list(photos)
    found = {photo: text for photo in photos if (text := next((one for one in _names(photo) if one in left), None))}
    left -= set(found.values())
    by_key = {name_key(text): text for text in sorted(left, reverse=True)}
    for photo in photos:
        if photo not in found and (
            text := next(filter(None, (by_key.get(name_key(one)) for one in _names(photo))), None)
        ):
            found[photo] = text
    return found


def _names(photo: str) -> tuple[str, str]:
    return f"{photo}{CAPTION_SUFFIX}", str(PurePosixPath(photo).with_suffix(CAPTION_SUFFIX))


def caption_beside(photo: Path) -> str:
    """Return the caption in the photo's own file; empty if there is none, or none that can be used for training."""
    file = photo.with_suffix(CAPTION_SUFFIX)
    with contextlib.suppress(PhotoError):  # the training names what is wrong with it
        return read_caption(file) if file.is_file() else ""
    return ""


def write_caption(photo: Path, text: str) -> None:
    """Write the photo's own caption, or remove it if the text is empty; raises PhotoError for an invalid one."""
    file, text = photo.with_suffix(CAPTION_SUFFIX), " ".join(text.split())
    if problems := text_problems("caption", text, is_name=False):
        raise PhotoError(f"The caption {problems[0].message}", "", f"At most {MAX_PROMPT_CHARS} characters.")
    if text:
        write_text(file, text + "\n")
    else:
        file.unlink(missing_ok=True)


def edit_captions(
    photos: Iterable[Path], usual: str, *, find: str = "", replacement: str = "", prefix: str = ""
) -> int:
    """Replace text in the captions of these photos, then put a prefix before each; return how many changed.

    A photo without its own caption has the `usual` one, which only a prefix changes. Raises PhotoError for a caption
    that became too long; those before it are already changed then.
    """
    count, prefix = 0, " ".join(prefix.split())
    for photo in photos:
        own = caption_beside(photo)
        new = own.replace(find, replacement) if find else own
        if prefix and not new.startswith(prefix):
            new = f"{prefix} {new or usual}"
        if new != own:
            write_caption(photo, new)
            count += 1
    return count


def read_caption(file: Path) -> str:
    """Return the caption in one line, empty if the file has no text; raises PhotoError naming the file."""
    try:
        return _words(read_text(file, MAX_CAPTION_BYTES), file.name)
    except TextFileError as error:
        raise PhotoError(error.what, error.why, error.todo) from None


def decoded_caption(content: bytes, name: str) -> str:
    """Decode a caption from the bytes of a file, as `read_caption` does."""
    try:
        return _words(decoded(content, name, MAX_CAPTION_BYTES), name)
    except TextFileError as error:
        raise PhotoError(error.what, error.why, error.todo) from None


def _words(text: str, name: str) -> str:
    words = " ".join(text.split())
    if problems := text_problems("caption", words, is_name=False):
        fault = "is too long" if len(words) > MAX_PROMPT_CHARS else "cannot be used"
        what = f'The caption "{printable(name)}" {fault}.'
        raise PhotoError(what, f"It {problems[0].message}", "Write a shorter one in plain text.")
    return words
