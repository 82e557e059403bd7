"""The tokenizer of a base: read from files that are known to exist, and checked against its text encoder.

transformers 5 silently makes a tokenizer of two tokens if it finds no vocabulary: every word of a prompt would be the
same.
"""

import json
from pathlib import Path
from typing import Any

from dreambooth.config.training import SD15
from dreambooth.errors import BaseModelError, quoted
from dreambooth.models.download import downloaded_tokenizer, vocabulary_missing

CLIP_TOKENIZER = "openai/clip-vit-large-patch14"
CONNECT = "Connect once so that it can be downloaded, or name one with --tokenizer_name."
# Some text encoders have spare rows, so that their number suits the hardware.
MAX_SPARE_ROWS = 128


def load_tokenizer(source: str, token: str | None, **changes: str) -> Any:
    """Load a tokenizer from a folder or the Hub, with the files at the top or in `tokenizer/`.

    A name that exists locally is never looked up on the Hub. Raises BaseModelError if there is no vocabulary.
    """
    from transformers import CLIPTokenizer

    folder = tokenizer_folder(source, token)
    try:
        return CLIPTokenizer.from_pretrained(str(folder), local_files_only=True, **changes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BaseModelError(
            f'The tokenizer "{source}" cannot be loaded.', quoted(error), "Download it again, or name another."
        ) from error


def tokenizer_folder(source: str, token: str | None) -> Path:
    """Return the local folder with the vocabulary; raises BaseModelError naming the files it lacks."""
    try:
        is_here = Path(source).exists()
    except (OSError, ValueError):  # no name of a file at all: too long, or with a NUL in it
        is_here = False
    folder = Path(source) if is_here else downloaded_tokenizer(source, token, CONNECT)
    place = next((one for one in (folder, folder / "tokenizer") if not vocabulary_missing(one)), None)
    if place is not None and ((place / "tokenizer.json").is_file() or _is_vocabulary(place)):
        return place
    if place is not None:
        why = "Its vocab.json or merges.txt is damaged."
    elif folder.is_file():
        why = "It is a file; a tokenizer is a folder."
    else:
        why = f"It lacks {' and '.join(vocabulary_missing(folder))}."
    raise BaseModelError(
        f'The tokenizer "{source}" cannot be loaded.', why, "Name a folder that holds vocab.json and merges.txt."
    )


def _is_vocabulary(folder: Path) -> bool:
    """Return whether the merges are pairs of the vocabulary's tokens, as the tokenizers library requires.

    For others that library raises a plain Exception, and it silently accepts a file without merges.
    """
    try:
        tokens = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").split("\n")
        pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
        return bool(pairs) and all(len(pair) == 2 and {*pair, "".join(pair)} <= tokens.keys() for pair in pairs)
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def refuse_other_vocabulary(name: str, tokenizer: Any, text_encoder: Any) -> None:
    """Raise BaseModelError if the tokenizer is not the one that the text encoder was trained with."""
    num_tokens, num_rows = len(tokenizer), int(text_encoder.get_input_embeddings().weight.shape[0])
    if not num_rows - MAX_SPARE_ROWS <= num_tokens <= num_rows:
        raise BaseModelError(
            f'The tokenizer "{name}" does not fit the base model.',
            f"It has {num_tokens:,} tokens, and the text encoder {num_rows:,}.",
            "Name the tokenizer that belongs to this base model.",
        )


def tokenizer_for(vocabulary_size: int, starter_dir: Path, token: str | None, pad_token: str | None) -> Any:
    """Return the tokenizer for a single file: the starter's, or CLIP's from the Hub or its cache.

    `pad_token` is the file's, if its family pads prompts with another one than CLIP's tokenizer.
    """
    own = starter_dir / "tokenizer"
    changes = {} if pad_token is None else {"pad_token": pad_token}
    if len(json.loads((own / "vocab.json").read_text("utf-8"))) == vocabulary_size:
        return load_tokenizer(str(own), None, **changes)
    return load_tokenizer(_cached_tokenizer() or CLIP_TOKENIZER, token, **changes)


def _cached_tokenizer() -> str | None:
    """Return CLIP's tokenizer from a base that was used before, so that no network is needed."""
    from huggingface_hub import try_to_load_from_cache

    for name, file in ((CLIP_TOKENIZER, "vocab.json"), (SD15, "tokenizer/vocab.json")):
        found = try_to_load_from_cache(name, file)
        if isinstance(found, str) and not vocabulary_missing(Path(found).parent):
            return str(Path(found).parent)
    return None
