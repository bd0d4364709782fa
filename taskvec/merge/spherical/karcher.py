"""The Karcher mean of models on the sphere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention, Weighted
from taskvec.merge.spherical.span import Span
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register(
    "merge", "karcher", paper="Grove and Karcher, Math. Z. 132, 1973; mergekit, arXiv 2403.13257"
)
class Karcher(Span, Weighted):
    """s u for each tensor: u minimises sum_t w_t angle(u, theta_t)^2 on the unit sphere, s = sum_t w_t |theta_t|.

    Found by up to ``steps`` gradient steps on the sphere, which stop below ``tolerance``. Two models with equal weights
    and norms are merged as by SLERP at 1/2.
    """

    kind: Literal["karcher"] = "karcher"
    steps: int = Field(10, ge=0)
    tolerance: float = Field(1e-5, gt=0)

    version = 2
    conventions = (Convention("mergekit (karcher)", ""),)

    def coefficients(self, gram: Tensor) -> Tensor:
        """Return the mean's coefficients."""
        from taskvec.merge.spherical.gram import karcher

        shares = gram.new_tensor(self.shares_for(gram.shape[-1]))
        return karcher(gram, shares, self.steps, self.tolerance)
