"""The scheme that TIES, DARE, breadcrumbs and DELLA share: sparsify each vector, then combine what is left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.sparse.factored import Factored
from taskvec.needs import Given

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Cut
    from taskvec.vectors import Tensors

Key = tuple[str, int]  # parameter name, position of the vector


@dataclass
class Surveyed:
    """What the sparsifiers know of whole parameters: cuts, the factors that restore norms, and the majority."""

    method: Sparsified
    base: Tensors
    deltas: Deltas
    seed: int
    cuts: Mapping[Key, Sequence[Cut]]
    scales: Mapping[Key, float]

    @cached_property
    def majority(self) -> float:
        """The sign of the number of positive minus negative sums over all parameters."""
        from taskvec.merge.base import names_of
        from taskvec.merge.pieces import read_together

        count = 0
        for name in names_of(self.deltas):
            for piece in read_together(self.base, self.deltas, name, self.method.grain):
                count += int(self.method.votes(piece, self).sign().sum())
        return float((count > 0) - (count < 0))


class Sparsified(Factored):
    """sum over what is kept of each vector, or over what agrees with an elected sign.

    ``consensus`` "sum" adds the sparsified vectors. "elect" keeps the entries that agree with the sign of their sum and
    takes their ``combine``: sum, mean, or the largest. ``undecided`` is the sign where a sum is zero: the majority over
    all parameters (where that is zero too, minus or none), or plus. ``weights`` multiply the vectors before the
    election or after it (``weigh``); a mean divides by the number of agreeing vectors or by the sum of their weights
    (``divide``). ``densities`` has one for each vector in order, in place of ``density``. ``rescale`` "l1" gives every
    sparsified tensor the L1 norm that it had. ``of`` "factors" sparsifies and merges the factors of LoRA vectors
    instead of their products.
    """

    density: float = Field(1.0, gt=0, le=1)
    consensus: Literal["sum", "elect"] = "sum"
    combine: Literal["sum", "mean", "max"] = "mean"
    undecided: Literal["majority_or_minus", "majority", "plus"] = "majority_or_minus"
    weigh: Literal["before", "after"] = "before"
    divide: Literal["count", "weights"] = "count"
    rescale: Literal["none", "l1"] = "none"
    densities: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = Field(None, min_length=1)

    grain = "entry"

    @property
    def over_model(self) -> bool:
        """Whether undecided entries ask for the majority over all parameters."""
        return self.consensus == "elect" and self.undecided != "plus"

    @property
    def passes(self) -> int:
        """One more where norms are restored."""
        return 2 if self.rescale == "l1" else 1

    @abstractmethod
    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return what is kept of one vector's delta, before ``rescale``."""

    def density_of(self, position: int) -> float:
        """Return the density of a vector."""
        return self.density if self.densities is None else self.densities[position]

    def cuts(self, base: Tensors, deltas: Deltas) -> Mapping[Key, Sequence[Cut]]:
        """Return the cuts that :meth:`sparse` asks for, by parameter and vector."""
        return {}

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> Surveyed:
        """Return cuts, and the factors that restore norms."""
        self.check_densities(len(deltas))
        seed = self.seed_of(given)
        surveyed = Surveyed(self, base, deltas, seed, self.cuts(base, deltas), {})
        if self.rescale != "l1":
            return surveyed
        return Surveyed(self, base, deltas, seed, surveyed.cuts, self._norm_factors(surveyed))

    def check_densities(self, count: int) -> None:
        """Check that there is one density for each vector, if there are any.

        Raises:
            UserError: if there are not.
        """
        if self.densities is not None and len(self.densities) != count:
            raise UserError(
                f"merge.densities holds {len(self.densities)} numbers, there are {count} task vectors"
            )

    def _norm_factors(self, surveyed: Surveyed) -> dict[Key, float]:
        """Return ||tau||_1 / ||sparse tau||_1 for each tensor, 1 where nothing was kept."""
        from taskvec.merge.base import names_of
        from taskvec.merge.pieces import read_together

        norms: dict[Key, list[float]] = {}
        for name in names_of(surveyed.deltas):
            for piece in read_together(surveyed.base, surveyed.deltas, name, self.grain):
                for position, delta in piece.present:
                    kept = self.sparse(piece, position, delta, surveyed)
                    sums = norms.setdefault((name, position), [0.0, 0.0])
                    sums[0] += float(delta.abs().double().sum())
                    sums[1] += float(kept.abs().double().sum())
        return {key: whole / kept if kept else 1.0 for key, (whole, kept) in norms.items()}

    def merge(self, piece: Piece, given: Given | None, surveyed: Surveyed) -> Tensor:
        """Return the consensus of the sparsified deltas."""
        from taskvec.merge.scheme.consensus import elected, weighted_sum

        parts, weights = self._kept(piece, surveyed)
        if self.consensus == "sum":
            return weighted_sum(parts, weights)
        return elected(parts, weights, self.election(), lambda: surveyed.majority)

    def votes(self, piece: Piece, surveyed: Surveyed) -> Tensor:
        """Return the sums whose signs are elected."""
        from taskvec.merge.scheme.consensus import weighted_sum

        parts, weights = self._kept(piece, surveyed)
        return weighted_sum(parts, weights if self.weigh == "before" else (1.0,) * len(parts))

    def _kept(self, piece: Piece, surveyed: Surveyed) -> tuple[list[Tensor], list[float]]:
        weights = self.weights_for(len(piece.deltas))
        parts = []
        for position, delta in piece.present:
            kept = self.sparse(piece, position, delta, surveyed)
            scale = surveyed.scales.get((piece.name, position), 1.0)
            parts.append(kept if scale == 1 else kept * scale)
        return parts, [weights[position] for position, _ in piece.present]

    def election(self) -> Any:
        """Return the rules of the election."""
        from taskvec.merge.scheme.consensus import Election

        return Election(self.combine, self.undecided, self.weigh, self.divide)
