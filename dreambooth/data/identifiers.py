"""The identifier: how the base model tokenizes it, and whether it already has a meaning there.

No word list is needed: the base's own vocabulary shows what it has often seen. A common word is a single token, and the
earlier a token was learned, the more frequent it was (Sennrich et al. 2016, arXiv 1508.07909).
"""

import functools
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dreambooth.models.base import local_base
from dreambooth.models.tokenizer import CLIP_TOKENIZER

WORD_END = "</w>"
SHAPE = re.compile(r"[A-Za-z0-9]{2,20}")
MAX_FILE_BYTES = 16 * 1024**2
MAX_PIECES = 4
MIN_WORD_CHARS = 3
# As a share of the vocabulary in the order of learning: tokens after this were rare.
SELDOM_SHARE = 0.9
COMMON_SHARE = 0.6
RARE_LETTERS = "zxqjkvwhgbfp"


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer and the order in which it merges them."""

    ids: dict[str, int]
    ranks: dict[tuple[str, str], int]

    def pieces(self, word: str) -> list[str]:
        """Return the tokens of a word of plain letters and digits; the last token of each run ends in `</w>`.

        As in CLIP, letters form runs, and every digit is a run of its own.
        """
        return [piece for part in re.findall(r"[a-z]+|[0-9]", word.lower()) for piece in self._joined(part)]

    def _joined(self, part: str) -> list[str]:
        parts = [*part[:-1], part[-1:] + WORD_END]
        while len(parts) > 1:
            pairs = list(zip(parts, parts[1:], strict=False))
            rank, place = min((self.ranks.get(pair, len(self.ranks)), place) for place, pair in enumerate(pairs))
            if rank == len(self.ranks):
                break
            parts[place : place + 2] = ["".join(pairs[place])]
        return parts

    def share(self, piece: str) -> float:
        """Return how late a token was learned, in 0..1; 1 for one that does not exist."""
        return self.ids.get(piece, len(self.ids)) / len(self.ids)


@dataclass(frozen=True)
class Verdict:
    """Whether a word is suitable as an identifier, with the reason in a sentence."""

    fine: bool
    sentence: str


def vocabulary_of(base: str, models_dir: Path | None = None) -> Vocabulary | None:
    """Return the vocabulary of a base if it is on this machine; nothing is downloaded."""
    source = local_base(base, models_dir)
    if source is not None and source.is_dir():
        return _read(source / "tokenizer")
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # All Stable Diffusion 1.x models have CLIP's vocabulary.
    for name, file in ((base, "tokenizer/vocab.json"), (CLIP_TOKENIZER, "vocab.json")):
        try:
            found = try_to_load_from_cache(name, file)
        except (HFValidationError, OSError, ValueError):
            continue
        if isinstance(found, str) and (vocabulary := _read(Path(found).parent)):
            return vocabulary
    return None


def _read(folder: Path) -> Vocabulary | None:
    try:
        files = [(folder / name).stat() for name in ("vocab.json", "merges.txt")]
        if max(file.st_size for file in files) > MAX_FILE_BYTES:
            return None
        return _parsed(folder, files[0].st_mtime_ns)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None


@functools.lru_cache(maxsize=4)
def _parsed(folder: Path, stamp: int) -> Vocabulary | None:
    ids = json.loads((folder / "vocab.json").read_text("utf-8"))
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()
    pairs = [tuple(line.split()) for line in lines if not line.startswith("#version")]
    ranks = {(pair[0], pair[1]): rank for rank, pair in enumerate(pairs) if len(pair) == 2}
    whole = isinstance(ids, dict) and all(isinstance(number, int) for number in ids.values())
    return Vocabulary(ids, ranks) if whole and ids and ranks else None


def judged(identifier: str, class_word: str, vocabulary: Vocabulary | None) -> Verdict:
    """Return whether this identifier is suitable for this base."""
    word = identifier.strip()
    if not word:
        return Verdict(False, "Enter a word for your subject.")
    if not SHAPE.fullmatch(word):
        return Verdict(False, "Use 2 to 20 letters and digits, without spaces or punctuation.")
    if word.lower() in class_word.lower().split():
        return Verdict(False, "That is the class word; choose a made-up word.")
    if vocabulary is None:
        return Verdict(True, "Checked once the base model is downloaded.")
    pieces = vocabulary.pieces(word)
    read_as = ", ".join(piece.removesuffix(WORD_END) for piece in pieces)
    if len(pieces) == 1:
        if vocabulary.share(pieces[0]) < SELDOM_SHARE:
            return Verdict(False, "The base model already knows this word; choose a made-up word.")
        return Verdict(True, "Good choice: a single token that the base model has rarely seen.")
    if known := _known_word(pieces, vocabulary):
        return Verdict(False, f"Read as {read_as}, and “{known}” already has a meaning; choose another word.")
    if len(pieces) > MAX_PIECES:
        return Verdict(False, f"Read as {read_as}: that many tokens are learned slowly; choose a shorter word.")
    return Verdict(True, f"Good choice: {len(pieces)} tokens ({read_as}) with no meaning of their own.")


def _known_word(pieces: Iterable[str], vocabulary: Vocabulary) -> str:
    """Return the first token that is by itself a word the base has often seen, or None."""
    for piece in pieces:
        letters = piece.removesuffix(WORD_END)
        if len(letters) >= MIN_WORD_CHARS and vocabulary.share(letters + WORD_END) < COMMON_SHARE:
            return letters
    return ""


def proposed(taken: Iterable[str], class_word: str, vocabulary: Vocabulary | None) -> str:
    """Return a short word without a meaning in this base that is not taken; the same arguments give the same word."""
    used = {word.lower() for word in taken}
    draw = random.Random(" ".join(sorted(used)))
    word = "zwx"
    while word in used or not judged(word, class_word, vocabulary).fine:
        word = "".join(draw.sample(RARE_LETTERS, 3))
    return word
