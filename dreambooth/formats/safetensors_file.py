"""A .safetensors file written one tensor at a time, always as the same bytes.

The library writes the same format, but wants all tensors at once (a full-size model in fp16 beside its fp32 original is
2 GB more) and orders the metadata anew each time.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The data begins on a multiple of this, as the library has it, so that mapped tensors are aligned.
ALIGNMENT_BYTES = 8
# Linux takes four times as long over a mapped tensor that is given to it in one piece.
WRITE_BYTES = 1 << 20


def write_safetensors(
    path: Path,
    weights: "Mapping[str, Tensor]",
    metadata: Mapping[str, str],
    *,
    float_dtype: "torch.dtype | None" = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """Write the tensors, floats in `float_dtype` if one is given, and return the CRC-32 of each one's bytes.

    The bytes depend on names, numbers and metadata alone, not on the order in which they come. Two tensors' copies are
    held at a time: the next one is made while one is written.
    """
    dtypes = {name: stored_dtype(tensor, float_dtype) for name, tensor in weights.items()}
    # Wide numbers first keep every tensor aligned to its own width.
    order = sorted(weights, key=lambda name: (-dtypes[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        begin, end = end, end + weights[name].numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": dtype_name(dtypes[name]), "shape": list(weights[name].shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    checksums = {}
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as ahead:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        due = ahead.submit(weights[order[0]].to, "cpu", dtypes[order[0]]) if order else None
        for name, following in zip(order, [*order[1:], None], strict=True):
            assert due is not None
            tensor = due.result()
            due = None if following is None else ahead.submit(weights[following].to, "cpu", dtypes[following])
            data = as_bytes(tensor)
            for start in range(0, len(data), WRITE_BYTES):
                file.write(data[start : start + WRITE_BYTES])
            checksums[name] = zlib.crc32(data)
            on_tensor()
    return checksums


def stored_dtype(tensor: "Tensor", float_dtype: "torch.dtype | None") -> "torch.dtype":
    """Return the number format a tensor is written in: integers stay what they are."""
    return float_dtype if float_dtype is not None and tensor.is_floating_point() else tensor.dtype


def dtype_name(dtype: "torch.dtype") -> str:
    """Return the format's name of a number format; raises KeyError for one that no model of ours has."""
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
        torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    return names[dtype]


def as_bytes(tensor: "Tensor") -> memoryview:
    """Return a tensor's numbers as they lie in memory, without a copy where it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
