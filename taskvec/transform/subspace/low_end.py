"""The low end of a singular value decomposition, without the rest of it.

The smallest singular values of K [n, m] are roots of the smallest eigenvalues of K K^T. A few of those cost a fraction
of an SVD, but float64 has to span the square of the values' range. Most of this range are a few directions: inputs of a
transformer's layers have a large mean, so that the first singular value of W C exceeds the ninth 20 to 1e6 times. These
are taken out of K first, and K K^T has the digits for the others.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.transform.subspace.linalg import (
    less_product,
    lower_gram,
    orthonormal,
    shifted,
    smallest_eigenpairs,
    svd,
    times,
)

# A Gram matrix squares singular values; if the one at the cut is below this share of the trace, the SVD has to do it.
GRAM_DEPTH = 1e-9
WIDTH, TURNS = 4, 2  # of the orthogonal iteration, which gains four digits a turn at a ratio of 100
EPSILON = torch.finfo(torch.float64).eps


class Low(NamedTuple):
    """The low end of K = U S V^T: sigma [count] ascending, and left singular vectors [n, count]."""

    values: Tensor
    directions: Tensor


def low_end(matrix: Tensor, count: int) -> Low:
    """Return the ``count`` smallest of the n singular values of K [n, m] float64, n <= m, which is used up.

    From K K^T where float64 spans the values between the cut and what is left after :func:`leading`, else by an SVD.
    It is the subspace that has the digits: values far below the largest that is returned have fewer.
    """
    largest = leading(matrix, len(matrix) - count)
    taken_out = times(largest.mT, matrix)
    rest = less_product(matrix, largest, taken_out)
    gram = lower_gram(rest.mT)
    scale = float(gram.trace())
    # Where its largest directions were K has zeros now, which belong to the high end
    gram = shifted(gram, largest, by=2 * scale)
    squares, vectors = smallest_eigenpairs(gram, count)
    if squares[-1] >= GRAM_DEPTH * scale:
        return Low(squares.clamp(min=0).sqrt(), vectors)
    whole = rest + largest @ taken_out
    left, values, _ = torch.linalg.svd(whole, full_matrices=False)
    last = len(values) - count
    return Low(values[last:].flip(0), left[:, last:].flip(1))


def leading(matrix: Tensor, most: int) -> Tensor:
    """Return left singular vectors [n, k] of the largest singular values of K [n, m], k <= ``most``.

    Those of an orthogonal iteration that are exact enough to be taken out: with a residual r = K K^T u - sigma^2 u this
    errs by |r|^2 / sigma^2 on the rest of K K^T, and leaving them in by the rounding of sigma^2.
    """
    width = min(WIDTH, most)
    if width == 0:
        return matrix.new_zeros(len(matrix), 0)
    seeded = torch.Generator().manual_seed(0)
    start = torch.randn(matrix.shape[1], width, dtype=matrix.dtype, generator=seeded)
    basis = orthonormal(times(matrix, start.to(matrix.device)))
    for _ in range(TURNS):
        basis = orthonormal(times(matrix, times(matrix.mT, basis)))
    left, values, right = svd(times(basis.mT, matrix))
    directions = times(basis, left)
    residuals = times(matrix, right.mT) * values - directions * values**2
    is_exact = residuals.norm(dim=0) <= EPSILON**0.5 * values**2
    count = int(is_exact.cumprod(0).sum())
    return directions[:, :count]
