"""CART: task vectors around the average, truncated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec.merge.base import WIDE_GRID, Convention
from taskvec.merge.piece import Piece
from taskvec.merge.spectral.matrixwise import MatrixWise
from taskvec.needs import Given, Signed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition


@register("merge", "cart", paper="Choi et al., 2024, arXiv 2412.12153, section 4")
class Cart(MatrixWise):
    """theta_avg + alpha * sum_t SVD_k(theta_t - theta_avg) for each matrix, k = max(1, round(``rank`` min(o, i))).

    theta_avg is the mean of the fine-tuned weights, which the other tensors get: their deviations from the mean sum to
    zero. alpha = 0 is weight averaging. Computed in float64.
    """

    kind: Literal["cart"] = "cart"
    rank: float = Field(0.08, gt=0, le=1)
    others: Literal["none"] = "none"

    grid = WIDE_GRID
    direction = False
    conventions = (
        Convention("the paper", "", "a rank of 8 %; alpha searched"),
        Convention("merge-and-rebase", "", "its pruning ratio is merge.rank"),
    )

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return theta_avg + alpha * the sum of the truncated vectors around it."""
        from taskvec.merge.average import Average
        from taskvec.vectors.composition import Shifted

        deltas = self.checked(vectors)
        mean = Average().merged(base, deltas, given)
        return Shifted(base, mean, self.merged(base, deltas, given))

    def restore(self, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Composition:
        """Return a stored composition again."""
        from taskvec.vectors.composition import Shifted

        return Shifted.unpack(base, tensors, meta)

    def centre(self, piece: Piece) -> Tensor:
        """Return the mean of the deltas: theta_avg - theta_0."""
        from taskvec.merge.average import Average

        return Average().merge(piece, None, None)

    def matrix(self, deltas: Sequence[Tensor], count: int) -> Tensor:
        """Return the sum of the truncated deviations from the mean; absent deltas deviate by minus the mean."""
        from taskvec.merge.spectral.linalg import leading_svd

        mean = sum(deltas[1:], deltas[0]) / count
        rank = max(1, round(self.rank * min(mean.shape)))
        found = sum(leading_svd(delta - mean, rank).product() for delta in deltas)
        absent = count - len(deltas)
        return found - absent * leading_svd(mean, rank).product() if absent else found
