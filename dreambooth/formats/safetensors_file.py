"""A .safetensors file written one tensor at a time, always as the same bytes.

The library writes the same format, but wants all tensors at once (a full-size model in fp16 beside its fp32 original is
2 GB more) and orders the metadata anew each time.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# The data begins on a multiple of this, as the library has it, so that mapped tensors are aligned.
ALIGNMENT_BYTES = 8


def write_safetensors(
    path: Path,
    weights: "Mapping[str, Tensor]",
    metadata: Mapping[str, str],
    *,
    float_dtype: "torch.dtype | None" = None,
    on_tensor: Callable[[], None] = lambda: None,
) -> None:
    """Write the tensors, floats in `float_dtype` if one is given; holds one tensor's copy at a time.

    The bytes depend on names, numbers and metadata alone, not on the order in which they come.
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
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(as_bytes(weights[name].to(dtypes[name])))
            on_tensor()


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
