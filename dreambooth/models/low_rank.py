"""The change of a weight as a product of two thin matrices: change = up . down, with `rank` columns and rows.

The best one of a rank is the truncated singular value decomposition (Eckart and Young 1936); singular values and one
side's vectors come from the smaller Gram matrix, which is at most 1280 wide in SD 1.5.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """A change of rank r: up (out, r) and down (r, in); for a convolution (out, r, 1, 1) and (r, in, height, width)."""

    up: "Tensor"
    down: "Tensor"

    @property
    def shape(self) -> "tuple[int, ...]":
        """Return the shape of the weight that it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def product(self) -> "Tensor":
        """Return the change in the shape of the weight, in fp32."""
        change: Tensor = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return change.reshape(self.shape)


@dataclass(frozen=True)
class Spectrum:
    """A change's squared singular values, fp64, the largest first, and the singular vectors of its smaller side.

    vectors: (side, kept) fp32, of the rows if `of_rows`, else of the columns.
    """

    energies: "Tensor"
    vectors: "Tensor"
    of_rows: bool


def spectrum(change: "Tensor", max_rank: int) -> Spectrum:
    """Return the spectrum of a change (out, in, ...), with vectors for ranks up to `max_rank`.

    Computed in fp64: squaring halves the digits.
    """
    import torch

    matrix = change.flatten(1).double()
    of_rows = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if of_rows else matrix.T @ matrix
    values, vectors = torch.linalg.eigh(gram)
    kept = min(max_rank, len(values))
    return Spectrum(values.flip(0).clamp_min(0), vectors.flip(1)[:, :kept].float().contiguous(), of_rows)


def factors(change: "Tensor", found: Spectrum, rank: int) -> Factors:
    """Return the best factors of this rank, both of the same norm, so that half precision suits them equally well."""
    matrix, vectors = change.flatten(1).float(), found.vectors[:, :rank]
    # A singular value of zero has zero factors.
    scale = found.energies[:rank].float().pow(0.25)
    inverse = scale.reciprocal().nan_to_num(posinf=0.0)
    if found.of_rows:
        up, down = vectors * scale, inverse[:, None] * (vectors.T @ matrix)
    else:
        up, down = (matrix @ vectors) * inverse, scale[:, None] * vectors.T
    if change.dim() > 2:
        return Factors(up[..., None, None], down.reshape(rank, *change.shape[1:]))
    return Factors(up, down)
