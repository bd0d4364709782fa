"""TSV-Merge: the leading singular vectors of each task, decorrelated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.merge.base import WIDE_GRID, Convention
from taskvec.merge.spectral.matrixwise import TEXT_PROJECTION, MatrixWise
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "tsv", paper="Gargiulo et al., CVPR 2025, arXiv 2412.00081, section 4.2")
class Tsv(MatrixWise):
    """theta_0 + alpha * polar([U_1 ... U_T]) diag(S_1, ..., S_T) polar([V_1 ... V_T])^T for each matrix [o, i].

    U_t, S_t, V_t are the r = floor(min(o, i) / T) leading singular triples of tau_t, at least one unless ``faithful``
    (whose result is zero for matrices with fewer rows or columns than there are vectors). Directions without a singular
    value (low-rank vectors) are left out, since the data do not determine them. Computed in float64.
    """

    kind: Literal["tsv"] = "tsv"
    faithful: bool = False

    grid = WIDE_GRID
    conventions = (
        Convention("the authors' code", f"{TEXT_PROJECTION} merge.faithful=true", "alpha up to 3"),
        Convention("FusionBench", "merge.faithful=true"),
        Convention("merge-and-rebase", f"merge.others=none {TEXT_PROJECTION}"),
    )

    def matrix(self, deltas: Sequence[Tensor], count: int) -> Tensor:
        """Return the sum of the decorrelated leading parts."""
        from taskvec.merge.spectral.linalg import joined, leading_svd

        rank = min(deltas[0].shape) // count
        if not self.faithful:
            rank = max(1, rank)
        return joined([leading_svd(delta, rank) for delta in deltas])
