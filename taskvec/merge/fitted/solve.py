"""The closed forms of merges that are fitted to data, as functions of deltas and statistics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FISHER_FLOOR = 1e-6  # added to every Fisher entry and to their norms, as in the authors' code


def fisher_shares(norms: Sequence[float], normalised: bool) -> list[float]:
    """Return each vector's c_t: 1/T, times (1/n_t) / sum_s (1/n_s) of the Fishers' norms if ``normalised``."""
    count = len(norms)
    if not normalised:
        return [1 / count] * count
    inverse = [1 / (norm + FISHER_FLOOR) for norm in norms]
    total = sum(inverse)
    return [own / total / count for own in inverse]


def fisher_mean(deltas: Sequence[Tensor | None], fishers: Sequence[Tensor | None], shares: Sequence[float]) -> Tensor:
    """Return sum_t c_t (F_t + 1e-6) tau_t / sum_t c_t (F_t + 1e-6), entry by entry; None stands for zeros.

    It is the same mean of the weights theta_t, less theta_0 (Matena and Raffel 2022, equation 5). In float64.
    """
    shape = next(delta.shape for delta in deltas if delta is not None)
    device = next(delta.device for delta in deltas if delta is not None)
    total = torch.zeros(shape, dtype=torch.float64, device=device)
    weights = torch.zeros_like(total)
    for delta, fisher, share in zip(deltas, fishers, shares, strict=True):
        weight = torch.full_like(total, share * FISHER_FLOOR)
        if fisher is not None:
            weight += share * fisher.to(total)
        weights += weight
        if delta is not None:
            total += weight * delta
    return total / weights


def shrunk(gram: Tensor, off_diagonal: float) -> Tensor:
    """Return a Gram matrix with its off-diagonal entries multiplied by ``off_diagonal``, in float64."""
    wide = gram.double()
    return wide * off_diagonal + torch.diag(wide.diagonal() * (1 - off_diagonal))


def regression(deltas: Sequence[Tensor | None], grams: Sequence[Tensor], mean: Tensor) -> Tensor:
    """Return the delta [o, i] that minimises sum_t tr((W - W_t) G_t (W - W_t)^T), G_t [i, i] positive semi-definite.

        W - W_0 = (sum_t tau_t G_t) (sum_t G_t)^-1

    Input directions that no G_t knows leave W undetermined; there it is that of ``mean``. In float64.
    """
    total = sum(grams)
    target = torch.zeros_like(mean, dtype=torch.float64)
    for delta, gram in zip(deltas, grams, strict=True):
        if delta is not None:
            target += delta.double() @ gram
    scale = total.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(total)
    pivots = factor.diagonal().square()
    if not failed and len(pivots) and pivots.min() > 1e-10 * scale:
        return torch.cholesky_solve(target.T, factor).T
    return _regression_on_range(target, total, mean.double())


def _regression_on_range(target: Tensor, total: Tensor, mean: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(total)
    known = values > 1e-10 * values[-1]
    basis = vectors[:, known]
    fitted = ((target @ basis) / values[known]) @ basis.T
    return fitted + mean - (mean @ basis) @ basis.T
