"""Checks that a training changes its weights at all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dreambooth.errors import TrainingError

if TYPE_CHECKING:
    from torch import Tensor


def first_rows(parameters: "Sequence[Tensor]") -> "list[Tensor]":
    """Return a copy of the first row of every tensor, of a bias all of it: 2.5 MB for SD 1.5's UNet."""
    return [_first_row(parameter).clone() for parameter in parameters]


def refuse_standing_still(before: "Sequence[Tensor]", parameters: "Sequence[Tensor]", num_steps: int) -> None:
    """Raise TrainingError if no tensor's first row differs by a bit from `before`."""
    pairs = zip(before, parameters, strict=True)
    if not any(not row.equal(_first_row(parameter)) for row, parameter in pairs):
        raise TrainingError(
            f"The weights have not changed in {num_steps} steps.",
            "The learning rate is too small for the number format, or every update overflowed.",
            "Raise the learning rate, or train with mixed_precision bf16 or no.",
        )


def _first_row(parameter: "Tensor") -> "Tensor":
    # By slices: a shard may have no row at all.
    return parameter.detach()[(slice(1),) * (parameter.ndim - 1)]
