"""SCE: select entries by variance, calculate weights from energies, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import AS_IT_IS, Convention, TensorWise, names_of
from taskvec.merge.piece import Deltas, Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Cut
    from taskvec.vectors import Tensors


@dataclass(frozen=True)
class Plan:
    """Of one tensor: above which cut of the variances entries are selected, and the vectors' weights."""

    cut: Cut
    weights: list[float]


@register("merge", "sce", paper="Wan et al., FuseChat, 2024, arXiv 2408.07990, section 3.3")
class Sce(TensorWise):
    """theta_0 + alpha * sum_A w_t tau_t / sum_A w_t, A the vectors that agree with sign(sum_t tau_t), tensor by tensor.

    Selected are the floor(``select`` k) entries of largest variance over the vectors, of the k whose variance is not
    zero; from ``select`` 1 on all entries. The weights are w_t = ||tau_t||^2 / sum_s ||tau_s||^2 over what is selected.
    A zero sum counts as plus.
    """

    kind: Literal["sce"] = "sce"
    select: float = Field(0.1, gt=0, le=1)

    grid = AS_IT_IS
    conventions = (
        Convention("the paper", "", "tau = 10 %"),
        Convention(
            "mergekit (sce)",
            "merge.select=1",
            "its default selects all; select_topk is merge.select",
        ),
    )

    @property
    def passes(self) -> int:
        """Count, select (three), add up energies, merge."""
        return 3 if self.select == 1 else 7

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> dict[str, Plan]:
        """Return the plan of each tensor."""
        return {name: self._plan(base, deltas, name) for name in names_of(deltas)}

    def merge(self, piece: Piece, given: Given | None, surveyed: Mapping[str, Plan]) -> Tensor:
        """Return the weighted mean of what agrees."""
        from taskvec.merge.scheme.consensus import Election, elected

        plan = surveyed[piece.name]
        parts = selected(piece, plan.cut)
        weights = [plan.weights[position] for position, _ in piece.present]
        rules = Election("mean", "plus", "after", "weights")
        return elected(parts, weights, rules, None)

    def _plan(self, base: Tensors, deltas: Deltas, name: str) -> Plan:
        from taskvec.merge.pieces import read_together

        def pieces():
            return read_together(base, deltas, name)

        cut = self._cut(pieces)
        energies = [0.0] * len(deltas)
        for piece in pieces():
            for (position, _), part in zip(piece.present, selected(piece, cut), strict=True):
                energies[position] += float(part.double().square().sum())
        total = sum(energies)
        if total == 0:
            return Plan(cut, [1 / len(deltas)] * len(deltas))
        return Plan(cut, [energy / total for energy in energies])

    def _cut(self, pieces) -> Cut:
        from taskvec.merge.scheme.sparsify import EVERYTHING, cut_of_rank

        if self.select == 1:
            return EVERYTHING

        def variances():
            return (variance(piece) for piece in pieces())

        entries = sum(found.numel() for found in variances())
        varied = sum(int(found.count_nonzero()) for found in variances())
        wanted = math.floor(self.select * varied)
        return cut_of_rank(variances, entries - wanted, entries)


def variance(piece: Piece) -> Tensor:
    """Return the entries' variance over all vectors (divided by their number), absent ones being zero."""
    from taskvec.merge.scheme.consensus import summed

    parts = piece.parts
    count = len(piece.deltas)
    mean = summed(parts) / count
    deviations = [part - mean for part in parts]
    present = summed([deviation.square_() for deviation in deviations])
    absent = mean.square() * (count - len(parts))
    return (present + absent) / count


def selected(piece: Piece, cut: Cut) -> list[Tensor]:
    """Return the deltas with the entries whose variance is below the cut set to zero."""
    from taskvec.merge.scheme.sparsify import EVERYTHING, above

    parts = piece.parts
    if cut == EVERYTHING:
        return parts
    mask = above(variance(piece), cut, piece.start) != 0
    return [part * mask for part in parts]
