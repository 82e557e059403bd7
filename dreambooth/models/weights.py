"""Files of weights, read only as tensors: the one place where a pickle is opened, without ever running it.

Tensors are read from the mapped file on use, so that holding a model's names costs no memory.
"""

import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dreambooth.errors import BaseModelError, quoted
from dreambooth.models.file_formats import refuse_other_formats, refuse_renamed

if TYPE_CHECKING:
    from torch import Tensor

# diffusers puts a variant's name before a shard's number, older versions after it.
WEIGHTS_NAME = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(\.(?P<before>\w+))?(-\d+-of-\d+)?(\.(?P<behind>\w+))?\.(safetensors|bin)"
)
# The names in a pickle of plain tensors, so that anything else is reported as the reason.
_HARMLESS = re.compile(r"(torch|collections\.OrderedDict|_codecs\.encode|builtins\.(set|bytearray)|__builtin__\.set)\b")
MAX_EMBEDDING_BYTES = 10**8
_READ_ERRORS = (
    OSError, ValueError, RuntimeError, EOFError, MemoryError, OverflowError, IndexError, KeyError, TypeError,
    AttributeError, RecursionError, AssertionError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_weights(path: Path, *, is_safetensors: bool | None = None) -> "dict[str, Tensor]":
    """Return a file's tensors by name; raises BaseModelError saying what else is in it, and how to resave it.

    Anything but .safetensors is a pickle, of which only plain tensors are read: anything else may be code. Weights may
    be under `state_dict`, as trainers write them. The suffix decides the format unless `is_safetensors` does.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if is_safetensors is None:
        is_safetensors = path.suffix.lower() == ".safetensors"
    try:
        refuse_other_formats(path)
        if is_safetensors:
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        loaded = _unpickled(path)
    except (pickle.UnpicklingError, SafetensorError, *_READ_ERRORS) as error:
        raise _unreadable(path, error) from None
    return _tensors_in(path, loaded)


def _unpickled(path: Path) -> Any:
    """Return the content of a pickle of plain tensors; raises many kinds of errors for others."""
    import torch

    _refuse_other_zips(path)
    # Files from before torch 1.6 are no archives, and cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _tensors_in(path: Path, loaded: Any) -> "dict[str, Tensor]":
    """Return the tensors of a checkpoint, from under `state_dict` if it has one.

    Raises BaseModelError for other contents, saying where the tensors are.
    """
    import torch

    if isinstance(loaded, dict) and "string_to_param" in loaded:
        raise _textual_inversion(path)
    has_state_dict = isinstance(loaded, dict) and "state_dict" in loaded
    weights = loaded["state_dict"] if has_state_dict else loaded
    weights = weights if isinstance(weights, dict) else {}
    found = {name: value for name, value in weights.items() if isinstance(name, str) and torch.is_tensor(value)}
    if found:
        return found
    what = f'"{path.name}" is not a complete model.'
    for name, inner in weights.items():
        if isinstance(inner, dict) and any(map(torch.is_tensor, inner.values())):
            place = "".join(f'["{one}"]' for one in (["state_dict", name] if has_state_dict else [name]))
            raise BaseModelError(
                what, f'Its tensors are nested deeper, under "{name}".',
                f"Save them by themselves: torch.save(torch.load(file, weights_only=True){place}, 'model.ckpt').",
            )  # fmt: skip
    why = "Its `state_dict` holds no tensors." if has_state_dict else "It holds no tensors by name."
    raise BaseModelError(what, why, "Choose a file that holds a whole SD 1.x, 2.x or SDXL model.")


def _textual_inversion(path: Path) -> BaseModelError:
    return BaseModelError(
        f'"{path.name}" is an embedding (textual inversion), a word for a model.', "It cannot be trained by itself.",
        "Choose the base model that it was made for.",
    )  # fmt: skip


def file_metadata(path: Path) -> dict[str, str]:
    """Return the metadata in the header of a .safetensors file, or under `metadata` in one of our .ckpt files.

    None if there is none, or no such file.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() == ".ckpt":
        return _pickled_metadata(path)
    if path.suffix.lower() != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError):
        return {}


def _pickled_metadata(path: Path) -> dict[str, str]:
    try:
        # What is no archive would be read whole.
        loaded = _unpickled(path) if zipfile.is_zipfile(path) else None
    except (pickle.UnpicklingError, *_READ_ERRORS):
        return {}
    found = loaded.get("metadata") if isinstance(loaded, dict) else None
    texts = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in texts if isinstance(name, str) and isinstance(text, str)}


def load_errors() -> tuple[type[Exception], ...]:
    """Return what the libraries raise for a part whose configuration and weights cannot be loaded."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    return (*_READ_ERRORS, ZeroDivisionError, SafetensorError, StrictDataclassError)


def part_weights(folder: Path) -> "dict[str, Tensor]":
    """Return the weights of a diffusers part, in one file or several, without a variant if there are such.

    Raises BaseModelError for a folder without any, and for damaged files.
    """
    stems = "(diffusion_pytorch_model|model|pytorch_model)"
    for wanted in (rf"{stems}\.safetensors", rf"{stems}-\d+-of-\d+\.safetensors", rf"{stems}\..+\.safetensors"):
        files = sorted(file for file in folder.glob("*.safetensors") if re.fullmatch(wanted, file.name))
        if files:
            return {name: tensor for file in files for name, tensor in read_weights(file).items()}
    weights = pickled_weights(folder, only_variant(folder))
    if weights is None:
        raise BaseModelError(f"{folder} has no weights.", "No .safetensors file is in it.", "Save the model again.")
    return weights


def only_variant(folder: Path) -> str | None:
    """Return the variant (`fp16`, as in model.fp16.safetensors) of a part that only has weights of variants.

    The first by name if there are several; None if there are weights without a variant.
    """
    names = [WEIGHTS_NAME.fullmatch(file.name) for file in sorted(folder.iterdir())]
    found = [match["before"] or match["behind"] for match in names if match]
    return None if None in found else next(iter(found), None)


def pickled_weights(folder: Path, variant: str | None) -> "dict[str, Tensor] | None":
    """Return the weights of a diffusers part that was saved before safetensors; None if it has the newer format."""
    infix = f".{variant}" if variant else ""
    newer = (f"diffusion_pytorch_model{infix}.safetensors", f"model{infix}.safetensors")
    if any((folder / name).is_file() for name in newer) or any(folder.glob("*.safetensors.index*.json")):
        return None
    older = [f"{stem}{middle}.bin" for middle in (infix, "") for stem in ("diffusion_pytorch_model", "pytorch_model")]
    file = next((folder / name for name in older if (folder / name).is_file()), None)
    return None if file is None else read_weights(file)


def filled(
    build: Callable[[], Any], weights: "Mapping[str, Tensor]", *, optional_prefix: str = "", as_stored: bool = False
) -> Any:
    """Return the module that `build` makes, with these weights in the module's own number formats.

    as_stored: it has the given tensors themselves, which may be mapped from a file, for a caller that copies them.
    `optional_prefix` is what some versions of the library put before some of the module's names, and the weights' names
    lack.

    Raises KeyError, saying which are missing, unknown or misshapen, if they do not fit. That is checked before any
    memory is allocated: both a configuration and a tensor in a file can claim any size.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = build()
    own = module.state_dict()
    if optional_prefix and any(name.startswith(optional_prefix) for name in own):
        weights = {name if name in own else optional_prefix + name: tensor for name, tensor in weights.items()}
    if wrong := _differences(own, weights):
        raise KeyError(wrong)
    if not as_stored:
        # Copies: a mapped tensor would change with its file.
        weights = {name: tensor.to(own[name].dtype, copy=True).contiguous() for name, tensor in weights.items()}
    module.load_state_dict(weights, assign=True)
    return module


def not_finite(weights: "Mapping[str, Tensor]") -> str:
    """Return the name of the first tensor with NaN or infinity, or None.

    Costs one addition per number: a sum with a number that is not finite is not finite either.
    """
    import torch

    for name, tensor in weights.items():
        wide = torch.float32 if tensor.is_floating_point() and tensor.itemsize < 4 else None
        if tensor.is_floating_point() and not tensor.sum(dtype=wide).isfinite() and not tensor.isfinite().all():
            return name
    return ""


def refuse_not_finite(part: str, module: Any, place: Path) -> None:
    """Raise BaseModelError naming file and tensor if a part read from there has NaN or infinity."""
    if name := not_finite(module.state_dict()):
        files = [file for file in sorted(place.glob("*")) if file.suffix in (".safetensors", ".bin")]
        file = files[0] if len(files) == 1 else place
        raise BaseModelError(
            f'"{file}" is damaged.', f"Its {part} tensor {name} holds numbers that are not finite (NaN or infinity).",
            "Download the model again, or choose an earlier step of the run that saved it.",
        )  # fmt: skip


def _differences(own: "Mapping[str, Tensor]", weights: "Mapping[str, Tensor]") -> str:
    """Return which tensors are missing, unknown or of another shape, at most three of each; empty if all fit."""
    missing, unknown = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [
        f"{name} is {_shape(weights[name])} instead of {_shape(tensor)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = (("Missing", missing), ("Unknown", unknown), ("Other shapes", misshapen))
    return "; ".join(f"{kind}: {named(names)}" for kind, names in found if names)


def named(names: Sequence[str]) -> str:
    """Return the first three of these names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _shape(tensor: "Tensor") -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"


def _refuse_other_zips(path: Path) -> None:
    """Raise ValueError for a zip with compressed entries (torch stores tensors uncompressed), and for TorchScript."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("it is a compressed archive, which no checkpoint of weights is")
        if any(entry.filename.endswith("constants.pkl") for entry in entries):
            raise ValueError("it is a TorchScript program, no checkpoint of weights")


def _unreadable(path: Path, error: Exception) -> BaseModelError:
    # torch's own message advises loading it anyway, so only the name of what is in the file is passed on.
    program = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    name = program[1] if program else _program_in(path)
    if name.startswith("torch.nn.") and _holds(path, b"string_to_param"):
        return _textual_inversion(path)
    if name:
        return BaseModelError(
            f"{path.name} holds more than weights.", f"It would run {name} when opened.",
            "Ask for a .safetensors file. Or load it on a disposable machine and keep only the tensors of its "
            "`state_dict`: safetensors.torch.save_file(tensors, 'model.safetensors').",
        )  # fmt: skip
    refuse_renamed(path)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        why = "It is damaged, or no checkpoint of weights."
    else:
        why = quoted(error)
    return BaseModelError(f"{path.name} cannot be read.", why, "Download it again, as .safetensors if there is one.")


def _holds(path: Path, text: bytes) -> bool:
    """Return whether a small file contains this text."""
    return path.stat().st_size < MAX_EMBEDDING_BYTES and text in path.read_bytes()


def _program_in(path: Path) -> str:
    """Return the first name in a pickle that does not belong to a tensor, or None; nothing in it is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if entry.endswith("data.pkl"):
                        with archive.open(entry) as file:
                            return _named_in(file)
        with path.open("rb") as plain:
            # Older files are several consecutive pickles.
            return next((name for name in (_named_in(plain) for _ in range(5)) if name), "")
    except _READ_ERRORS:
        return ""


def _named_in(file: IO[bytes]) -> str:
    texts: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(file):
            name = ""
            if opcode.name in ("GLOBAL", "INST"):
                name = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            elif opcode.name in ("EXT1", "EXT2", "EXT4"):
                name = f"extension {argument}"
            elif isinstance(argument, str):
                texts.append(argument[:200])
            if name and not _HARMLESS.match(name):
                return name if name.isprintable() else repr(name)
    except (*_READ_ERRORS, pickle.UnpicklingError):
        return ""
    return ""
