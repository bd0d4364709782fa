"""Orthogonal Procrustes maps between two activation spaces, in float64 (theseus spec 1.1 to 1.4).

Of rows A [n, a] and B [n, b], paired, the semi-orthogonal T [a, b] that minimises ||A T - B||_F is the polar factor
U V^T of the cross-moment C = A^T B = U S V^T. The data determines it only as far as C has full rank; with a
``tolerance`` directions below tolerance * s_1 are left out, and T is a partial isometry.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Down to this share of the largest, singular values come out of the eigenvalues of C C^T to eight digits.
GRAM_DEPTH = 1e-4


@dataclass(frozen=True)
class Alignment:
    """A map T [a, b] float64 with what the data says about it.

    ``values`` are the singular values of C, descending; ``rank`` of them are kept. ``gap`` is (s_rank - s_{rank+1}) /
    s_1, with nothing beyond the last: how far C may move, relative to its largest singular value, before the directions
    of T do. ``energy`` is the kept share of the sum of the values.
    """

    map: Tensor
    values: Tensor
    rank: int

    @property
    def gap(self) -> float:
        """How clearly the last kept direction stands out."""
        if self.rank == 0:
            return 0.0
        beyond = self.values[self.rank :][:1].sum()
        return float((self.values[self.rank - 1] - beyond) / self.values[0])

    @property
    def energy(self) -> float:
        """The kept share of the sum of singular values."""
        kept = self.values[: self.rank].sum()
        return float(kept / self.values.sum().clamp(min=torch.finfo(torch.float64).tiny))

    @property
    def full(self) -> bool:
        """Whether T keeps as many directions as its shape allows."""
        return self.rank == min(self.map.shape)


def align(cross: Tensor, tolerance: float = 0.0) -> Alignment:
    """Return the map of a cross-moment C [a, b]; a ``tolerance`` of 0 takes U V^T as LAPACK's SVD gives it.

    From a tolerance of 1e-4 on the eigenvalues of the smaller Gram matrix serve as well and take half the time.
    """
    cross = cross.double()
    if tolerance < GRAM_DEPTH:
        return _by_svd(cross, tolerance)
    if cross.shape[0] <= cross.shape[1]:
        return _by_gram(cross, tolerance)
    turned = _by_gram(cross.mT, tolerance)
    return Alignment(turned.map.mT, turned.values, turned.rank)


def align_product(left: Tensor, core: Tensor, right: Tensor, tolerance: float) -> Alignment:
    """Return the map of C = L K R^T with L [a, r], K [r, s], R [b, s], r and s small, without forming C.

    With L = Q_L R_L and R = Q_R R_R it is Q_L polar(R_L K R_R^T) Q_R^T, of rank at most min(r, s). Such are moments of
    a layer's outputs, which are those of its inputs between two weights.
    """
    left_basis, left_factor = torch.linalg.qr(left.double())
    right_basis, right_factor = torch.linalg.qr(right.double())
    core = left_factor @ core.double() @ right_factor.mT
    inner = _by_svd(core, tolerance)
    return Alignment(left_basis @ inner.map @ right_basis.mT, inner.values, inner.rank)


def _by_svd(cross: Tensor, tolerance: float) -> Alignment:
    left, values, right = torch.linalg.svd(cross, full_matrices=False)
    rank = _rank(values, tolerance)
    return Alignment(left[:, :rank] @ right[:rank], values, rank)


def _by_gram(cross: Tensor, tolerance: float) -> Alignment:
    """Return Q diag(s)^-1 Q^T C over the kept eigenpairs (s^2, Q) of C C^T."""
    squares, vectors = torch.linalg.eigh(cross @ cross.mT)
    values = squares.clamp(min=0).sqrt().flip(0)
    rank = _rank(values, tolerance)
    kept = vectors.flip(1)[:, :rank]
    inverse_root = (kept / values[:rank]) @ kept.mT
    return Alignment(inverse_root @ cross, values, rank)


def _rank(values: Tensor, tolerance: float) -> int:
    """Return how many values exceed tolerance * the largest; without a tolerance all are kept."""
    if tolerance == 0:
        return len(values)
    return int((values > tolerance * values[0]).sum())
