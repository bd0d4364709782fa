"""The scheme that TIES, DARE, breadcrumbs and DELLA share: sparsify each vector, then combine what is left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from taskvec.errors import UserError
from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.sparse.factored import Factored
from taskvec.needs import Given

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.merge.scheme.sparsify import Cut, Open
    from taskvec.vectors import Tensors

Key = tuple[str, int]  # parameter name, position of the vector


@dataclass
class Surveyed:
    """What the sparsifiers know of whole parameters: cuts, the factors that restore norms, and the majority.

    ``counted`` is the number of positive minus negative sums over all parameters, None until it is asked for.
    """

    method: Sparsified
    base: Tensors
    deltas: Deltas
    seed: int
    cuts: dict[Key, Sequence[Cut]] = field(default_factory=dict)
    scales: Mapping[Key, float] = field(default_factory=dict)
    counted: int | None = None

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces, in the order of names and places."""
        from taskvec.merge.base import names_of
        from taskvec.merge.pieces import read_together

        for name in names_of(self.deltas):
            yield from read_together(self.base, self.deltas, name, self.method.grain)

    def majority(self) -> float:
        """Return the sign of the number of positive minus negative sums."""
        if self.counted is None:
            self.counted = sum(self.method.ballot(piece, self) for piece in self.pieces())
        return float((self.counted > 0) - (self.counted < 0))


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
        return self.votes_over_model

    @property
    def votes_over_model(self) -> bool:
        """Whether undecided entries ask for the majority over all parameters."""
        return self.consensus == "elect" and self.undecided != "plus"

    @property
    def selects(self) -> bool:
        """Whether a pass finds cuts."""
        return False

    @property
    def places(self) -> bool:
        """Whether a cut may run through entries of one magnitude, whose places are counted in another pass."""
        return False

    @property
    def passes(self) -> int:
        """For cuts; for places or norms, or both; for the majority, unless it is counted along with places."""
        norms = self.rescale == "l1"
        votes = self.votes_over_model and (norms or not self.places)
        return 1 + self.selects + (self.places or norms) + votes

    @abstractmethod
    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return what is kept of one vector's delta, before ``rescale``."""

    def density_of(self, position: int) -> float:
        """Return the density of a vector."""
        return self.density if self.densities is None else self.densities[position]

    def cuts(self, base: Tensors, deltas: Deltas) -> Mapping[Key, Sequence[Open]]:
        """Return the cuts that :meth:`sparse` asks for, by parameter and vector."""
        return {}

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> Surveyed:
        """Return cuts, and the factors that restore norms."""
        self.check_densities(len(deltas))
        seed = self.seed_of(given)
        surveyed = Surveyed(self, base, deltas, seed)
        cuts = self.cuts(base, deltas)
        between_equals = any(cut.left for own in cuts.values() for cut in own)
        if between_equals or self.rescale == "l1":
            self._read_on(surveyed, cuts)
        else:
            for key, own in cuts.items():
                surveyed.cuts[key] = tuple(cut.settled for cut in own)
        return surveyed

    def _read_on(self, surveyed: Surveyed, cuts: Mapping[Key, Sequence[Open]]) -> None:
        """Find the places of cuts, norms, and the majority unless it depends on the norms, in one pass."""
        norms: dict[Key, list[float]] = {}
        count = 0
        for piece in surveyed.pieces():
            for position, delta in piece.present:
                key = (piece.name, position)
                before = surveyed.cuts.get(key)
                surveyed.cuts[key] = _followed(cuts.get(key, ()), before, delta, piece.start)
                if self.rescale == "l1":
                    kept = self.sparse(piece, position, delta, surveyed)
                    sums = norms.setdefault(key, [0.0, 0.0])
                    sums[0] += float(delta.abs().double().sum())
                    sums[1] += float(kept.abs().double().sum())
            if self.votes_over_model and self.rescale != "l1":
                count += self.ballot(piece, surveyed)
        if self.rescale != "l1":
            surveyed.counted = count
        surveyed.scales = {
            key: whole / kept if kept else 1.0 for key, (whole, kept) in norms.items()
        }

    def check_densities(self, count: int) -> None:
        """Check that there is one density for each vector, if there are any.

        Raises:
            UserError: if there are not.
        """
        if self.densities is not None and len(self.densities) != count:
            raise UserError(
                f"merge.densities holds {len(self.densities)} numbers, there are {count} task vectors"
            )

    def merge(self, piece: Piece, given: Given | None, surveyed: Surveyed) -> Tensor:
        """Return the consensus of the sparsified deltas."""
        from taskvec.merge.scheme.consensus import elected, weighted_sum

        parts, weights = self._kept(piece, surveyed)
        if self.consensus == "sum":
            return weighted_sum(parts, weights)
        return elected(parts, weights, self.election(), surveyed.majority)

    def ballot(self, piece: Piece, surveyed: Surveyed) -> int:
        """Return how many more of the sums whose signs are elected are positive than negative."""
        from taskvec.merge.scheme.consensus import weighted_sum

        parts, weights = self._kept(piece, surveyed)
        if self.weigh != "before":
            weights = [1.0] * len(parts)
        sums = weighted_sum(parts, weights)
        return int(sums.sign().sum())

    def _kept(self, piece: Piece, surveyed: Surveyed) -> tuple[list[Tensor], list[float]]:
        weights = self.weights_for(len(piece.deltas))
        parts = []
        for position, delta in piece.present:
            kept = self.sparse(piece, position, delta, surveyed)
            scale = surveyed.scales.get((piece.name, position), 1.0)
            if scale != 1:
                kept = kept * scale
            parts.append(kept)
        return parts, [weights[position] for position, _ in piece.present]

    def election(self) -> Any:
        """Return the rules of the election."""
        from taskvec.merge.scheme.consensus import Election

        return Election(self.combine, self.undecided, self.weigh, self.divide)


def _followed(
    cuts: Sequence[Open], before: Sequence[Cut] | None, delta: Tensor, start: int
) -> tuple[Cut, ...]:
    """Return cuts as far as the next run of a tensor tells; those whose place was found before stay."""
    found = []
    for number, cut in enumerate(cuts):
        settled = before is not None and cut.left == 0
        now = before[number] if settled else cut.within(delta, start)
        found.append(now)
    return tuple(found)
