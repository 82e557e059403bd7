"""The number formats of a device, and the one place that enables autocast."""

import contextlib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch


def dtype_of(precision: Literal["no", "fp16", "bf16", "fp32"]) -> "torch.dtype":
    """Return the torch dtype of a number format in the settings; `no` (mixed precision) is fp32."""
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)


def autocast(
    device_type: str, dtype: "torch.dtype | None", *, cache: bool = False
) -> contextlib.AbstractContextManager[Any]:
    """Return a context that computes in `dtype` with weights that keep their own; fp32, or None, changes nothing.

    The cache keeps a half-precision copy of every trained weight until the context ends: 2 GB for SD 1.5.
    """
    import torch

    if dtype in (None, torch.float32):
        return contextlib.nullcontext()
    return torch.autocast(device_type, dtype=dtype, cache_enabled=cache)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which weights compute in their own format, whatever the surrounding one."""
    import torch

    return torch.autocast(device_type, enabled=False)
