"""RegMean: the linear layers whose outputs are nearest to those of every model on its own inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec.config import Component
from taskvec.merge.base import AS_IT_IS, Convention, TensorWise
from taskvec.merge.fitted.calibration import calibrated, of_each
from taskvec.merge.piece import Deltas, Piece
from taskvec.needs import Given, Needs, Scope
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors


@register("merge", "regmean", paper="Jin et al., ICLR 2023, arXiv 2212.09849, section 3")
class RegMean(TensorWise):
    """W = (sum_t W_t G_t) (sum_t G_t)^-1 for each linear layer, G_t = X^T X / N of the layer's inputs under theta_t.

    The off-diagonal entries of G_t are multiplied by ``off_diagonal``. The inputs are those of ``examples`` training
    examples of each vector's own task, all real tokens. Every other parameter is averaged, and so are directions of the
    inputs that no example has. In float64, without damping.
    """

    kind: Literal["regmean"] = "regmean"
    off_diagonal: float = Field(0.9, ge=0, le=1)
    examples: int = Field(256, ge=1)

    grid = AS_IT_IS
    grain = "tensor"
    stored = True
    conventions = (
        Convention("the paper", "", "0.1 for T5"),
        Convention("FusionBench for CLIP", "merge.off_diagonal=0.95", "0.6 for GPT-2"),
        Convention("MergeLM", "merge.off_diagonal=1"),
    )

    def needs(self, scope: Scope) -> Needs:
        """Return each task's input moments at its vector."""
        return [calibrated(self._moments(), scope, task, self.examples) for task in scope.tasks]

    def survey(self, base: Tensors, deltas: Deltas, given: Given) -> list[Mapping[str, Any]]:
        """Return each vector's moments by layer name."""
        return of_each(self._moments(), given, len(deltas), self.examples, self.kind)

    def merge(
        self, piece: Piece, given: Given | None, surveyed: Sequence[Mapping[str, Any]]
    ) -> Tensor:
        """Return the regression of a layer's weight, or the mean of another parameter."""
        from taskvec.merge.fitted.solve import regression, shrunk

        parts = piece.parts
        mean = sum(parts[1:], parts[0]) / len(piece.deltas)
        layer = piece.name.removesuffix(".weight")
        fits = piece.name.endswith(".weight") and all(layer in moments for moments in surveyed)
        if not fits:
            return mean
        grams = []
        for moments in surveyed:
            found = moments[layer]
            grams.append(shrunk(found.gram.to(mean.device) / max(1, found.rows), self.off_diagonal))
        return regression(piece.deltas, grams, mean)

    def _moments(self) -> Component:
        from taskvec.statistics.input_moments import InputMoments

        return InputMoments()
