"""SLERP: two models along the arc between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention
from taskvec.merge.spherical.span import Span
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "slerp", paper="Shoemake, SIGGRAPH 1985; mergekit, arXiv 2403.13257")
class Slerp(Span):
    """sin((1 - t) a) / sin(a) theta_1 + sin(t a) / sin(a) theta_2, a the angle between the tensors; two vectors.

    Linear where |cos a| > 0.9995.
    """

    kind: Literal["slerp"] = "slerp"
    t: float = Field(0.5, ge=0, le=1)

    vectors = (2, 2)
    conventions = (Convention("mergekit (slerp), FusionBench", ""),)

    def coefficients(self, gram: Tensor) -> Tensor:
        """Return the two coefficients."""
        from taskvec.merge.spherical.gram import slerp

        return slerp(gram, self.t)
