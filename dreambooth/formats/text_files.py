"""Text files from users: UTF-8 with or without a byte order mark, or UTF-16 with one, whichever editor wrote them."""

import codecs
from pathlib import Path

from dreambooth.errors import TextFileError

MAX_TEXT_BYTES = 4 * 1024**2
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the file's text without its byte order mark; raises TextFileError naming the file and the reason."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = f"{getattr(error, 'strerror', None) or error}."
        raise TextFileError(f'"{printable(path.name)}" cannot be read.', why, "Check its name and place.") from None
    return decoded(content, path.name, max_bytes)


def decoded(content: bytes, name: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a file's bytes; raises TextFileError naming the file and the reason.

    No other encoding is guessed: text decoded with the wrong one would be used for training.
    """
    what = f'"{printable(name)}" cannot be read.'
    if len(content) > max_bytes:
        raise TextFileError(what, f"It is too long: it has more than {max_bytes:,} bytes.", "Make it shorter.")
    try:
        text = content.decode("utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextFileError(what, f"{_reason(content, error)}.", "Save it as UTF-8.") from None
    if "\0" in text:
        raise TextFileError(what, "It has NUL characters, as UTF-16 without a mark does.", "Save it as UTF-8.")
    return text


def printable(text: str) -> str:
    """Return the text with everything unprintable replaced by a question mark."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _reason(content: bytes, error: UnicodeDecodeError) -> str:
    if error.encoding.startswith("utf-16"):
        return "Its UTF-16 text is cut short or damaged"
    line = content.count(b"\n", 0, error.start) + 1
    return f"Line {line} has the byte 0x{content[error.start]:02X}, which is not UTF-8 text"
