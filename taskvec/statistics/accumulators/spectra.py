"""Spectra of weights on data, in float64 (spec pave 1.2: float32 loses the smallest singular directions)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def singular_values(
    weight: Tensor, second: Tensor, whitening: Literal["cov", "sqrt"], damping: float
) -> Tensor:
    """Return those of W C [min(out, in)], descending, with C = ``second`` + damping I; "sqrt": of W C^(1/2)."""
    covariance = second.to(torch.float64, copy=True)
    covariance.diagonal().add_(damping)
    if whitening == "sqrt":
        covariance = root(covariance)
    return torch.linalg.svdvals(weight.to(torch.float64) @ covariance)


def root(matrix: Tensor) -> Tensor:
    """Return the symmetric square root of a positive semi-definite matrix; rounding below zero counts as zero."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
