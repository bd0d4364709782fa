"""PAVE as a projection of a layer's outputs.

Of W C = U S V^T the truncation SVD_r(W C) C^-1 equals U_r U_r^T W, so that purification needs neither the inverse nor
the directions it keeps: W_r = W - P P^T W, where P holds the pruned left singular vectors (spec 1.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from taskvec.transform.subspace.eigen import gram, root, smallest_eigenpairs

Whitening = Literal["cov", "sqrt"]

# A Gram matrix squares the singular values; below these shares of its trace rounding decides, and the SVD takes over.
# A wide layer needs the cut to be known, a tall one each direction, since it is divided by its singular value.
DEPTH_OF_CUT = 1e-12
DEPTH_OF_DIRECTIONS = 3e-10
SVD_DEPTH = 1e-13  # the same for singular values themselves, relative to their norm


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


@dataclass(frozen=True)
class _Layer:
    """A layer in float64; ``factor`` F [in, in] is C + damping I or its root, and U S V^T = W F is decomposed."""

    weight: Tensor
    moment: Tensor
    damping: float
    whitening: Whitening

    def factor(self) -> Tensor:
        damped = self.moment.clone()
        damped.diagonal().add_(self.damping)
        return damped if self.whitening == "cov" else root(damped)

    @property
    def wide(self) -> bool:
        outputs, inputs = self.weight.shape
        return outputs <= inputs


@dataclass(frozen=True)
class _Squares:
    """sum_j sigma_j^2 of W F, tr(W C W^T), and the Gram matrix [R, R] of W F on its smaller side."""

    matrix: Tensor
    total: Tensor
    activated: Tensor


def prune(weight: Tensor, moment: Tensor, rank: int, *, damping: float = 0.0, whitening: Whitening = "cov") -> Pruned:
    """Return the left singular directions of W (C + damping I) beyond the ``rank`` leading ones, in float64.

    ``weight`` [out, in], ``moment`` C [in, in], the mean of x x^T over the layer's input rows. With ``whitening``
    "sqrt" the directions are those of W L with C = L L^T, the best ones for the outputs themselves (spec property 9).

    Raises:
        ValueError: if shapes do not fit or ``rank`` is not between 0 and R.
    """
    layer = _layer(weight, moment, damping, whitening)
    full = min(weight.shape)
    if not 0 <= rank <= full:
        raise ValueError(f"rank {rank} is not between 0 and {full}")
    squares = _squares(layer)
    pruned = full - rank
    looked_at = min(pruned + 1, full)  # the smallest one that is kept tells whether the cut is determined
    values, directions = _smallest(layer, squares, looked_at)
    values, next_value = values[:pruned], values[-1]
    directions = directions[:, :pruned]
    lost = directions.mT @ layer.weight
    lost_activation = (lost @ layer.moment * lost).sum()
    is_a_cut = 0 < rank < full
    determined = not is_a_cut or bool(next_value > SVD_DEPTH * squares.total.sqrt())
    energy = _share(values.square().sum(), squares.total)
    error = _share(lost_activation, squares.activated)
    return Pruned(directions, rank, energy, error, determined)


def removed(weight: Tensor, directions: Tensor) -> Tensor:
    """Return P P^T W, what purification takes away, in the weight's dtype; P [out, pruned], accumulated in float64."""
    directions = directions.double()
    lost = directions @ (directions.mT @ weight.double())
    return lost.to(weight.dtype)


def _layer(weight: Tensor, moment: Tensor, damping: float, whitening: Whitening) -> _Layer:
    inputs = weight.shape[1]
    if tuple(moment.shape) != (inputs, inputs):
        raise ValueError(f"a moment {list(moment.shape)} does not fit a weight {list(weight.shape)}")
    return _Layer(weight.double(), moment.double(), damping, whitening)


def _squares(layer: _Layer) -> _Squares:
    if layer.wide:
        return _wide_squares(layer)
    inner = gram(layer.weight)
    activated = (inner * layer.moment).sum()
    factor = layer.factor()
    matrix = factor.mT @ inner @ factor
    return _Squares(matrix, matrix.trace(), activated)


def _wide_squares(layer: _Layer) -> _Squares:
    weight = layer.weight
    moved = weight @ layer.moment
    activated = (moved * weight).sum()
    moved.add_(weight, alpha=layer.damping)
    # W F F^T W^T needs no root: F F^T is C + damping I itself.
    matrix = gram(moved.mT) if layer.whitening == "cov" else moved @ weight.mT
    return _Squares(matrix, matrix.trace(), activated)


def _smallest(layer: _Layer, squares: _Squares, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` smallest singular values of W F, ascending, and their left singular vectors [out, count]."""
    values, vectors = smallest_eigenpairs(squares.matrix, count)
    uncertain = values[-1:] < DEPTH_OF_CUT * squares.total
    if not layer.wide:
        uncertain = values[:1] < DEPTH_OF_DIRECTIONS * squares.total
    if uncertain.any():
        return _smallest_by_svd(layer, count)
    values = values.clamp(min=0).sqrt()
    if layer.wide:
        return values, vectors
    right = layer.factor() @ vectors
    left = torch.linalg.qr(layer.weight @ right).Q
    return values, left


def _smallest_by_svd(layer: _Layer, count: int) -> tuple[Tensor, Tensor]:
    product = layer.weight @ layer.factor()
    left, values, _ = torch.linalg.svd(product, full_matrices=False)
    last = len(values) - count
    return values[last:].flip(0), left[:, last:].flip(1)


def _share(part: Tensor, whole: Tensor) -> float:
    """Return part / whole, 0 where there is nothing to lose."""
    return float(part / whole) if whole > 0 else 0.0
