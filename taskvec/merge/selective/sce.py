"""SCE: select entries by variance, calculate weights from energies, erase minority signs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import AS_IT_IS, Convention, TensorWise, names_of
from taskvec.merge.piece import Deltas, Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Cut, Open
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
        """Select, add up energies, merge."""
        return 2 if self.select == 1 else 3

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

        opened = self._cut(base, deltas, name)
        cut = opened.settled
        energies = [0.0] * len(deltas)
        for piece in read_together(base, deltas, name):
            if opened.left:
                cut = opened.within(variance(piece), piece.start)
            for (position, _), part in zip(piece.present, selected(piece, cut), strict=True):
                energies[position] += float(part.double().square().sum())
        total = sum(energies)
        if total == 0:
            return Plan(cut, [1 / len(deltas)] * len(deltas))
        return Plan(cut, [energy / total for energy in energies])

    def _cut(self, base: Tensors, deltas: Deltas, name: str) -> Open:
        """Return the cut through the variances; how many are not zero is counted in the same pass."""
        from taskvec.merge.pieces import are_read, read_together, sample_share
        from taskvec.merge.scheme.order import Sample, Wanted
        from taskvec.merge.scheme.select import Selection
        from taskvec.merge.scheme.sparsify import EVERYTHING, NOTHING, Open
        from taskvec.vectors.deferred import count_of

        if self.select == 1:
            return Open(EVERYTHING.magnitude)

        def variances(share: int) -> Iterator[list[Tensor]]:
            for piece in read_together(base, deltas, name, "entry", share):
                yield [variance(piece)]

        entries = count_of(base, name)
        share = sample_share(entries)
        varied, seen = 0, 1
        few = (lambda: variances(share)) if are_read(deltas) else None
        for (found,) in few() if few else ():
            varied += int(found.count_nonzero())
            seen += found.numel()
        expected = entries - math.floor(self.select * entries * varied / seen)
        sample = Sample(few, [entries])
        selection = Selection(lambda: variances(1), [Wanted(0, expected)], sample, zeros=True)
        wanted = math.floor(self.select * (entries - selection.zeros[0]))
        if wanted == 0:
            return Open(NOTHING.magnitude)
        rank = entries - wanted
        (found,) = selection.find([Wanted(0, rank)])
        return Open(found.value, rank - found.below)


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
