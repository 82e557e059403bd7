"""The size of a file before it is written, read from the headers of the model's files, without torch."""

from pathlib import Path

from dreambooth.export.archive import model_files
from dreambooth.formats.layout import layout_of, lora_file
from dreambooth.formats.tensor_names import safetensors_header
from dreambooth.records.workspace import RunFolder

FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
# Approximate header bytes for a tensor's name, shape and offsets.
HEADER_BYTES = 150


def single_file_bytes(model_dir: Path, bytes_per_float: int) -> int | None:
    """Return the size of the step as one file, for a LoRA as a LoRA; None if its folder does not tell."""
    if (file := lora_file(model_dir)) is not None:
        return _tensor_bytes(file, bytes_per_float)
    total = 0
    for part in layout_of(model_dir).part_names:
        files = sorted((model_dir / part).glob("*.safetensors"))
        counted = [_tensor_bytes(file, bytes_per_float) for file in files]
        if not counted or None in counted:
            return None
        total += sum(size for size in counted if size is not None)
    return total


def lora_file_bytes(step: Path, bytes_per_float: int) -> int | None:
    """Return the size of a saved LoRA as a file of floats of this width, None if the step has none."""
    file = lora_file(step)
    return None if file is None else _tensor_bytes(file, bytes_per_float)


def _tensor_bytes(file: Path, bytes_per_float: int) -> int | None:
    """Return the bytes of a file's tensors with floats of this width, header included."""
    header = safetensors_header(file)
    if header is None:
        return None
    total = 0
    try:
        for tensor in header.tensors.values():
            begin, end = tensor["data_offsets"]
            stored = FLOAT_BYTES.get(tensor["dtype"])
            total += (end - begin) // stored * bytes_per_float if stored else end - begin
        return int(total) + HEADER_BYTES * len(header.tensors)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None


def folder_bytes(model_dir: Path) -> int:
    """Return the size of the folder's archive."""
    return sum(file.stat().st_size for file in model_files(model_dir))


def samples_bytes(run: RunFolder) -> int | None:
    """Return the size of the archive of a run's samples, None if it has none."""
    files = [file for files in run.samples().values() for file in files]
    return sum(file.stat().st_size for file in files) if files else None
