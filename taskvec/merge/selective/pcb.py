"""PCB-Merging: entries compete within a vector and between vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention, TensorWise
from taskvec.merge.piece import Deltas, Piece
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.selective.competition import Range, Ranges
    from taskvec.vectors import Tensors


@register("merge", "pcb", paper="Du et al., NeurIPS 2024, arXiv 2410.02396, section 3")
class Pcb(TensorWise):
    """theta_0 + alpha * sum_t s_t sign(tau_t) A_t / sum_t s_t, s_t the competition score of each entry, in [0, 1].

    Over all d editable entries of a vector: A = |tau| clamped to its quantiles ``tails`` and 1 - ``tails``, N = A
    mapped to [0, 1], balance b = exp(T N^2) * tanh(tau * sum_t tau_t), and s = b clamped from below at its quantile
    1 - ``ratio`` and mapped to [0, 1]. ``opponents`` "normalised" puts sum_t sign(tau_t) N_t in place of sum_t tau_t.
    """

    kind: Literal["pcb"] = "pcb"
    ratio: float = Field(0.1, gt=0, le=1)
    tails: float = Field(1e-4, ge=0, lt=0.5)
    opponents: Literal["deltas", "normalised"] = "deltas"

    grid = tuple(round(0.8 + 0.05 * step, 2) for step in range(11))  # 0.8, ..., 1.3
    conventions = (
        Convention(
            "the authors' pcb-merging.py",
            "",
            "alpha searched in 0.8 to 1.3, or 1.2; also ratio 0.05",
        ),
        Convention(
            "the authors' pcb.py for vision, merge-and-rebase",
            "merge.tails=0.01 merge.ratio=0.05 merge.opponents=normalised",
            "alpha 1.2",
        ),
    )

    @property
    def over_model(self) -> bool:
        """True: quantiles are those of all parameters."""
        return True

    @property
    def passes(self) -> int:
        """One for each pair of quantiles, and one to merge."""
        return 3

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> Ranges:
        """Return the ranges over all parameters: quantiles of the magnitudes first, then those of the balances."""
        from taskvec.merge.selective.competition import Ranges, all_entries, quantiles
        from taskvec.vectors.deferred import count_of

        entries = sum(count_of(base, name) for name in base)
        low = math.floor(entries * self.tails)
        high = max(0, math.floor(entries * (1 - self.tails) - 1))
        threshold = min(entries - 1, math.floor(entries * (1 - self.ratio)))

        def magnitudes(share: int) -> Iterator[list[Tensor]]:
            for run in all_entries(base, deltas, share):
                yield [delta.abs() for delta in run]

        ranges = quantiles(magnitudes, deltas, entries, (low, high))

        def balances(share: int) -> Iterator[list[Tensor]]:
            for run in all_entries(base, deltas, share):
                yield self._balances(run, ranges)

        ends = (threshold, entries - 1)
        return Ranges(ranges, quantiles(balances, deltas, entries, ends))

    def merge(self, piece: Piece, given: Given | None, surveyed: Ranges) -> Tensor:
        """Return the mean of signed clamped magnitudes, weighted by score."""
        from taskvec.merge.selective.competition import every, winners

        deltas = every(piece)
        contested = self._balances(deltas, surveyed.magnitudes)
        return winners(deltas, contested, surveyed)

    def _balances(self, deltas: Sequence[Tensor], magnitudes: Sequence[Range]) -> list[Tensor]:
        from taskvec.merge.selective.competition import balances

        return balances(deltas, magnitudes, normalised=self.opponents == "normalised")
