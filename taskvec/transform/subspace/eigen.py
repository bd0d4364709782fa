"""Symmetric matrices in float64: Gram matrices, triangular factors, and a few eigenpairs at one end of a spectrum.

On the CPU all of it goes through SciPy, which has the symmetric product and the subset driver that torch lacks. A call
of torch's or NumPy's BLAS in between would cost more than it computes: each has threads of its own, which spin for a
while after a call and take the core that the next one needs.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

# Up to this share of a spectrum LAPACK's subset driver is faster than the whole decomposition
FEW = 0.25
SINGULAR = 1e-10  # a pivot below this share of the largest keeps fewer than six digits
BLOCK = 512  # rows that become float64 at a time: a whole copy takes longer than its product


def lower_gram(rows: Tensor) -> Tensor:
    """Return the lower triangle of rows^T rows [n, n] float64 of rows [m, n]; what stands above means nothing.

    On the CPU the symmetric product of BLAS, which torch does not expose, takes half of the multiplications. The
    factorisations below read a lower triangle only.
    """
    if rows.device.type != "cpu":
        rows = rows.double()
        return rows.mT @ rows
    from scipy.linalg.blas import dsyrk

    if rows.dtype == torch.float64:
        # BLAS takes Fortran's order without a copy: either the rows have it, or their transpose does.
        transpose = rows.mT.is_contiguous()
        array = rows.numpy() if transpose else rows.contiguous().numpy().T
        return torch.from_numpy(dsyrk(1.0, array, trans=transpose, lower=True))
    gram = np.zeros((rows.shape[1], rows.shape[1]), order="F")
    for block in rows.split(BLOCK):
        array = _doubles(block)
        gram = dsyrk(1.0, array.T, beta=1.0, c=gram, lower=True, overwrite_c=True)
    return torch.from_numpy(gram)


def times(rows: Tensor, right: Tensor) -> Tensor:
    """Return rows B [m, k] float64 of rows [m, n] in any dtype and B [n, k] float64."""
    if rows.device.type != "cpu":
        return rows.double() @ right
    from scipy.linalg.blas import dgemm

    product = np.empty((len(rows), right.shape[1]))
    for start in range(0, len(rows), BLOCK):
        block = _doubles(rows[start : start + BLOCK])
        product[start : start + BLOCK] = dgemm(1.0, block.T, right.numpy(), trans_a=True)
    return torch.from_numpy(product)


def _doubles(rows: Tensor) -> np.ndarray:
    if rows.dtype == torch.bfloat16:
        rows = rows.float()  # NumPy has no bfloat16
    return rows.numpy().astype(np.float64)


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


def lower_inverse(lower: Tensor) -> Tensor:
    """Return L^-1 [n, n], lower, of a lower triangle L."""
    if lower.device.type != "cpu":
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False)
    from scipy.linalg.lapack import dtrtri

    inverse, _ = dtrtri(lower.numpy(), lower=True)
    return torch.from_numpy(inverse)


def times_transposed(matrix: Tensor, lower: Tensor) -> Tensor:
    """Return A L^T [m, n] of A [m, n] and a lower triangle L [n, n]."""
    if lower.device.type != "cpu":
        return matrix @ lower.mT
    from scipy.linalg.blas import dtrmm

    product = dtrmm(1.0, lower.numpy(), matrix.numpy(), side=1, trans_a=True, lower=True)
    return torch.from_numpy(product)


def transposed_times(lower: Tensor, right: Tensor) -> Tensor:
    """Return L^T B [n, k] of a lower triangle L [n, n] and B [n, k]."""
    if lower.device.type != "cpu":
        return lower.mT @ right
    from scipy.linalg.blas import dtrmm

    product = dtrmm(1.0, lower.numpy(), right.numpy(), trans_a=True, lower=True)
    return torch.from_numpy(product)


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
