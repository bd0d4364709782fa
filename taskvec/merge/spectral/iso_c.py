"""Iso-C: the sum of the vectors with a flat spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.merge.base import WIDE_GRID, Convention
from taskvec.merge.spectral.matrixwise import TEXT_PROJECTION, MatrixWise
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "iso_c", paper="Marczak et al., ICML 2025, arXiv 2502.04959, section 4.1")
class IsoC(MatrixWise):
    """theta_0 + alpha * mean(S) U V^T for each matrix, U S V^T the SVD of sum_t tau_t (``of`` "mean": of their mean).

    Directions without a singular value are left out, so that a low-rank sum keeps its rank and its nuclear norm.
    Computed in float64.
    """

    kind: Literal["iso_c"] = "iso_c"
    of: Literal["sum", "mean"] = "sum"

    grid = WIDE_GRID
    conventions = (
        Convention("the authors' code, FusionBench", TEXT_PROJECTION, "alpha 1 to 1.5 and up to 3"),
        Convention("merge-and-rebase", "merge.of=mean", "weights 1/T"),
    )

    def matrix(self, deltas: Sequence[Tensor], count: int) -> Tensor:
        """Return the polar factor of the sum, times the mean singular value."""
        from taskvec.merge.spectral.linalg import negligible, polar

        total = sum(deltas[1:], deltas[0])
        factor, values = polar(total.double(), negligible(total.dtype))
        if not len(values):
            return total
        mean = values.mean()
        return factor * (mean / count if self.of == "mean" else mean)
