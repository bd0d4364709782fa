"""The closed forms of merges that are fitted to data, as functions of deltas and statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FISHER_FLOOR = 1e-6  # added to every Fisher entry and to their norms, as in the authors' code
SINGULAR = 1e-10  # of the mean (or largest) eigenvalue: what is below it is no information

Parts = Sequence[Tensor | None]  # of each vector; None stands for zeros


def fisher_shares(norms: Sequence[float], normalised: bool) -> list[float]:
    """Return each vector's c_t: 1/T, times (1/n_t) / sum_s (1/n_s) of the Fishers' norms if ``normalised``."""
    count = len(norms)
    if not normalised:
        return [1 / count] * count
    inverse = [1 / (norm + FISHER_FLOOR) for norm in norms]
    total = sum(inverse) * count
    return [own / total for own in inverse]


def fisher_mean(deltas: Parts, fishers: Parts, shares: Sequence[float]) -> Tensor:
    """Return sum_t c_t (F_t + 1e-6) tau_t / sum_t c_t (F_t + 1e-6), entry by entry, in float64.

    It is the same mean of the weights theta_t, less theta_0 (Matena and Raffel 2022, equation 5).
    """
    like = next(delta for delta in deltas if delta is not None)
    total = torch.zeros_like(like, dtype=torch.float64)
    weights = torch.zeros_like(total)
    for delta, fisher, share in zip(deltas, fishers, shares, strict=True):
        weight = torch.full_like(total, FISHER_FLOOR)
        if fisher is not None:
            weight += fisher.to(total)
        weight *= share
        weights += weight
        if delta is not None:
            total += weight * delta
    return total / weights


def shrunk(gram: Tensor, off_diagonal: float) -> Tensor:
    """Return a Gram matrix with its off-diagonal entries multiplied by ``off_diagonal``, in float64."""
    wide = gram.double()
    lost = wide.diagonal() * (1 - off_diagonal)
    return wide * off_diagonal + torch.diag(lost)


def regression(deltas: Parts, grams: Sequence[Tensor], mean: Tensor) -> Tensor:
    """Return the delta [o, i] that minimises sum_t tr((W - W_t) G_t (W - W_t)^T), G_t [i, i] positive semi-definite.

        W - W_0 = (sum_t tau_t G_t) (sum_t G_t)^-1

    Input directions that no G_t knows leave W undetermined; there it is that of ``mean``. In float64.
    """
    total = sum(grams)
    target = torch.zeros_like(mean, dtype=torch.float64)
    for delta, gram in zip(deltas, grams, strict=True):
        if delta is not None:
            target += delta.double() @ gram
    factor, failed = torch.linalg.cholesky_ex(total)
    if failed or _nearly_singular(factor, total):
        return _regression_on_range(target, total, mean.double())
    return torch.cholesky_solve(target.T, factor).T


def _nearly_singular(factor: Tensor, total: Tensor) -> bool:
    pivots = factor.diagonal().square()
    mean = total.diagonal().mean()
    return bool(pivots.min() <= SINGULAR * mean)


def _regression_on_range(target: Tensor, total: Tensor, mean: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(total)
    known = values > SINGULAR * values[-1]
    basis = vectors[:, known]
    solved = (target @ basis) / values[known]
    averaged = mean @ basis
    return mean + (solved - averaged) @ basis.T
