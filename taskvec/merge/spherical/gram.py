"""Combinations of models whose coefficients follow from inner products: sum_t c_t theta_t, c a function of the Gram matrix.

Gram matrices are [..., T, T] in float64; coefficients [..., T]. Vectors of norm zero have the unit vector zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

COLINEAR = 0.9995  # cosines beyond it: interpolation is linear
SMALLEST = 1e-8  # norms up to it are zero, and no direction


def gram(vectors: Sequence[Tensor]) -> Tensor:
    """Return the inner products of vectors [..., n] with each other, [..., T, T] in float64."""
    stacked = torch.stack([vector.double() for vector in vectors], dim=-2)
    return stacked @ stacked.transpose(-1, -2)


def norms_of(gram: Tensor) -> Tensor:
    """Return the norms [..., T]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()


def cosines_of(gram: Tensor) -> Tensor:
    """Return the inner products of the unit vectors [..., T, T]."""
    inverse = _inverse(norms_of(gram))
    return gram * inverse.unsqueeze(-1) * inverse.unsqueeze(-2)


def slerp(gram: Tensor, t: float | Tensor, colinear: float = COLINEAR) -> Tensor:
    """Return (sin((1 - t) angle), sin(t angle)) / sin(angle) [..., 2], linear where |cos angle| > ``colinear``."""
    cosine = cosines_of(gram)[..., 0, 1].clamp(-1, 1)
    angle = cosine.acos()
    t = torch.as_tensor(t, dtype=gram.dtype, device=gram.device).expand_as(angle)
    linear = torch.stack([1 - t, t], dim=-1)
    curved = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()], dim=-1) / angle.sin().unsqueeze(-1)
    return torch.where((cosine.abs() > colinear).unsqueeze(-1), linear, curved)


def normalised_mean(gram: Tensor, shares: Tensor) -> Tensor:
    """Return c of ||.|| * u, u the direction of the weighted mean of the unit vectors, ||.|| the weighted mean norm.

    Where the unit vectors cancel there is no such direction, and c is the shares themselves.
    """
    weights = shares * _inverse(norms_of(gram))
    length = _length(gram, weights)
    scale = (norms_of(gram) * shares).sum(-1) / length.clamp(min=SMALLEST)
    return torch.where((length > SMALLEST).unsqueeze(-1), weights * scale.unsqueeze(-1), shares)


def karcher(gram: Tensor, shares: Tensor, steps: int, tolerance: float) -> Tensor:
    """Return c of s * u [T], u the Karcher mean of the unit vectors on the sphere, s the weighted mean norm.

        v = sum_t w_t angle_t / sin(angle_t) (u_t - cos(angle_t) u)        u <- cos|v| u + sin|v| v / |v|

    from the direction of the weighted mean, until |v| < ``tolerance``. Everything happens in the span of the models,
    so that the iteration is one of T numbers.
    """
    norms = norms_of(gram)
    weights = torch.where(norms > SMALLEST, shares, 0)
    total = weights.sum()
    if total == 0:
        return torch.zeros_like(shares)
    weights = weights / total
    units = _inverse(norms)
    mean = weights * units
    length = _length(gram, mean)
    mean = mean / length if length > SMALLEST else _first_unit(units)
    for _ in range(steps):
        cosines = ((gram @ mean) * units).clamp(-1, 1)
        angles = cosines.acos()
        factors = weights * torch.where(angles > tolerance, angles / angles.sin().clamp(min=SMALLEST), 0)
        tangent = factors * units - (factors * cosines).sum() * mean
        speed = _length(gram, tangent)
        if speed < tolerance:
            break
        mean = speed.cos() * mean + (speed.sin() / speed) * tangent
        mean = mean / _length(gram, mean)
    return (weights * norms).sum() * mean


def model_stock(gram: Tensor) -> Tensor:
    """Return c_t = t / T of task vectors, t = T cos / (1 + (T - 1) cos), cos the mean cosine of two of them.

    A negative mean counts as zero: the formula would move away from the models, without bound as cos nears -1/(T - 1).
    """
    count = gram.shape[-1]
    if count == 1:
        return torch.ones_like(gram[..., 0])
    cosines = cosines_of(gram)
    pairs = cosines.sum((-1, -2)) - cosines.diagonal(dim1=-2, dim2=-1).sum(-1)
    cosine = (pairs / (count * (count - 1))).clamp(min=0)
    ratio = cosine / (1 + (count - 1) * cosine)
    return ratio.unsqueeze(-1).expand(*ratio.shape, count)


def _inverse(norms: Tensor) -> Tensor:
    return torch.where(norms > SMALLEST, 1 / norms.clamp(min=SMALLEST), 0)


def _length(gram: Tensor, coefficients: Tensor) -> Tensor:
    """Return the norm of sum_t c_t theta_t."""
    products = (gram @ coefficients.unsqueeze(-1)).squeeze(-1)
    return (coefficients * products).sum(-1).clamp(min=0).sqrt()


def _first_unit(units: Tensor) -> Tensor:
    first = torch.zeros_like(units)
    place = int(units.nonzero()[0])
    first[place] = units[place]
    return first
