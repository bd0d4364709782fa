"""MagMax: of every entry the largest change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import Convention, TensorWise
from taskvec.merge.piece import Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "magmax", paper="Marczak et al., ECCV 2024, arXiv 2407.06322, section 4")
class MagMax(TensorWise):
    """theta_0 + alpha * tau_{t*}, t* = argmax_t |tau_t| for each entry; of equal ones the first vector's."""

    kind: Literal["magmax"] = "magmax"

    conventions = (
        Convention(
            "the paper, FusionBench",
            "",
            "the paper's vectors come from sequential fine-tuning; alpha 0.5",
        ),
    )

    def merge(self, piece: Piece, given: Given | None, surveyed: Any) -> Tensor:
        """Return the entries of largest magnitude."""
        import torch

        (_, first), *others = piece.present
        largest = first.clone()
        for _, delta in others:
            larger = delta.abs() > largest.abs()
            largest = torch.where(larger, delta, largest)
        return largest
