"""A .safetensors file written one tensor at a time, always as the same bytes.

The library writes the same format, but needs all tensors at once (a full-size model in fp16 beside its fp32 original is
2 GB more) and orders the metadata differently each time.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Data starts at a multiple of this, as in the library, so that mapped tensors are aligned.
ALIGNMENT_BYTES = 8
# Linux takes two to four times as long for larger pieces, mapped or not.
WRITE_BYTES = 1 << 20


def write_safetensors(
    path: Path,
    weights: "Mapping[str, Tensor]",
    metadata: Mapping[str, str],
    *,
    float_dtype: "torch.dtype | None" = None,
    on_tensor: Callable[[], None] = lambda: None,
    fetch: "Callable[[Tensor], Tensor] | None" = None,
) -> None:
    """Write the tensors, floats in `float_dtype` if given.

    The bytes depend only on names, numbers and metadata, not on the order of the tensors. Copies of two tensors are
    held at a time: the next one is made while one is written. `fetch` loads a tensor when its turn comes, in this
    thread (see `written_order`).
    """
    dtypes = {name: stored_dtype(tensor, float_dtype) for name, tensor in weights.items()}
    order = written_order(weights, float_dtype)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        begin, end = end, end + weights[name].numel() * dtypes[name].itemsize
        header[name] = {
            "dtype": dtype_name(dtypes[name]), "shape": list(weights[name].shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as ahead:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        if fetch is None:
            tensors = _made_ahead([(weights[name], dtypes[name]) for name in order], ahead)
        else:
            tensors = (fetch(weights[name]).to("cpu", dtypes[name]) for name in order)
        for tensor in tensors:
            for piece in in_pieces(as_bytes(tensor)):
                file.write(piece)
            on_tensor()


def in_pieces(data: memoryview) -> Iterator[memoryview]:
    """Yield the bytes in pieces of the size that Linux writes fastest to an unbuffered file."""
    for start in range(0, len(data), WRITE_BYTES):
        yield data[start : start + WRITE_BYTES]


def written_order(weights: "Mapping[str, Tensor]", float_dtype: "torch.dtype | None" = None) -> list[str]:
    """Return the names in the order of the file: wide numbers first keep every tensor aligned to its own width."""
    return sorted(weights, key=lambda name: (-stored_dtype(weights[name], float_dtype).itemsize, name))


def _made_ahead(due: "list[tuple[Tensor, torch.dtype]]", ahead: ThreadPoolExecutor) -> "Iterator[Tensor]":
    """Yield each tensor in its number format, while the next one is made."""
    casts = itertools.cycle((Cast(), Cast()))
    made = ahead.submit(next(casts), *due[0]) if due else None
    for following in [*due[1:], None]:
        if made is not None:
            tensor = made.result()
            made = None if following is None else ahead.submit(next(casts), *following)
            yield tensor


class Cast:
    """Casts tensors into one memory buffer, each overwriting the one before it.

    Allocating and freeing memory for each costs more time than casting: the system clears every page anew.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def __call__(self, tensor: "Tensor", dtype: "torch.dtype") -> "Tensor":
        """Return the tensor on the CPU in this number format: itself if it already is."""
        if tensor.dtype == dtype and tensor.device.type == "cpu":
            return tensor
        import torch

        num_bytes = tensor.numel() * dtype.itemsize
        if self._memory is None or self._memory.numel() < num_bytes:
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory[:num_bytes].view(dtype).view(tensor.shape).copy_(tensor)


def stored_dtype(tensor: "Tensor", float_dtype: "torch.dtype | None") -> "torch.dtype":
    """Return the number format in which a tensor is written: integers stay integers."""
    return float_dtype if float_dtype is not None and tensor.is_floating_point() else tensor.dtype


def stored_bytes(weights: "Mapping[str, Tensor]", float_dtype: "torch.dtype | None" = None) -> int:
    """Return the bytes of tensors in a file, without its header, with floats in `float_dtype` if given."""
    return sum(tensor.numel() * stored_dtype(tensor, float_dtype).itemsize for tensor in weights.values())


def dtype_name(dtype: "torch.dtype") -> str:
    """Return the file format's name of a dtype; raises KeyError for one that none of our models has."""
    import torch

    names = {
        torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
        torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip
    return names[dtype]


def as_bytes(tensor: "Tensor") -> memoryview:
    """Return a tensor's numbers as bytes, without a copy if it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def same_bits(one: "Tensor", other: "Tensor") -> bool:
    """Return whether two tensors of one number format have the same bits, NaNs included."""
    import torch

    if one.shape != other.shape:
        return False
    bits, others = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    even = len(bits) // 8 * 8
    # Eight bytes at a time: torch compares as many one-byte numbers per second.
    return torch.equal(bits[:even].view(torch.int64), others[:even].view(torch.int64)) and torch.equal(
        bits[even:], others[even:]
    )
