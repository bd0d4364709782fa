"""Multi-SLERP: the direction of the mean of several models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from taskvec.merge.base import Convention, Weighted
from taskvec.merge.spherical.span import Span
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "multislerp", paper="mergekit, arXiv 2403.13257")
class MultiSlerp(Span, Weighted):
    """s u for each tensor: u the direction of sum_t w_t theta_t / |theta_t|, s = sum_t w_t |theta_t|, sum_t w_t = 1.

    mergekit adds a step in the tangent space at u, which is zero: the tangent parts of the unit vectors sum to zero
    there. Two models with equal weights are at the middle of their arc. Where the unit vectors cancel: the mean.
    """

    kind: Literal["multislerp"] = "multislerp"

    conventions = (Convention("mergekit (multislerp)", "", "with a base model: merge.of=deltas"),)

    def coefficients(self, gram: Tensor) -> Tensor:
        """Return c_t = s w_t / (|theta_t| |sum_t w_t theta_t / |theta_t||)."""
        from taskvec.merge.spherical.gram import normalised_mean

        shares = gram.new_tensor(self.shares_for(gram.shape[-1]))
        return normalised_mean(gram, shares)
