"""Fisher merging: entries weighted by how much each model's predictions depend on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

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


@dataclass(frozen=True)
class Fishers:
    """Each vector's Fisher by parameter name, and its share c_t."""

    diagonals: list[Tensors]
    shares: list[float]


@register("merge", "fisher", paper="Matena and Raffel, NeurIPS 2022, arXiv 2111.09832, section 3")
class Fisher(TensorWise):
    """sum_t c_t (F_t + 1e-6) theta_t / sum_t c_t (F_t + 1e-6) for each entry, F_t the diagonal Fisher of theta_t.

    Taken on ``examples`` training examples of each vector's own task, without labels, in groups of ``batch`` and of the
    ``outcome`` that the statistic of the name describes. ``normalised`` weighs every model by the inverse of its
    Fisher's norm over all parameters: c_t = (1/n_t) / sum_s (1/n_s) / T, else 1/T.
    """

    kind: Literal["fisher"] = "fisher"
    normalised: bool = True
    examples: int = Field(256, ge=1)
    outcome: Literal["root", "signed", "every"] = "root"
    batch: int = Field(1, ge=1)

    grid = AS_IT_IS
    conventions = (
        Convention(
            "the paper",
            "merge.outcome=every",
            "the Fisher information; signed estimates it in one pass",
        ),
        Convention(
            "MergeLM, FusionBench", "merge.batch=16", "they square the summed gradient of a batch"
        ),
    )

    def needs(self, scope: Scope) -> Needs:
        """Return each task's Fisher at its vector."""
        return [calibrated(self._diagonal(), scope, task, self.examples) for task in scope.tasks]

    def survey(self, base: Tensors, deltas: Deltas, given: Given) -> Fishers:
        """Return the Fishers and the vectors' shares."""
        from taskvec.merge.fitted.solve import fisher_shares

        diagonals = of_each(self._diagonal(), given, len(deltas), self.examples, self.kind)
        norms = []
        for diagonal in diagonals:
            squares = sum(float(diagonal[name].double().square().sum()) for name in diagonal)
            norms.append(squares**0.5)
        return Fishers(diagonals, fisher_shares(norms, self.normalised))

    def merge(self, piece: Piece, given: Given | None, surveyed: Fishers) -> Tensor:
        """Return the weighted mean of the deltas."""
        from taskvec.merge.fitted.solve import fisher_mean

        stop = piece.start + piece.base.numel()
        fishers = []
        for diagonal in surveyed.diagonals:
            fisher = None
            if piece.name in diagonal:
                fisher = diagonal[piece.name].reshape(-1)[piece.start : stop]
            fishers.append(fisher)
        return fisher_mean(piece.deltas, fishers, surveyed.shares)

    def _diagonal(self) -> Component:
        from taskvec.statistics.fisher import Fisher as Diagonal

        return Diagonal(outcome=self.outcome, batch=self.batch)
