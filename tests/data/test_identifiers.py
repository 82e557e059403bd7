"""The word for the subject: what a base reads, and that proposals mean nothing in it."""

import json
from pathlib import Path

import pytest

from dreambooth.data.identifiers import Vocabulary, judged, proposed, vocabulary_of
from dreambooth.models.base import STARTER, starter_folder
from dreambooth.models.tokenizer import load_tokenizer


def clip_like() -> Vocabulary:
    """Return a small vocabulary in CLIP's manner: frequent words first, rare pieces last."""
    words = ["dog", "cat", "the", "photo"]
    merges: list[tuple[str, str]] = []
    for word in words:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
    merges += [("z", "w"), ("s", "k"), ("sk", "s</w>"), ("d", "og")]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    padded = [*pieces[:-4], *(f"filler{number}" for number in range(900)), *pieces[-4:]]
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    return Vocabulary({piece: number for number, piece in enumerate(padded)}, ranks)


@pytest.mark.parametrize(
    ("word", "fine", "said"),
    [
        ("zwx", True, "2 tokens (zw, x)"),
        ("dog", False, "already knows this word"),
        ("Dog", False, "already knows this word"),
        ("sks", True, "rarely seen"),
        ("zwxdog", False, "zw, x, dog, and “dog” already has a meaning"),
        ("catz", True, "tokens"),
        ("", False, "Enter a word"),
        ("two words", False, "letters and digits"),
        ("<b>", False, "letters and digits"),
        ("x" * 21, False, "letters and digits"),
        ("qqjkvzxw", False, "learned slowly"),
    ],
)
def test_a_word_is_judged_by_the_vocabulary(word: str, fine: bool, said: str) -> None:
    verdict = judged(word, "cup", clip_like())
    assert (verdict.fine, said in verdict.sentence) == (fine, True), verdict


def test_a_known_word_inside_is_named() -> None:
    verdict = judged("zwthe", "cup", Vocabulary({"the</w>": 5, "zw": 700, **{f"f{n}": n for n in range(990)}}, {
        ("z", "w"): 0, ("h", "e</w>"): 1, ("t", "he</w>"): 2}))  # fmt: skip
    assert verdict.sentence == "Read as zw, the, and “the” already has a meaning; choose another word."


def test_the_class_word_is_no_identifier() -> None:
    assert not judged("cup", "coffee cup", None).fine
    assert judged("zwx", "cup", None).fine


def test_the_starter_reads_it_as_its_tokenizer_does() -> None:
    vocabulary = vocabulary_of(STARTER)
    assert vocabulary is not None
    tokenizer = load_tokenizer(str(starter_folder() / "tokenizer"), None)
    for word in ("zwx", "dog", "backpack", "ohwx", "qjk7", "rainbow", "sunny"):
        assert vocabulary.pieces(word) == tokenizer.tokenize(word), word
    assert judged("zwx", "dog", vocabulary).fine
    assert not judged("dog", "toy", vocabulary).fine


def test_proposals_are_fine_short_and_never_the_same() -> None:
    vocabulary, taken = vocabulary_of(STARTER), ["zwx"]
    assert proposed([], "dog", vocabulary) == "zwx"
    for _ in range(25):
        word = proposed(taken, "dog", vocabulary)
        assert word not in taken
        assert judged(word, "dog", vocabulary).fine
        taken.append(word)
    assert proposed(["zwx"], "dog", None) == proposed(["zwx"], "dog", None)


def test_a_base_without_a_readable_tokenizer_has_none(tmp_path: Path) -> None:
    assert vocabulary_of("nobody/nothing") is None
    assert vocabulary_of("not\0a name") is None
    for content in ("", "[]", "{", json.dumps({"a": "b"}), "[" * 100_000):
        folder = tmp_path / "base" / "tokenizer"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(content)
        (folder / "merges.txt").write_text("#version\na b\n")
        assert vocabulary_of(str(tmp_path / "base")) is None
