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


def negligible(dtype: torch.dtype) -> float:
    """Return the share of the largest singular value that counts as zero in a matrix of a dtype."""
    return 10 * torch.finfo(dtype).eps


def leading_svd(matrix: Tensor, rank: int | None = None, floor: float = 0.0) -> Svd:
    """Return the up to ``rank`` leading singular triples (None: all) whose values are not negligible, and above a floor.

    What is left of a matrix after a projection needs a floor: its largest value may be rounding noise itself.
    """
    tolerance = negligible(matrix.dtype)
    wide = matrix.double()
    if wide.shape[0] > wide.shape[1]:
        left, values, right = _leading(wide.T, rank, tolerance, floor)
        return Svd(right.T, values, left.T)
    return _leading(wide, rank, tolerance, floor)


def _leading(wide: Tensor, rank: int | None, tolerance: float, floor: float) -> Svd:
    squares, vectors = torch.linalg.eigh(wide @ wide.T)
    values = squares.flip(0).clamp_(min=0).sqrt_()
    count = len(values) if rank is None else min(rank, len(values))
    if count == 0 or values[0] <= floor:
        return Svd(wide[:, :0], values[:0], wide[:0])
    if values[count - 1] < max(SAFE * values[0], floor):
        left, values, right = torch.linalg.svd(wide, full_matrices=False)
        smallest = max(tolerance * float(values[0]), floor)
        count = min(count, int((values > smallest).sum()))
        return Svd(left[:, :count], values[:count], right[:count])
    left = vectors.flip(1)[:, :count]
    right = (left.T @ wide) / values[:count, None]
    return Svd(left, values[:count], right)


def polar(matrix: Tensor) -> Tensor:
    """Return U V^T of the singular vectors whose values are not negligible: the nearest partial isometry, float64.

    Of a matrix of full rank it is the orthogonal factor of the polar decomposition.
    """
    tolerance = negligible(torch.float32)
    tall = matrix.shape[0] >= matrix.shape[1]
    columns = matrix if tall else matrix.T
    squares, vectors = torch.linalg.eigh(columns.T @ columns)
    largest = squares[-1] if len(squares) else 0
    if largest <= 0:
        return torch.zeros_like(matrix)
    if squares[0] < (SAFE**2) * largest:
        left, values, right = torch.linalg.svd(columns, full_matrices=False)
        count = int((values > tolerance * values[0]).sum())
        found = left[:, :count] @ right[:count]
    else:
        found = columns @ ((vectors * squares.rsqrt()) @ vectors.T)
    return found if tall else found.T


def joined(parts: Sequence[Svd]) -> Tensor:
    """Return polar([U_1 ... U_k]) diag(values) polar([V_1; ...; V_k]): the parts with their directions decorrelated."""
    left = polar(torch.cat([part.left for part in parts], dim=1))
    right = polar(torch.cat([part.right for part in parts], dim=0))
    values = torch.cat([part.values for part in parts])
    return (left * values) @ right
