"""Combinations sum_t c_t theta_t of models whose coefficients follow from inner products.

Gram matrices are [..., T, T] in float64; coefficients [..., T]. Vectors of norm zero have the unit vector zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLINEAR = 0.9995  # cosines beyond it: interpolation is linear
SMALLEST = 1e-8  # norms up to it are zero, and no direction
# Means of unit vectors up to it have no direction: inner products know lengths to about 1e-8
CANCELLED = 1e-6


def gram(vectors: Sequence[Tensor]) -> Tensor:
    """Return the inner products of vectors [..., n] with each other, [..., T, T] in float64."""
    wide = [vector.double() for vector in vectors]
    stacked = torch.stack(wide, dim=-2)
    return stacked @ stacked.mT


def norms_of(gram: Tensor) -> Tensor:
    """Return the norms [..., T]."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    return squares.clamp(min=0).sqrt()


def inverse_norms_of(gram: Tensor) -> Tensor:
    """Return 1 / norm, 0 of vectors without a direction [..., T]."""
    norms = norms_of(gram)
    inverse = 1 / norms.clamp(min=SMALLEST)
    return inverse * (norms > SMALLEST)


def cosines_of(gram: Tensor) -> Tensor:
    """Return the inner products of the unit vectors [..., T, T]."""
    inverse = inverse_norms_of(gram)
    by_row = gram * inverse.unsqueeze(-1)
    return by_row * inverse.unsqueeze(-2)


def slerp(gram: Tensor, t: float, colinear: float = COLINEAR) -> Tensor:
    """Return (sin((1 - t) angle), sin(t angle)) / sin(angle) [..., 2], linear where |cos angle| > ``colinear``."""
    cosine = cosines_of(gram)[..., 0, 1].clamp(-1, 1).unsqueeze(-1)
    angle = cosine.acos()
    shares = gram.new_tensor([1 - t, t])
    curved = (shares * angle).sin() / angle.sin()
    parallel = cosine.abs() > colinear
    return torch.where(parallel, shares, curved)


def normalised_mean(gram: Tensor, shares: Tensor) -> Tensor:
    """Return c of s * u, u the direction of the weighted mean of the unit vectors, s the weighted mean norm.

    Where the unit vectors cancel there is no such direction, and c is the shares themselves.
    """
    mean = shares * inverse_norms_of(gram)
    length = _length(gram, mean)
    size = (norms_of(gram) * shares).sum(-1)
    scale = size / length.clamp(min=CANCELLED)
    cancelled = length <= CANCELLED
    return torch.where(cancelled.unsqueeze(-1), shares, mean * scale.unsqueeze(-1))


def karcher(gram: Tensor, shares: Tensor, steps: int, tolerance: float) -> Tensor:
    """Return c of s * u [T], u the Karcher mean of the unit vectors on the sphere, s the weighted mean norm.

        v = sum_t w_t angle_t / sin(angle_t) (u_t - cos(angle_t) u)        u <- cos|v| u + sin|v| v / |v|

    from the direction of the weighted mean, until |v| < ``tolerance``. Everything happens in the span of the models,
    so that the iteration is one of T numbers. Where the unit vectors cancel, c is the shares; a model on the far side
    of the sphere pulls in no direction.
    """
    norms, units = norms_of(gram), inverse_norms_of(gram)
    weights = shares * (units > 0)
    if weights.sum() == 0:
        return torch.zeros_like(shares)
    weights = weights / weights.sum()
    mean = weights * units
    length = _length(gram, mean)
    if length <= CANCELLED:
        return shares
    mean = mean / length
    for _ in range(steps):
        tangent = _tangent(gram, units, weights, mean)
        speed = _length(gram, tangent)
        if speed < tolerance:
            break
        forward = (speed.sin() / speed) * tangent
        moved = speed.cos() * mean + forward
        mean = moved / _length(gram, moved)
    size = (weights * norms).sum()
    return size * mean


def _tangent(gram: Tensor, units: Tensor, weights: Tensor, mean: Tensor) -> Tensor:
    """Return the step v of the Karcher mean from a unit vector of the span, as coefficients."""
    cosines = ((gram @ mean) * units).clamp(-1, 1)
    angles = cosines.acos()
    sines = angles.sin()
    stretched = angles / sines.clamp(min=CANCELLED)
    pulls = weights * stretched * (sines > CANCELLED)
    along = (pulls * cosines).sum()
    return pulls * units - along * mean


def model_stock(gram: Tensor) -> Tensor:
    """Return c_t = t / T of task vectors, t = T cos / (1 + (T - 1) cos), cos the mean cosine of two of them.

    A negative mean counts as zero: the formula would move away from the models, without bound as cos nears -1/(T - 1).
    """
    count = gram.shape[-1]
    if count == 1:
        return torch.ones_like(gram[..., 0])
    cosines = cosines_of(gram)
    own = cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    pairs = cosines.sum((-1, -2)) - own
    cosine = (pairs / (count * (count - 1))).clamp(min=0)
    share = cosine / (1 + (count - 1) * cosine)
    return share.unsqueeze(-1).expand(*share.shape, count)


def _length(gram: Tensor, coefficients: Tensor) -> Tensor:
    """Return the norm of sum_t c_t theta_t."""
    column = coefficients.unsqueeze(-1)
    products = (gram @ column).squeeze(-1)
    square = (coefficients * products).sum(-1)
    return square.clamp(min=0).sqrt()
