"""Model breadcrumbs: neither the outliers nor the small entries of each tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention, names_of
from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.sparse.sparsified import Key, Sparsified, Surveyed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Asked, Open
    from taskvec.vectors import Tensors


@register(
    "merge", "breadcrumbs", paper="Davari and Belilovsky, ECCV 2024, arXiv 2312.06795, section 3"
)
class Breadcrumbs(Sparsified):
    """theta_0 + alpha * sum_t m_t * tau_t, m_t keeping the middle of each tensor's entries in the order of magnitude.

    Of n entries the floor(``outliers`` n) largest go, floor(``density`` n) stay, and the smallest rest goes; if less
    than that many is left below the outliers, fewer outliers go. With ``consensus`` "elect": breadcrumbs with TIES.
    The other options are those of the scheme (see DARE).
    """

    kind: Literal["breadcrumbs"] = "breadcrumbs"
    density: float = Field(0.143, gt=0, le=1)
    outliers: float = Field(0.007, ge=0, lt=1)

    conventions = (
        Convention(
            "the paper",
            "",
            "its beta and gamma are 1 - density - outliers and 1 - outliers: 85 % and 99.3 %",
        ),
        Convention(
            "mergekit 0.1.5 (breadcrumbs)",
            "merge.outliers=0.01 merge.density=1",
            "no change by default",
        ),
        Convention(
            "mergekit 0.1.5 (breadcrumbs_ties)",
            "merge.outliers=0.01 merge.density=1 merge.consensus=elect merge.undecided=plus merge.divide=weights",
        ),
        Convention(
            "peft (magnitude_prune_svd)", "merge.outliers=0", "magnitude_prune: merge.of=factors"
        ),
    )

    @property
    def selects(self) -> bool:
        """True: for the two cuts."""
        return True

    @property
    def places(self) -> bool:
        """True: entries of equal magnitude are told apart."""
        return True

    def cuts(self, base: Tensors, deltas: Deltas) -> Mapping[Key, Sequence[Open]]:
        """Return the lower and the upper cut of each tensor of each vector."""
        from taskvec.merge.scheme.magnitudes import magnitudes
        from taskvec.merge.scheme.sparsify import opened

        found: dict[Key, Sequence[Open]] = {}
        for name in names_of(deltas):
            pieces, sample = magnitudes(base, deltas, [name])
            bands = [self._band(position, read) for position, read in enumerate(sample.entries)]
            lower, upper = zip(*bands, strict=True)
            cuts = opened(pieces, [*lower, *upper], sample)
            for position, delta in enumerate(deltas):
                if name in delta:
                    found[name, position] = (cuts[position], cuts[position + len(deltas)])
        return found

    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return the entries between the cuts."""
        from taskvec.merge.scheme.sparsify import above

        lower, upper = surveyed.cuts[piece.name, position]
        return above(delta, lower, piece.start) - above(delta, upper, piece.start)

    def _band(self, position: int, entries: int) -> tuple[Asked, Asked]:
        """Return the cuts of a vector's tensor by their ranks."""
        from taskvec.merge.scheme.sparsify import Asked

        stay = math.floor(self.density_of(position) * entries)
        go = min(math.floor(self.outliers * entries), entries - stay)
        lower = Asked(position, entries - go - stay, entries)
        return lower, Asked(position, entries - go, entries)
