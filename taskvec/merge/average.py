"""Weight averaging."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import AS_IT_IS, Convention, Weighted
from taskvec.merge.piece import Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "average", paper="Wortsman et al., ICML 2022, arXiv 2203.05482, section 2")
class Average(Weighted):
    """sum_t w_t theta_t / sum_t w_t: task arithmetic with alpha = 1/T where all weights are equal."""

    kind: Literal["average"] = "average"

    grid = AS_IT_IS
    conventions = (
        Convention("model soups, FusionBench (simple and weighted average)", ""),
        Convention(
            "mergekit (linear)",
            "",
            "normalize: false is merge=task_arithmetic with weights on the deltas",
        ),
    )

    @property
    def relative(self) -> bool:
        """False: theta_0 cancels."""
        return False

    def merge(self, piece: Piece, given: Given | None, surveyed: Any) -> Tensor:
        """Return the mean of the deltas."""
        from taskvec.merge.scheme.consensus import weighted_sum

        shares = self.shares_for(len(piece.deltas))
        parts = piece.parts
        return weighted_sum(parts, [shares[position] for position, _ in piece.present])
