"""The starter's tokenizer: CLIP's byte-level BPE over our own captions.

All 256 bytes and their word-ending forms are in the vocabulary, so any identifier can be tokenized; merges make the
words of the world single tokens (Sennrich et al. 2016, arXiv 1508.07909).
"""

import collections
import json
from collections.abc import Iterable
from pathlib import Path

WORD_END = "</w>"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """Return the visible character that stands for each of the 256 bytes, as GPT-2's BPE assigns them."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in visible else chr(next(hidden)) for byte in range(256)]


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Return the merges that make each of these words one token, the most frequent pairs first."""
    alphabet = byte_alphabet()
    spelled = {
        word: [alphabet[byte] for byte in word.encode()[:-1]] + [alphabet[word.encode()[-1]] + WORD_END]
        for word in sorted(set(words))
    }
    merges: list[tuple[str, str]] = []
    while True:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for pieces in spelled.values():
            pairs.update(zip(pieces, pieces[1:], strict=False))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, pieces in spelled.items():
            spelled[word] = _merged(pieces, best)


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return result


def write_tokenizer(folder: Path, words: Iterable[str], num_tokens: int = 0) -> int:
    """Write vocab.json, merges.txt and the configs for these words; return the vocabulary's size.

    It is padded to `num_tokens` with tokens that occur in no text: nothing merges into them.
    """
    alphabet = byte_alphabet()
    merges = learn_merges(words)
    tokens = [*alphabet, *(piece + WORD_END for piece in alphabet), *dict.fromkeys("".join(pair) for pair in merges)]
    tokens = list(dict.fromkeys(tokens))
    tokens += [f"<|unused {number}|>" for number in range(num_tokens - len(tokens) - 2)]
    vocabulary = {token: number for number, token in enumerate([*tokens, BEGIN, END])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    special = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", "utf-8")
    return len(vocabulary)
