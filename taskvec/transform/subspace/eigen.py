"""Gram matrices and the low end of their spectra, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 0.25  # up to this share of a spectrum LAPACK's subset driver is faster than the whole decomposition


def gram(rows: Tensor) -> Tensor:
    """Return rows^T rows [n, n] float64 of rows [m, n].

    On the CPU the symmetric product of BLAS, which torch does not expose, takes half of the multiplications.
    """
    rows = rows.double()
    if rows.device.type != "cpu":
        return rows.mT @ rows
    from scipy.linalg.blas import dsyrk

    # BLAS takes Fortran's order without a copy: either the rows have it, or their transpose does.
    transpose = rows.mT.is_contiguous()
    array = rows.numpy() if transpose else rows.contiguous().numpy().T
    upper = torch.from_numpy(dsyrk(1.0, array, trans=transpose))
    return upper.triu() + upper.triu(1).mT


def smallest_eigenpairs(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` smallest eigenvalues, ascending, and eigenvectors [n, count] of a symmetric [n, n]."""
    size = len(matrix)
    if count == 0:
        return matrix.new_zeros(0), matrix.new_zeros(size, 0)
    if matrix.device.type != "cpu" or count > FEW * size:
        values, vectors = torch.linalg.eigh(matrix)
        return values[:count], vectors[:, :count]
    from scipy.linalg import eigh

    values, vectors = eigh(matrix.numpy(), subset_by_index=(0, count - 1), driver="evr", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def root(matrix: Tensor) -> Tensor:
    """Return R [n, n] with R R^T equal to a symmetric positive semi-definite matrix, which may be singular."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()
