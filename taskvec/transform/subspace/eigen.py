"""Symmetric matrices in float64: Gram matrices, Cholesky factors, and a few eigenpairs at one end of a spectrum.

On the CPU all of it goes through SciPy, which has the symmetric product and the subset driver that torch lacks. Calls
that alternate between the two would also wait for each other: their BLAS have threads of their own, which spin for a
while after each call.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
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
    if matrix.device.type == "cpu":
        from scipy.linalg.lapack import dpotrf

        array, failed = dpotrf(matrix.numpy(), lower=True)
        factor = torch.from_numpy(array)
    else:
        factor, failed = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    if failed or pivots.min() < SINGULAR * pivots.max():
        return None
    return factor


def inverse(factor: Tensor) -> Tensor:
    """Return (L L^T)^-1 [n, n] of a Cholesky factor L [n, n]."""
    if factor.device.type != "cpu":
        return torch.cholesky_inverse(factor)
    from scipy.linalg.lapack import dpotri

    array, _ = dpotri(factor.numpy(), lower=True)  # zero above the diagonal, like the factor
    array += np.tril(array, -1).T
    return torch.from_numpy(array)


def solve_lower(factor: Tensor, right: Tensor, *, transposed: bool = False) -> Tensor:
    """Return L^-1 B, or with ``transposed`` L^-T B, [n, m] of a lower triangle L [n, n] and B [n, m]."""
    if factor.device.type != "cpu":
        triangle = factor.mT if transposed else factor
        return torch.linalg.solve_triangular(triangle, right, upper=transposed)
    from scipy.linalg.lapack import dtrtrs

    solved, _ = dtrtrs(factor.numpy(), right.numpy(), lower=True, trans=transposed)
    return torch.from_numpy(solved)


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
    values, vectors = eigh(
        matrix.numpy(),
        subset_by_index=wanted,
        driver="evr",
        check_finite=False,
    )
    values, vectors = torch.from_numpy(values), torch.from_numpy(vectors)
    if end == "largest":
        values, vectors = values.flip(0), vectors.flip(1)
    return values, vectors


def root(matrix: Tensor) -> Tensor:
    """Return R [n, n] with R R^T equal to a symmetric positive semi-definite matrix, which may be singular."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt()
