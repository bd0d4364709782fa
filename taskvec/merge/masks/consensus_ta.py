"""Consensus task arithmetic: only the entries that matter to several tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.merge.base import Convention, TensorWise
from taskvec.merge.masks.tall_masks import shared_merge
from taskvec.merge.piece import Deltas, Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors


@register("merge", "consensus_ta", paper="Wang et al., ICML 2024, arXiv 2405.07813, section 4.3")
class ConsensusTa(TensorWise):
    """theta_0 + alpha * tau where at least ``agreeing`` of the masks m_t = |tau_t| > threshold_t |tau - tau_t| hold.

    ``threshold`` is one number, or one for each vector in order. tau is the sum of the vectors, or (``shared`` "ties")
    the sum of their entries that TIES keeps at ``density``. agreeing = 0 is task arithmetic.
    """

    kind: Literal["consensus_ta"] = "consensus_ta"
    agreeing: int = Field(2, ge=0)
    threshold: float | tuple[float, ...] = 0.4
    shared: Literal["sum", "ties"] = "sum"
    density: float = Field(0.2, gt=0, le=1)

    conventions = (
        Convention(
            "the paper (Consensus TA)",
            "",
            "its thresholds are chosen for each task from 0.2 to 0.6",
        ),
        Convention("the paper (Consensus TIES)", "merge.shared=ties"),
    )

    @property
    def over_model(self) -> bool:
        """Whether the shared vector's threshold is one of all parameters."""
        return shared_merge(self.shared, self.density).over_model

    @property
    def passes(self) -> int:
        """Those of the shared vector."""
        return shared_merge(self.shared, self.density).passes

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> Any:
        """Return what the merge of the shared vector surveys."""
        return shared_merge(self.shared, self.density).survey(base, deltas, given)

    def merge(self, piece: Piece, given: Given | None, surveyed: Any) -> Tensor:
        """Return the shared vector's entries that enough masks hold."""
        import torch

        from taskvec.merge.masks.compositions import important

        thresholds = self._thresholds(len(piece.deltas))
        shared = shared_merge(self.shared, self.density).merge(piece, given, surveyed)
        holding = torch.zeros(shared.shape, dtype=torch.int32, device=shared.device)
        for position, delta in piece.present:
            holding += important(delta, shared, thresholds[position])
        return shared * (holding >= self.agreeing)

    def _thresholds(self, count: int) -> Sequence[float]:
        if isinstance(self.threshold, float):
            return (self.threshold,) * count
        if len(self.threshold) != count:
            raise UserError(
                f"merge.threshold holds {len(self.threshold)} numbers, there are {count} task vectors"
            )
        return self.threshold
