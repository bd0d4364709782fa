"""NuSLERP: SLERP with weights, of tensors, rows or columns, of weights or deltas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.errors import UserError
from taskvec.merge.base import Convention
from taskvec.merge.piece import Deltas, Grain, Piece
from taskvec.merge.spherical.span import Span
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors

ALMOST = 1 - 1e-15  # cosines beyond it: the angle's sine is lost in float64


@register("merge", "nuslerp", paper="mergekit, arXiv 2403.13257")
class NuSlerp(Span):
    """SLERP at t = w_2 / (w_1 + w_2); two vectors.

    The angle is that of the whole tensors, or of each of their ``along`` "rows" or "columns" by itself (of a kernel:
    along its first or last axis), and of the weights or the deltas (``of``). Linear where the two are parallel.
    """

    kind: Literal["nuslerp"] = "nuslerp"
    weights: tuple[float, float] = (1.0, 1.0)
    along: Literal["tensor", "rows", "columns"] = "tensor"

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
    def passes(self) -> int:
        """Inner products of whole tensors come first; lines have theirs in one piece."""
        return 2 if self.along == "tensor" else 1

    def grain_of(self, name: str, shape: Sequence[int]) -> Grain:
        """Return what holds whole lines; of whole tensors, whose inner products are known by then, any entries."""
        if self.along == "tensor":
            return "entry"
        return "row" if self.along == "rows" and len(shape) == 2 else "tensor"

    def coefficients(self, gram: Tensor) -> Tensor:
        """Return the two coefficients [..., 2]."""
        from taskvec.merge.spherical.gram import slerp

        return slerp(gram, self._t(), ALMOST)

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> dict[str, list[float]]:
        """Return the coefficients of each tensor where its angle counts as a whole."""
        return super().survey(base, deltas, given) if self.along == "tensor" else {}

    def merge(
        self, piece: Piece, given: Given | None, surveyed: Mapping[str, list[float]]
    ) -> Tensor:
        """Return the interpolation, less theta_0 where weights are interpolated."""
        if self.along == "tensor":
            return super().merge(piece, given, surveyed)
        from taskvec.merge.spherical.gram import gram

        operands = self.operands(piece)
        lines = [self._lines(operand) for operand in operands]
        first, second = self.coefficients(gram(lines)).unsqueeze(-2).unbind(-1)
        found = self._tensor(first * lines[0] + second * lines[1], operands[0].shape)
        return found - piece.base if self.of == "weights" else found

    def _t(self) -> float:
        total = sum(self.weights)
        if total == 0:
            raise UserError(
                "merge.weights sum to zero, so the place between the models is undefined"
            )
        return self.weights[1] / total

    def _lines(self, tensor: Tensor) -> Tensor:
        """Return the lines [lines, entries] whose angles count."""
        if tensor.ndim < 2:
            return tensor.reshape(1, -1)
        if self.along == "rows":
            return tensor.flatten(0, -2)
        return tensor.transpose(0, -1).flatten(0, -2)

    def _tensor(self, lines: Tensor, shape: tuple[int, ...]) -> Tensor:
        if self.along != "columns" or len(shape) < 2:
            return lines.reshape(shape)
        turned = (shape[-1], *shape[1:-1], shape[0])
        return lines.reshape(turned).transpose(0, -1)
