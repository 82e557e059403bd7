"""A base in the number format for generation, while another one trains."""

import copy
import dataclasses
import itertools
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from dreambooth.formats.layout import Part
from dreambooth.models.base import Base

if TYPE_CHECKING:
    import torch


def in_half(base: Base, dtype: "torch.dtype", *, kept: Collection[str]) -> Base:
    """Return a base with its parts in fp16 or bf16 where their numbers allow it.

    The parts named in `kept` stay unchanged, and the result has copies of them; the others are changed in place.
    """
    parts = {
        part.name: _part_in_half(base, part, dtype, is_kept=part.name in kept) for part in base.family.layout.parts
    }
    return dataclasses.replace(base, **parts)


def _part_in_half(base: Base, part: Part, dtype: "torch.dtype", *, is_kept: bool) -> Any:
    module = getattr(base, part.name)
    wanted = dtype_for_pictures(part, module, dtype)
    if next(module.parameters()).dtype == wanted:
        return module
    return _copied(module, wanted) if is_kept else module.to(wanted)


def dtype_for_pictures(part: Part, module: Any, dtype: "torch.dtype") -> "torch.dtype":
    """Return the number format of a part for generation in `dtype`.

    Half precision overflows in SDXL's VAE unless it was adapted for it and says so; in bf16 the VAE's rounding would be
    visible.
    """
    import torch

    if part.can_learn:
        return dtype
    if part.needs_range and module.config.force_upcast:
        return torch.float32
    return torch.float16 if dtype == torch.bfloat16 else dtype


def _copied(module: Any, dtype: "torch.dtype") -> Any:
    """Return a copy in another number format, made tensor by tensor."""
    import torch

    copies: dict[int, Any] = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        cast = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        copies[id(tensor)] = torch.nn.Parameter(cast, requires_grad=False) if is_parameter else cast
    return copy.deepcopy(module, copies)
