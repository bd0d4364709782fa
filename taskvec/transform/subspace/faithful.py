"""PAVE as the authors' code computes it: float32, a damped covariance and its explicit inverse (spec 1.3 and 1.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.errors import UserError


class Damped(NamedTuple):
    """C + epsilon I [in, in] float32, its inverse, and epsilon = start * 2^m."""

    moment: Tensor
    inverse: Tensor
    epsilon: float


def damped(moments: Sequence[Tensor], start: float, tolerance: float) -> Damped:
    """Double epsilon from ``start`` until sum ||(C + eps I)^-1 (C + eps I) - I||_F < ``tolerance``.

    The sum runs over ``moments`` [in, in]: that of the fine-tuned model, which is the one returned, and where the
    authors count it that of the pre-trained model.

    Raises:
        UserError: if a moment is not finite, so that no epsilon would do.
    """
    epsilon = start
    singles = [moment.float() for moment in moments]
    for moment in singles:
        if not moment.isfinite().all():
            raise UserError(
                "a covariance of layer inputs is not finite: activations overflow on these examples"
            )
    while True:
        candidates = [_inverted(moment, epsilon) for moment in singles]
        residual = sum(_residual(candidate) for candidate in candidates)
        if residual < tolerance:
            return candidates[0]
        epsilon *= 2


def _inverted(moment: Tensor, epsilon: float) -> Damped:
    shifted = moment.clone()
    shifted.diagonal().add_(epsilon)
    inverse = torch.linalg.inv_ex(shifted).inverse  # a singular one shows in the residual
    return Damped(shifted, inverse, epsilon)


def _residual(candidate: Damped) -> Tensor:
    error = candidate.inverse @ candidate.moment
    error.diagonal().sub_(1)
    return torch.linalg.matrix_norm(error)


def purified(weight: Tensor, covariance: Damped, rank: int) -> Tensor:
    """Return SVD_r(W C) C^-1 [out, in] float32 of a weight [out, in]."""
    product = weight.float() @ covariance.moment
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    scaled = left[:, :rank] * values[:rank]
    return scaled @ right[:rank] @ covariance.inverse
