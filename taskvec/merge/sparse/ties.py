"""TIES: trim small entries, elect a sign for each, merge what agrees with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import WIDE_GRID, Convention
from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.sparse.sparsified import Key, Sparsified, Surveyed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Cut
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
    def passes(self) -> int:
        """Two for the thresholds, and one to find the place of an entry among equal ones."""
        selecting = 3 if self.kept == "exact" else 2
        return selecting + super().passes

    def cuts(self, base: Tensors, deltas: Deltas) -> Mapping[Key, Sequence[Cut]]:
        """Return each vector's cut within each tensor."""
        found: dict[Key, Sequence[Cut]] = {}
        for position, delta in enumerate(deltas):
            density = self.density_of(position)
            cuts = (
                self._model_cuts(base, delta, density)
                if self.scope == "model"
                else self._tensor_cuts(delta, density)
            )
            found |= {(name, position): (cut,) for name, cut in cuts.items()}
        return found

    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return the entries above the cut."""
        from taskvec.merge.scheme.sparsify import above

        (cut,) = surveyed.cuts[piece.name, position]
        return above(delta, cut, piece.start)

    def _model_cuts(self, base: Tensors, delta: Tensors, density: float) -> dict[str, Cut]:
        from taskvec.merge.pieces import read
        from taskvec.merge.scheme.sparsify import flat_cuts
        from taskvec.vectors.deferred import count_of

        lengths = [count_of(delta, name) for name in delta]
        # Zeros, by declaration
        absent = sum(count_of(base, name) for name in base if name not in delta)

        def pieces():
            return (piece for name in delta for piece in read(delta, name))

        cut = self._cut(pieces, density, sum(lengths) + absent, absent)
        return dict(flat_cuts(delta, lengths, cut))

    def _tensor_cuts(self, delta: Tensors, density: float) -> dict[str, Cut]:
        from taskvec.merge.pieces import read
        from taskvec.vectors.deferred import count_of

        def pieces(name: str):
            return lambda: read(delta, name)

        return {name: self._cut(pieces(name), density, count_of(delta, name), 0) for name in delta}

    def _cut(self, pieces, density: float, entries: int, zeros: int) -> Cut:
        from taskvec.merge.scheme.sparsify import EVERYTHING, cut_of_rank, inclusive_cut

        if entries == zeros:
            return EVERYTHING
        if self.kept == "exact":
            wanted = max(1, math.floor(entries * density))
            return cut_of_rank(pieces, entries - wanted, entries, zeros)
        if self.kept == "inclusive":
            number = entries - math.floor(entries * density)
        else:
            number = math.floor(entries * (1 - density))
        return inclusive_cut(pieces, number - 1, zeros) if number else EVERYTHING
