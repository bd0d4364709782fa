"""DELLA: drop entries at random, small ones more often."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from taskvec.merge.base import Convention
from taskvec.merge.piece import Piece
from taskvec.merge.sparse.sparsified import Sparsified, Surveyed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "della", paper="Deep et al., 2024, arXiv 2406.11617, section 3")
class Della(Sparsified):
    """theta_0 + alpha * consensus of m_t * tau_t / p_t, each entry of m_t being 1 with its probability p_t.

    p = density - spread + 2 spread (rank - 1) / (n - 1), the rank by magnitude among the n entries of a row (for
    kernels: of an output channel; a vector is one row). ``rescale`` "probability" divides each entry by its own p,
    which makes the mean over seeds the vector itself; "l1" gives every tensor its L1 norm back. The masks are a
    function of seed, parameter name and the vector's position. The other options are those of the scheme (see
    DARE).
    """

    kind: Literal["della"] = "della"
    density: float = Field(0.5, gt=0, le=1)
    spread: float = Field(0.05, ge=0, lt=0.5)
    consensus: Literal["sum", "elect"] = "elect"
    rescale: Literal["none", "probability", "l1"] = "probability"

    grain = "row"
    draws = True
    conventions = (
        Convention("the paper", ""),
        Convention(
            "mergekit (della)",
            "merge.spread=0.15 merge.rescale=l1 merge.undecided=plus merge.divide=weights",
            "it raises on numbers without an axis",
        ),
        Convention(
            "mergekit (della_linear)", "merge.spread=0.15 merge.rescale=l1 merge.consensus=sum"
        ),
    )

    @model_validator(mode="after")
    def _probabilities(self) -> Della:
        for density in self.densities or (self.density,):
            if self.spread and not self.spread < density <= 1 - self.spread:
                raise ValueError("density - spread must be above 0, density + spread at most 1")
        return self

    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return the entries that the mask keeps, divided by their probabilities if so asked."""
        from taskvec.merge.scheme.sparsify import drawn, keep_probabilities
        from taskvec.vectors.noise import Stream

        density = self.density_of(position)
        probabilities = keep_probabilities(delta, density, self.spread)
        kept = drawn(delta, probabilities, Stream(surveyed.seed, piece.name, position), piece.start)
        return kept / probabilities if self.rescale == "probability" else kept
