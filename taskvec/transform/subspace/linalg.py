"""Products, factors and a few eigenpairs of matrices.

On the CPU all of it goes through SciPy, which has the symmetric product and the subset driver that torch lacks. A call
of torch's or NumPy's BLAS in between would cost more than it computes: each has threads of its own, which spin for a
while after a call and take the core that the next one needs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Up to this share of a spectrum LAPACK's subset driver is faster than the whole decomposition
FEW = 0.25
BLAS = {torch.float32: np.float32, torch.float64: np.float64}
SINGULAR = 1e-10  # a pivot below this share of the largest keeps fewer than six digits


def copied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a copy in a dtype."""
    if not (_is_for_blas(tensor) and dtype in BLAS):
        return tensor.to(dtype, copy=True)
    return torch.from_numpy(tensor.numpy().astype(BLAS[dtype], order="C"))


def _is_for_blas(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in BLAS


def inner_product(left: Tensor, right: Tensor) -> Tensor:
    """Return sum_ij A_ij B_ij."""
    if not _is_for_blas(left):
        return (left * right).sum()
    total = np.einsum("ij,ij->", left.numpy(), right.numpy())
    return torch.as_tensor(total)


def plus(tensor: Tensor, other: Tensor, factor: float) -> Tensor:
    """Return A + factor B [m, n]; A is used up."""
    if not _is_for_blas(tensor):
        return tensor.add_(other, alpha=factor)
    array = tensor.numpy()
    array += factor * other.numpy()
    return tensor


def times(left: Tensor, right: Tensor) -> Tensor:
    """Return A B [m, k] of A [m, n] and B [n, k]."""
    if not _is_for_blas(left):
        return left @ right
    from scipy.linalg.blas import get_blas_funcs

    a, transpose_a = _in_fortran_order(left)
    b, transpose_b = _in_fortran_order(right)
    gemm = get_blas_funcs("gemm", (a, b))
    return torch.from_numpy(gemm(1.0, a, b, trans_a=transpose_a, trans_b=transpose_b))


def less_product(tensor: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return A - B C [m, n] of A [m, n] in row-major order, which is used up, B [m, k] and C [k, n]."""
    if not _is_for_blas(tensor):
        return tensor.addmm_(left, right, alpha=-1)
    from scipy.linalg.blas import get_blas_funcs

    b, transpose_b = _in_fortran_order(left)
    c, transpose_c = _in_fortran_order(right)
    array = tensor.numpy().T
    gemm = get_blas_funcs("gemm", (array,))
    rest = gemm(
        -1.0,
        c,
        b,
        trans_a=not transpose_c,
        trans_b=not transpose_b,
        beta=1.0,
        c=array,
        overwrite_c=True,
    )
    return torch.from_numpy(rest.T)


def times_lower(left: Tensor, lower: Tensor) -> Tensor:
    """Return A L [m, n] of A [m, n], which is used up, and a lower triangle L [n, n]."""
    if not _is_for_blas(left):
        return left @ lower
    from scipy.linalg.blas import dtrmm

    product = dtrmm(1.0, lower.numpy(), left.numpy(), side=1, lower=True, overwrite_b=True)
    return torch.from_numpy(product)


def lower_gram(rows: Tensor) -> Tensor:
    """Return the lower triangle of B^T B [n, n] of B [m, n], and zeros above it.

    On the CPU the symmetric product of BLAS, which torch does not expose, takes half of the multiplications.
    """
    if not _is_for_blas(rows):
        return (rows.mT @ rows).tril()
    from scipy.linalg.blas import dsyrk

    array, is_transposed = _in_fortran_order(rows)
    return torch.from_numpy(dsyrk(1.0, array, trans=not is_transposed, lower=True))


def shifted(lower: Tensor, directions: Tensor, by: float) -> Tensor:
    """Return A + by P P^T of a symmetric A [n, n], given by its lower triangle, which is used up, and P [n, k]."""
    if not _is_for_blas(lower):
        return torch.addmm(lower, directions, directions.mT, alpha=by).tril()
    from scipy.linalg.blas import dsyrk

    total = dsyrk(by, directions.numpy(), beta=1.0, c=lower.numpy(), lower=True, overwrite_c=True)
    return torch.from_numpy(total)


def _in_fortran_order(matrix: Tensor) -> tuple[np.ndarray, bool]:
    """Return a matrix or its transpose, whichever BLAS takes without a copy, and whether it is the transpose."""
    if matrix.mT.is_contiguous():
        return matrix.numpy(), False
    return matrix.contiguous().numpy().T, True


def cholesky(lower: Tensor) -> Tensor | None:
    """Return L [n, n] with L L^T equal to a positive definite matrix; None for one that is singular.

    The matrix is given by its lower triangle with zeros above it, which is used up.
    """
    if not _is_for_blas(lower):
        factor, failed = torch.linalg.cholesky_ex(lower)
    else:
        from scipy.linalg.lapack import dpotrf

        array, failed = dpotrf(lower.numpy(), lower=True, clean=False, overwrite_a=True)
        factor = torch.from_numpy(array)
    pivots = factor.diagonal().square()
    if failed or pivots.min() < SINGULAR * pivots.max():
        return None
    return factor


def solve_transposed(lower: Tensor, right: Tensor) -> Tensor:
    """Return L^-T B [n, k] of a lower triangle L [n, n] and B [n, k]."""
    if not _is_for_blas(lower):
        return torch.linalg.solve_triangular(lower.mT, right, upper=True)
    from scipy.linalg.lapack import dtrtrs

    solution, _ = dtrtrs(lower.numpy(), right.numpy(), lower=True, trans=True)
    return torch.from_numpy(solution)


def orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis [n, k] of a few columns [n, k]."""
    if not _is_for_blas(columns):
        return torch.linalg.qr(columns).Q
    from scipy.linalg import qr

    basis, _ = qr(columns.numpy(), mode="economic", check_finite=False)
    return torch.from_numpy(basis)


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [m, k], sigma [k] and V^T [k, n] of a matrix with few rows or columns, k = min(m, n)."""
    if not _is_for_blas(matrix):
        return torch.linalg.svd(matrix, full_matrices=False)
    from scipy.linalg import svd as decompose

    found = decompose(matrix.numpy(), full_matrices=False, check_finite=False)
    left, values, right = map(torch.from_numpy, found)
    return left, values, right


def smallest_eigenpairs(lower: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` eigenvalues of a symmetric matrix [n, n], ascending, and eigenvectors [n, count].

    The matrix is given by its lower triangle, which is used up.
    """
    if not _is_for_blas(lower) or count > FEW * len(lower):
        values, vectors = torch.linalg.eigh(lower)
        return values[:count], vectors[:, :count]
    from scipy.linalg import eigh

    values, vectors = eigh(
        lower.numpy(),
        subset_by_index=(0, count - 1),
        driver="evr",
        overwrite_a=True,
        check_finite=False,
    )
    return torch.from_numpy(values), torch.from_numpy(vectors)
