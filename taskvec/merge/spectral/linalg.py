"""Singular subspaces and polar factors through Gram matrices in float64, several times cheaper than an SVD.

For A [o, i] with o <= i the eigenvalues of A A^T [o, o] are the squared singular values, its eigenvectors U, and V^T =
diag(1/s) U^T A. Squaring loses what is smaller than about 1e-8 of the largest singular value, so whatever asks for a
value below ``SAFE`` of it is answered by an SVD. Singular values up to ``negligible`` times the largest, which float32
cannot tell from zero, count as zero: directions without a value are not determined by the matrix, and merges that give
all directions the same value would fill them with rounding noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SAFE = 1e-5


class Svd(NamedTuple):
    """The leading part of A = left diag(values) right, [o, k], [k], [k, i] in float64, values descending."""

    left: Tensor
    values: Tensor
    right: Tensor

    def first(self, count: int) -> Svd:
        """Return the ``count`` leading triples."""
        return Svd(self.left[:, :count], self.values[:count], self.right[:count])

    def transposed(self) -> Svd:
        """Return the triples of A^T."""
        return Svd(self.right.T, self.values, self.left.T)

    def product(self) -> Tensor:
        """Return the matrix [o, i] of these triples."""
        return (self.left * self.values) @ self.right


def negligible(dtype: torch.dtype) -> float:
    """Return the share of the largest singular value that counts as zero in a matrix of a dtype."""
    return 10 * torch.finfo(dtype).eps


def leading_svd(matrix: Tensor, rank: int | None = None, floor: float = 0.0) -> Svd:
    """Return the up to ``rank`` leading singular triples (None: all) with values above ``floor`` and not negligible.

    What is left of a matrix after a projection needs a floor: its largest value may be rounding noise itself.
    """
    tolerance = negligible(matrix.dtype)
    wide = matrix.double()
    rows, columns = wide.shape
    wanted = min(rows, columns)
    if rank is not None:
        wanted = min(wanted, rank)
    if rows <= columns:
        return _leading(wide, wanted, tolerance, floor)
    return _leading(wide.T, wanted, tolerance, floor).transposed()


def _leading(wide: Tensor, wanted: int, tolerance: float, floor: float) -> Svd:
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    values = squares.flip(0).clamp_(min=0).sqrt_()
    left = vectors.flip(1)
    largest = float(values[0]) if wanted else 0.0
    if largest <= floor:
        return Svd(left[:, :0], values[:0], wide[:0])
    trusted = max(SAFE * largest, floor)
    if values[wanted - 1] < trusted:
        exact = Svd(*torch.linalg.svd(wide, full_matrices=False))
        smallest = max(tolerance * largest, floor)
        known = int((exact.values > smallest).sum())
        return exact.first(min(wanted, known))
    left, values = left[:, :wanted], values[:wanted]
    right = left.T @ wide
    return Svd(left, values, right / values.unsqueeze(1))


class Polar(NamedTuple):
    """The polar factor U V^T [o, i] of a matrix and its singular values, ascending, without the negligible ones."""

    factor: Tensor
    values: Tensor


def polar(matrix: Tensor, tolerance: float) -> Polar:
    """Return the nearest partial isometry of a float64 matrix; ``tolerance`` times the largest value is negligible.

    Of a matrix of full rank it is the orthogonal factor of the polar decomposition.
    """
    rows, columns = matrix.shape
    if rows < columns:
        factor, values = polar(matrix.T, tolerance)
        return Polar(factor.T, values)
    squares, vectors = torch.linalg.eigh(matrix.T @ matrix)
    largest = float(squares[-1]) if columns else 0.0
    if largest <= 0:
        return Polar(torch.zeros_like(matrix), squares[:0])
    if squares[0] < SAFE**2 * largest:
        exact = Svd(*torch.linalg.svd(matrix, full_matrices=False))
        known = int((exact.values > tolerance * exact.values[0]).sum())
        left, values, right = exact.first(known)
        return Polar(left @ right, values.flip(0))
    values = squares.sqrt()
    inverse_root = (vectors / values) @ vectors.T
    return Polar(matrix @ inverse_root, values)


def joined(parts: Sequence[Svd]) -> Tensor:
    """Return polar([U_1 ... U_k]) diag(values) polar([V_1; ...; V_k]): the parts with their directions decorrelated."""
    tolerance = negligible(torch.float32)
    left = torch.cat([part.left for part in parts], dim=1)
    values = torch.cat([part.values for part in parts])
    right = torch.cat([part.right for part in parts], dim=0)
    straight = Svd(polar(left, tolerance).factor, values, polar(right, tolerance).factor)
    return straight.product()
