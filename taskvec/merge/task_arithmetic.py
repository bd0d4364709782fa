"""Task arithmetic: the plain sum of task vectors under one scaling coefficient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import Convention
from taskvec.merge.piece import Piece
from taskvec.merge.sparse.factored import Factored
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register(
    "merge", "task_arithmetic", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 2"
)
class TaskArithmetic(Factored):
    """theta_0 + alpha * sum_t w_t tau_t, all weights 1 unless ``weights`` are given.

    ``of`` "factors" adds the factors of LoRA vectors up instead of their products, with sqrt(w_t) on both; the result
    has cross terms between the vectors.
    """

    kind: Literal["task_arithmetic"] = "task_arithmetic"

    conventions = (
        Convention(
            "the paper, FusionBench, mergekit (task_arithmetic)", "", "FusionBench: alpha 0.3"
        ),
        Convention(
            "peft (cat, svd)", "", "its weights are merge.weights; sums of products B A, alpha 1"
        ),
        Convention(
            "peft (linear)", "merge.of=factors", "factors of one rank; the product has cross terms"
        ),
    )

    def merge(self, piece: Piece, given: Given | None, surveyed: Any) -> Tensor:
        """Return the weighted sum of the deltas."""
        from taskvec.merge.scheme.consensus import weighted_sum

        weights = self.weights_for(len(piece.deltas))
        parts = piece.parts
        return weighted_sum(parts, [weights[position] for position, _ in piece.present])
