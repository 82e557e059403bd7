"""Recognizes files that are not weights by their first bytes, and says what to do."""

import re
import zipfile
from pathlib import Path

from dreambooth.errors import BaseModelError
from dreambooth.formats.tensor_names import safetensors_header

FIRST_BYTES = 1024
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
CONVERT_FORMAT = "Choose the .safetensors or .ckpt file of an SD 1.x, 2.x or SDXL model."
# (the file's first bytes, what it is, why it cannot be read, what to do)
FORMATS: tuple[tuple[re.Pattern[bytes], str, str, str], ...] = (
    (
        re.compile(re.escape(LFS_POINTER)), "a Git LFS pointer",
        "It refers to the weights but does not contain them: the repository was cloned without Git LFS.",
        "Run `git lfs pull` in that folder, or download the file itself.",
    ),
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|\?xml)", re.IGNORECASE), "a web page",
        "A login or error page was saved instead of the file.",
        "Download the file itself: on the Hub by its download link, with a token where one is needed.",
    ),
    (re.compile(rb"GGUF"), "a GGUF file", "Its weights are quantized for inference and cannot be trained.",
     CONVERT_FORMAT),
    (re.compile(rb"\x08[\x01-\x7f]\x12.{1,80}?(pytorch|onnx|keras|tensorflow|caffe2)", re.DOTALL), "an ONNX model",
     "It holds a graph for inference.", CONVERT_FORMAT),
)  # fmt: skip


def refuse_other_formats(path: Path) -> None:
    """Raise BaseModelError for a file that evidently holds no weights, or not all of them; reads only a header."""
    with path.open("rb") as file:
        first = file.read(FIRST_BYTES)
    for pattern, kind, why, todo in FORMATS:
        if pattern.match(first):
            raise BaseModelError(f'"{path.name}" is {kind}.', why, todo)
    if path.suffix.lower() == ".onnx":
        raise BaseModelError(f'"{path.name}" is an ONNX model.', "It holds a graph for inference.", CONVERT_FORMAT)
    if path.suffix.lower() == ".safetensors":
        _refuse_other_length(path)


def refuse_renamed(path: Path) -> None:
    """Raise BaseModelError for a .safetensors file with another suffix, or the other way around."""
    is_named_so = path.suffix.lower() == ".safetensors"
    if not is_named_so and _safetensors_bytes(path) is not None and not zipfile.is_zipfile(path):
        raise BaseModelError(
            f'"{path.name}" is a .safetensors file under another name.', "The suffix decides how a file is read.",
            f'Rename it to "{path.with_suffix(".safetensors").name}".',
        )  # fmt: skip
    if is_named_so and zipfile.is_zipfile(path):
        raise BaseModelError(
            f'"{path.name}" is a .ckpt file under another name.', "The suffix decides how a file is read.",
            f'Rename it to "{path.with_suffix(".ckpt").name}".',
        )  # fmt: skip


def _refuse_other_length(path: Path) -> None:
    wanted, found = _safetensors_bytes(path), path.stat().st_size
    if wanted is None or wanted == found or zipfile.is_zipfile(path):
        return
    if found < wanted:
        why = f"It ends {wanted - found:,} bytes early: a download or copy was interrupted."
    else:
        why = f"It has {found - wanted:,} bytes behind its last tensor: something was added to it."
    raise BaseModelError(f'"{path.name}" cannot be read.', why, "Download it again.")


def _safetensors_bytes(path: Path) -> int | None:
    """Return the size that a .safetensors file declares; None for any other file."""
    header = safetensors_header(path)
    if header is None:
        return None
    try:
        ends = [int(about["data_offsets"][1]) for about in header.tensors.values()]
    except (ValueError, KeyError, TypeError, IndexError, OverflowError):
        return None
    return header.num_bytes + max(ends, default=0)


# Folders -------------------------------------------------------------------------------------------------------------


def refuse_other_folder(folder: Path) -> None:
    """Raise BaseModelError for a folder without model_index.json that is recognized as something else."""
    if (folder / "snapshots").is_dir() and (folder / "refs").is_dir():
        newest = max((folder / "snapshots").iterdir(), key=lambda entry: entry.stat().st_mtime, default=None)
        repository = folder.name.removeprefix("models--").replace("--", "/")
        raise BaseModelError(
            f'"{folder}" is the cache of the Hub repository "{repository}".', "The model is deeper inside of it.",
            f'Name "{repository}"' + (f', or its folder "snapshots/{newest.name}".' if newest else "."),
        )  # fmt: skip
    if cached := sorted(folder.glob("models--*--*")):
        repository = cached[0].name.removeprefix("models--").replace("--", "/")
        raise BaseModelError(
            f'"{folder}" is the cache of the Hub, with {len(cached)} repositories.', "It is not a model itself.",
            f'Name one of them, for example "{repository}".',
        )  # fmt: skip
    if any((folder / name).exists() for name in ("config.json", "diffusion_pytorch_model.safetensors")):
        raise BaseModelError(
            f'"{folder}" is one part of a diffusers model.', "model_index.json is missing.",
            "Name the folder that holds model_index.json.",
        )  # fmt: skip
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in (".safetensors", ".ckpt")]
    if len(files) == 1:
        raise BaseModelError(
            f'"{folder}" is not a diffusers model.', f'It holds one file, "{files[0].name}".', f'Name "{files[0]}".'
        )


def refuse_pointers(folder: Path) -> None:
    """Raise BaseModelError for a file of a model's folder whose content is not what its name says."""
    for file in sorted(file for file in folder.glob("*/*") if file.is_file()):
        is_small = file.stat().st_size < FIRST_BYTES
        if file.suffix in (".safetensors", ".bin") or (is_small and file.read_bytes().startswith(LFS_POINTER)):
            refuse_other_formats(file)
