"""NuSLERP: SLERP with weights, of tensors, rows or columns, of weights or deltas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.merge.base import AS_IT_IS, Convention, TensorWise
from taskvec.merge.piece import Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

ALMOST = 1 - 1e-15  # cosines beyond it: the angle's sine is lost in float64


@register("merge", "nuslerp", paper="mergekit, arXiv 2403.13257")
class NuSlerp(TensorWise):
    """SLERP at t = w_2 / (w_1 + w_2); two vectors.

    The angle is that of the whole tensors, or of each of their ``along`` "rows" or "columns" by itself (of a kernel:
    along its first or last axis), and of the weights or the deltas (``of``). Linear where the two are parallel.
    """

    kind: Literal["nuslerp"] = "nuslerp"
    weights: tuple[float, float] = (1.0, 1.0)
    along: Literal["tensor", "rows", "columns"] = "tensor"
    of: Literal["weights", "deltas"] = Field("weights")

    grid = AS_IT_IS
    grain = "tensor"
    vectors = (2, 2)
    conventions = (
        Convention("mergekit (nuslerp)", "", "with a base model: merge.of=deltas"),
        Convention(
            "mergekit, nuslerp_flatten: false",
            "merge.along=rows",
            "nuslerp_row_wise: true is columns there",
        ),
    )

    @property
    def relative(self) -> bool:
        """Whether deltas are interpolated."""
        return self.of == "deltas"

    def merge(self, piece: Piece, given: Given | None, surveyed: None) -> Tensor:
        """Return the interpolation, less theta_0 where weights are interpolated."""
        import torch

        from taskvec.merge.spherical.gram import gram, slerp

        zero = torch.zeros_like(piece.present[0][1])
        deltas = [zero if delta is None else delta for delta in piece.deltas]
        base = piece.base.to(zero)
        models = [base + delta for delta in deltas] if self.of == "weights" else deltas
        lines = [self._lines(model) for model in models]
        first, second = slerp(gram(lines), self._t(), ALMOST).unsqueeze(-2).unbind(-1)
        found = self._tensor(first * lines[0] + second * lines[1], piece.shape)
        return found - base if self.of == "weights" else found

    def _t(self) -> float:
        total = sum(self.weights)
        if total == 0:
            raise UserError(
                "merge.weights sum to zero, so the place between the models is undefined"
            )
        return self.weights[1] / total

    def _lines(self, tensor: Tensor) -> Tensor:
        """Return the lines [lines, entries] whose angles count."""
        if self.along == "tensor" or tensor.ndim < 2:
            return tensor.reshape(1, -1)
        if self.along == "rows":
            return tensor.flatten(0, -2)
        return tensor.transpose(0, -1).flatten(0, -2)

    def _tensor(self, lines: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.along != "columns" or len(shape) < 2:
            return lines.reshape(shape)
        turned = (shape[-1], *shape[1:-1], shape[0])
        return lines.reshape(turned).transpose(0, -1)
