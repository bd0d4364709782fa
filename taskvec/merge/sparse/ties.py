"""TIES: trim small entries, elect a sign for each, merge what agrees with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import WIDE_GRID, Convention, names_of
from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.sparse.sparsified import Key, Sparsified, Surveyed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Asked, Open
    from taskvec.vectors import Tensors


@register("merge", "ties", paper="Yadav et al., NeurIPS 2023, arXiv 2306.01708, section 4")
class Ties(Sparsified):
    """theta_0 + alpha * mean over the trimmed entries that agree with sign(sum_t trim(tau_t)).

    trim keeps the share ``density`` of largest magnitude, over all editable parameters (``scope`` "model"; d entries)
    or of each tensor by itself (n entries). ``kept`` says how many that is: "inclusive" floor(d K) + 1, "complement"
    d - floor((1 - K) d) + 1, both with all entries that equal the smallest; "exact" max(1, floor(d K)), equal ones by
    place. Trimming comes before ``weights``. The other options are those of the scheme (see DARE).
    """

    kind: Literal["ties"] = "ties"
    density: float = Field(0.2, gt=0, le=1)
    scope: Literal["model", "tensor"] = "model"
    kept: Literal["inclusive", "complement", "exact"] = "inclusive"
    consensus: Literal["sum", "elect"] = "elect"

    grid = WIDE_GRID
    conventions = (
        Convention("the paper, its code, the TSV repository", ""),
        Convention("FusionBench", "merge.combine=sum", "it raises at 100 % and at 1 %; alpha 0.3"),
        Convention("MergeLM, EMR, PAVE", "merge.kept=complement merge.undecided=majority"),
        Convention(
            "mergekit (ties)",
            "merge.scope=tensor merge.kept=exact merge.undecided=plus merge.divide=weights",
            "its weights are merge.weights; normalize: false is merge.combine=sum",
        ),
        Convention(
            "peft (ties_svd)",
            "merge.scope=tensor merge.kept=exact merge.undecided=plus merge.weigh=after",
            "ties: the same with merge.of=factors",
        ),
        Convention(
            "merge-and-rebase",
            "merge.kept=exact merge.density=1 merge.divide=weights",
            "no trimming by default",
        ),
    )

    @property
    def over_model(self) -> bool:
        """Whether thresholds, or undecided entries, are those of all parameters."""
        return self.scope == "model" or super().over_model

    @property
    def selects(self) -> bool:
        """True: for the thresholds."""
        return True

    @property
    def places(self) -> bool:
        """Whether entries of equal magnitude are told apart."""
        return self.kept == "exact"

    def cuts(self, base: Tensors, deltas: Deltas) -> Mapping[Key, Sequence[Open]]:
        """Return each vector's cut within each tensor; that of all tensors is one object."""
        from taskvec.merge.scheme.magnitudes import magnitudes
        from taskvec.merge.scheme.sparsify import opened

        names = names_of(deltas)
        groups = [names] if self.scope == "model" else [[name] for name in names]
        found: dict[Key, Sequence[Open]] = {}
        for group in groups:
            pieces, sample = magnitudes(base, deltas, group)
            asked = self._asked(base, sample.entries)
            for position, cut in enumerate(opened(pieces, asked, sample)):
                found |= {(name, position): (cut,) for name in group}
        return found

    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return the entries above the cut."""
        from taskvec.merge.scheme.sparsify import above

        (cut,) = surveyed.cuts[piece.name, position]
        return above(delta, cut, piece.start)

    def _asked(self, base: Tensors, present: Sequence[int]) -> list[Asked]:
        """Return each vector's cut by its rank, given how many entries of each are read."""
        from taskvec.merge.scheme.sparsify import Asked
        from taskvec.vectors.deferred import count_of

        whole = sum(count_of(base, name) for name in base)
        asked = []
        for position, read in enumerate(present):
            entries = whole if self.scope == "model" else read
            rank = self._rank(self.density_of(position), entries)
            # What no vector or not this one changes is zero by declaration
            zeros = entries - read
            asked.append(Asked(position, rank, entries, zeros, exact=self.kept == "exact"))
        return asked

    def _rank(self, density: float, entries: int) -> int:
        """Return how many entries are below the cut, or (not "exact") the rank of one that is trimmed last."""
        if self.kept == "exact":
            return entries - max(1, math.floor(entries * density))
        if self.kept == "inclusive":
            return entries - math.floor(entries * density) - 1
        return math.floor(entries * (1 - density)) - 1
