"""Symmetric matrices in float64: Gram matrices, Cholesky factors, and a few eigenpairs at one end of a spectrum."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

# Up to this share of a spectrum LAPACK's subset driver is faster than the whole decomposition
FEW = 0.25
SINGULAR = 1e-10  # a pivot below this share of the largest keeps fewer than six digits


def lower_gram(rows: Tensor) -> Tensor:
    """Return the lower triangle of rows^T rows [n, n] float64 of rows [m, n]; what stands above means nothing.

    On the CPU the symmetric product of BLAS, which torch does not expose, takes half of the multiplications. The
    factorisations below read a lower triangle only.
    """
    rows = rows.double()
    if rows.device.type != "cpu":
        return rows.mT @ rows
    from scipy.linalg.blas import dsyrk

    # BLAS takes Fortran's order without a copy: either the rows have it, or their transpose does.
    transpose = rows.mT.is_contiguous()
    array = rows.numpy() if transpose else rows.contiguous().numpy().T
    return torch.from_numpy(dsyrk(1.0, array, trans=transpose, lower=True))


def cholesky(matrix: Tensor) -> Tensor | None:
    """Return L [n, n], lower, with L L^T equal to a positive definite matrix; None for one that is singular.

    Only its lower triangle is read.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    if failed or pivots.min() < SINGULAR * pivots.max():
        return None
    return factor


def eigenpairs(
    matrix: Tensor, count: int, end: Literal["smallest", "largest"]
) -> tuple[Tensor, Tensor]:
    """Return ``count`` eigenvalues of a symmetric matrix [n, n] from one end inwards, and eigenvectors [n, count].

    Only its lower triangle is read.
    """
    size = len(matrix)
    if matrix.device.type != "cpu" or count > FEW * size:
        values, vectors = torch.linalg.eigh(matrix)
        if end == "largest":
            values, vectors = values.flip(0), vectors.flip(1)
        return values[:count], vectors[:, :count]
    from scipy.linalg import eigh

    wanted = (0, count - 1) if end == "smallest" else (size - count, size - 1)
    values, vectors = eigh(matrix.numpy(), subset_by_index=wanted, driver="evr", check_finite=False)
    values, vectors = torch.from_numpy(values), torch.from_numpy(vectors)
    if end == "largest":
        values, vectors = values.flip(0), vectors.flip(1)
    return values, vectors


def root(matrix: Tensor) -> Tensor:
    """Return R [n, n] with R R^T equal to a symmetric positive semi-definite matrix, which may be singular."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()
