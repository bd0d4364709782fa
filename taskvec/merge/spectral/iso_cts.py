"""Iso-CTS: a common subspace and one for each task, with a flat spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import WIDE_GRID, Convention
from taskvec.merge.spectral.matrixwise import TEXT_PROJECTION, MatrixWise
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "iso_cts", paper="Marczak et al., ICML 2025, arXiv 2502.04959, section 4.2")
class IsoCts(MatrixWise):
    """theta_0 + alpha * mean(S) polar(U) polar(V)^T for each matrix, U, S, V stacked from tasks and common part.

    With R = min(o, i): p = round((R - floor(``common`` R)) / T) triples of each task, of tau_t - U_c U_c^T tau_t, and
    R - p T of the sum of the vectors, whose U_c these are. ``rounding`` "down" takes the floor for p. The mean is over
    all stacked singular values. common = 1 is Iso-C. Computed in float64.
    """

    kind: Literal["iso_cts"] = "iso_cts"
    common: float = Field(0.8, ge=0, le=1)
    rounding: Literal["nearest", "down"] = "nearest"

    grid = WIDE_GRID
    conventions = (
        Convention("the authors' code, FusionBench", TEXT_PROJECTION, "alpha 1 to 1.5 and up to 3"),
        Convention("merge-and-rebase, functional form", "merge.rounding=down"),
    )

    def matrix(self, deltas: Sequence[Tensor], count: int) -> Tensor:
        """Return the stacked directions, decorrelated, under the mean of their singular values."""
        import torch

        from taskvec.merge.spectral.linalg import joined, leading_svd, negligible

        size = min(deltas[0].shape)
        own = self._own_rank(size, count)
        total = sum(deltas[1:], deltas[0])
        common = leading_svd(total, size - own * count)
        parts = []
        for delta in deltas:
            wide = delta.double()
            shared = common.left @ (common.left.T @ wide)
            noise = negligible(delta.dtype) * float(wide.norm())
            parts.append(leading_svd(wide - shared, own, floor=noise))
        parts.append(common)
        values = torch.cat([part.values for part in parts])
        if not len(values):
            return total
        mean = values.mean()
        flat = [part._replace(values=mean.expand_as(part.values)) for part in parts]
        return joined(flat)

    def _own_rank(self, size: int, count: int) -> int:
        left_over = size - int(size * self.common)
        share = left_over / count
        wanted = round(share) if self.rounding == "nearest" else int(share)
        # Rounded up, all tasks together may want more than there is
        return min(wanted, size // count)
