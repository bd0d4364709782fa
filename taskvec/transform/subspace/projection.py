"""PAVE as a projection of a layer's outputs.

Of W C = U S V^T the truncation SVD_r(W C) C^-1 equals U_r U_r^T W. Purification needs neither this inverse nor the
directions it keeps: W_r = W - P P^T W, where P holds the pruned left singular vectors (spec 1.2). All is float64, for
the smallest directions are those that float32 loses first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from taskvec.transform.subspace.eigen import (
    cholesky,
    eigenpairs,
    lower_gram,
    lower_inverse,
    root,
    times,
    times_transposed,
    transposed_times,
)

Whitening = Literal["cov", "sqrt"]

# Gram matrices square singular values; if the one at the cut is below this share of the trace, the SVD has to do it.
GRAM_DEPTH = 1e-9
SVD_DEPTH = 1e-13  # the same for singular values themselves, relative to the largest that was seen


@dataclass(frozen=True)
class Pruned:
    """The directions that a purified layer loses.

    ``directions`` [out, R - rank] float64, orthonormal, R = min(out, in); ``rank`` directions are kept. ``energy`` is
    the pruned share of sum_j sigma_j^2 of W C, ``error`` the share of the outputs' energy that is lost,
    tr(D C D^T) / tr(W C W^T) with D = P P^T W. ``determined`` is false where more than R - rank directions carry
    nothing, so that the data leaves open which of them are pruned.
    """

    directions: Tensor
    rank: int
    energy: float
    error: float
    determined: bool


class _Low(NamedTuple):
    """The low end of W F = U S V^T: sigma [count] ascending, and left singular vectors [out, count]."""

    values: Tensor
    directions: Tensor


@dataclass(frozen=True)
class _Layer:
    """A layer's weight, its moment in float64, and F [in, in]: C + damping I, or with "sqrt" its root."""

    weight: Tensor
    moment: Tensor
    damping: float
    whitening: Whitening

    @property
    def damped(self) -> Tensor:
        """C + damping I."""
        damped = (
            self.moment.mT.clone()
        )  # symmetric, and in the order that LAPACK reads without a copy
        damped.diagonal().add_(self.damping)
        return damped

    @cached_property
    def doubles(self) -> Tensor:
        """W in float64."""
        return self.weight.double()

    @cached_property
    def product(self) -> Tensor:
        """W (C + damping I) [out, in] float64."""
        return self.doubles @ self.damped

    def total(self) -> Tensor:
        """Return sum_j sigma_j^2 of W F."""
        return (self.product * (self.product if self.whitening == "cov" else self.doubles)).sum()

    def activated(self) -> Tensor:
        """Return tr(W C W^T)."""
        damped = (self.product * self.doubles).sum()
        return damped - self.damping * self.doubles.square().sum()


def pruned_directions(
    weight: Tensor, moment: Tensor, rank: int, *, damping: float = 0.0, whitening: Whitening = "cov"
) -> Tensor:
    """Return P [out, R - rank]: the left singular directions of W (C + damping I) beyond the ``rank`` leading ones.

    ``weight`` [out, in], ``moment`` C [in, in], the mean of x x^T over the layer's input rows. With ``whitening``
    "sqrt" the directions are those of W L with C = L L^T, the best ones for the outputs themselves (spec property 9).

    Raises:
        ValueError: if shapes do not fit or ``rank`` is not between 0 and R.
    """
    layer = _layer(weight, moment, damping, whitening)
    return _low(layer, _count(weight, rank)).directions


def prune(
    weight: Tensor, moment: Tensor, rank: int, *, damping: float = 0.0, whitening: Whitening = "cov"
) -> Pruned:
    """Return :func:`pruned_directions` with what they cost.

    Raises:
        ValueError: if shapes do not fit or ``rank`` is not between 0 and R.
    """
    layer = _layer(weight, moment, damping, whitening)
    count = _count(weight, rank)
    # The smallest one that is kept tells whether the cut is determined
    looked_at = count + 1 if rank else count
    low = _low(layer, looked_at)
    directions, total = low.directions[:, :count], layer.total()
    lost = directions.mT @ layer.doubles
    lost_activation = (lost @ layer.moment * lost).sum()
    smallest_kept = low.values[count:].sum()
    is_a_cut = count > 0 and rank > 0
    return Pruned(
        directions,
        rank,
        energy=_share(low.values[:count].square().sum(), total),
        error=_share(lost_activation, layer.activated()),
        determined=not is_a_cut or bool(smallest_kept > SVD_DEPTH * total.sqrt()),
    )


def without(tensor: Tensor, weight: Tensor, directions: Tensor) -> Tensor:
    """Return tensor - P P^T W [out, in] in the tensor's dtype; P [out, pruned].

    Of the weight itself that is the purified layer, of its delta the purified delta.
    """
    directions = directions.to(tensor.dtype)
    lost = directions.mT @ weight
    return torch.addmm(tensor, directions, lost, alpha=-1)


def _layer(weight: Tensor, moment: Tensor, damping: float, whitening: Whitening) -> _Layer:
    inputs = weight.shape[1]
    if tuple(moment.shape) != (inputs, inputs):
        raise ValueError(
            f"a moment {list(moment.shape)} does not fit a weight {list(weight.shape)}"
        )
    return _Layer(weight, moment.double(), damping, whitening)


def _count(weight: Tensor, rank: int) -> int:
    full = min(weight.shape)
    if not 0 <= rank <= full:
        raise ValueError(f"rank {rank} is not between 0 and {full}")
    return full - rank


def _low(layer: _Layer, count: int) -> _Low:
    """Return the low end of W F by the cheapest route that is exact."""
    outputs, inputs = layer.weight.shape
    if count == 0:
        return _Low(layer.moment.new_zeros(0), layer.moment.new_zeros(outputs, 0))
    by_shape = _low_of_wide if outputs < inputs else _low_of_tall
    return by_shape(layer, count) or _low_by_svd(layer, count)


def _low_of_wide(layer: _Layer, count: int) -> _Low | None:
    """Return the smallest eigenpairs of W F F^T W^T; None where the cut is too deep for float64."""
    # With "sqrt" F F^T is C + damping I itself, without a root.
    by_whitening = {
        "cov": lambda: lower_gram(layer.product.mT),
        "sqrt": lambda: layer.product @ layer.doubles.mT,
    }
    matrix = by_whitening[layer.whitening]()
    squares, vectors = eigenpairs(matrix, count, "smallest")
    if squares[-1] < GRAM_DEPTH * matrix.trace():
        return None
    return _Low(squares.clamp(min=0).sqrt(), vectors)


def _low_of_tall(layer: _Layer, count: int) -> _Low | None:
    """Return the largest eigenpairs of the inverse; None where W or F is singular, or the cut too high for float64.

    With W^T W = L L^T the columns of W L^-T are orthonormal, and in their coordinates W F F^T W^T is L^T F F^T L, of
    size [in, in]. Its inverse keeps the accuracy of both factors, whose condition numbers the matrix itself squares.
    """
    lower, factor = cholesky(lower_gram(layer.weight)), cholesky(layer.damped)
    if lower is None or factor is None:
        return None
    lower, factor = lower_inverse(lower), lower_inverse(factor)
    # With C + damping I = R R^T the inverse is H^T H, H = R^-1 L^-T for "sqrt" and R^-T R^-1 L^-T for "cov".
    half = times_transposed(factor, lower)
    if layer.whitening == "cov":
        half = transposed_times(factor, half)
    matrix = lower_gram(half)
    inverse_squares, vectors = eigenpairs(matrix, count, "largest")
    if inverse_squares[-1] < GRAM_DEPTH * matrix.trace():
        return None
    right = transposed_times(lower, vectors)
    return _Low(inverse_squares.rsqrt(), times(layer.weight, right))


def _low_by_svd(layer: _Layer, count: int) -> _Low:
    product = layer.product if layer.whitening == "cov" else layer.doubles @ root(layer.damped)
    left, values, _ = torch.linalg.svd(product, full_matrices=False)
    last = len(values) - count
    return _Low(values[last:].flip(0), left[:, last:].flip(1))


def _share(part: Tensor, whole: Tensor) -> float:
    """Return part / whole, 0 where there is nothing to lose."""
    return float(part / whole) if whole > 0 else 0.0
