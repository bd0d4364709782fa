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

from taskvec.statistics.accumulators.spectra import root
from taskvec.transform.subspace.linalg import (
    cholesky,
    copied,
    inner_product,
    less_product,
    lower_gram,
    plus,
    solve_transposed,
    times,
    times_lower,
)
from taskvec.transform.subspace.low_end import Low, low_end

Whitening = Literal["cov", "sqrt"]

# A kept singular value below this share of the root of their sum of squares is rounding
SVD_DEPTH = 1e-13


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


class _Core(NamedTuple):
    """A weight W = Q A [out, in] as A [R, in] and L, where A = L^T is a triangle, or Q [out, R]; neither: A is W."""

    matrix: Tensor
    lower: Tensor | None = None
    basis: Tensor | None = None


@dataclass(frozen=True)
class _Layer:
    """A layer's weight and moment, and F [in, in]: C + damping I, or with "sqrt" its root.

    Everything that is asked of W F = Q A F is asked of K = A F [R, in].
    """

    weight: Tensor
    moment: Tensor
    damping: float
    whitening: Whitening

    @cached_property
    def precise(self) -> Tensor:
        """W in float64."""
        return copied(self.weight, torch.float64)

    @cached_property
    def core(self) -> _Core:
        """Q and A: of a tall W by a Cholesky factorisation of W^T W = A^T A, by a QR one where that is singular."""
        outputs, inputs = self.weight.shape
        if outputs <= inputs:
            return _Core(self.precise)
        lower = cholesky(lower_gram(self.precise))
        if lower is not None:
            return _Core(lower.mT, lower=lower)
        basis, upper = torch.linalg.qr(self.precise)
        return _Core(upper, basis=basis)

    def product(self) -> Tensor:
        """Return K = A F [R, in] float64."""
        core = self.core
        if core.lower is not None:
            return times_lower(self._factor().mT, core.lower).mT
        if self.whitening == "sqrt":
            return times(self._factor().mT, core.matrix.mT).mT
        # A damped copy of the moment of many inputs would take longer than the rest
        product = times(self.moment.mT, core.matrix.mT).mT
        return plus(product, core.matrix, self.damping)

    def _factor(self) -> Tensor:
        damped = copied(self.moment, torch.float64)
        damped.diagonal().add_(self.damping)
        if self.whitening == "cov":
            return damped
        factor = cholesky(damped.tril())
        return root(damped) if factor is None else factor

    def activated(self, product: Tensor) -> Tensor:
        """Return tr(W C W^T)."""
        matrix = self.core.matrix
        other = matrix if self.whitening == "cov" else product
        return inner_product(product, other) - self.damping * inner_product(matrix, matrix)

    def low(self, product: Tensor, count: int) -> Low:
        """Return the low end of W F: sigma [count] ascending, and left singular vectors [out, count]; K is used up."""
        values, directions = low_end(product, count)
        lower, basis = self.core.lower, self.core.basis
        if lower is not None:
            directions = times(self.precise, solve_transposed(lower, directions))
        elif basis is not None:
            directions = times(basis, directions)
        return Low(values, directions)


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
    count = _count(weight, rank)
    if count == 0:
        return _none(weight)
    return layer.low(layer.product(), count).directions


def prune(
    weight: Tensor, moment: Tensor, rank: int, *, damping: float = 0.0, whitening: Whitening = "cov"
) -> Pruned:
    """Return :func:`pruned_directions` with what they cost.

    Raises:
        ValueError: if shapes do not fit or ``rank`` is not between 0 and R.
    """
    layer = _layer(weight, moment, damping, whitening)
    count = _count(weight, rank)
    if count == 0:
        return Pruned(_none(weight), rank, energy=0.0, error=0.0, determined=True)
    # The smallest one that is kept tells whether the cut is determined
    looked_at = count + 1 if rank else count
    product = layer.product()
    total, activated = inner_product(product, product), layer.activated(product)
    low = layer.low(product, looked_at)
    directions = low.directions[:, :count]
    lost = times(directions.mT, layer.precise)
    lost_activation = inner_product(times(lost, layer.moment), lost)
    smallest_kept = low.values[count:].sum()
    return Pruned(
        directions,
        rank,
        energy=_share(low.values[:count].square().sum(), total),
        error=_share(lost_activation, activated),
        determined=rank == 0 or bool(smallest_kept > SVD_DEPTH * total.sqrt()),
    )


def without(tensor: Tensor, weight: Tensor, directions: Tensor) -> Tensor:
    """Return tensor - P P^T W [out, in] in the tensor's dtype; P [out, pruned].

    Of the weight itself that is the purified layer, of its delta the purified delta.
    """
    directions = copied(directions, tensor.dtype)
    lost = times(directions.mT, weight)
    return less_product(copied(tensor, tensor.dtype), directions, lost)


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


def _none(weight: Tensor) -> Tensor:
    return weight.new_zeros((len(weight), 0), dtype=torch.float64)


def _share(part: Tensor, whole: Tensor) -> float:
    """Return part / whole, 0 where there is nothing to lose."""
    return float(part / whole) if whole > 0 else 0.0
