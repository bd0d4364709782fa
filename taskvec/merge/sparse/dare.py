"""DARE: drop entries at random and rescale the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention
from taskvec.merge.piece import Piece
from taskvec.merge.sparse.sparsified import Sparsified, Surveyed
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "dare", paper="Yu et al., ICML 2024, arXiv 2311.03099, section 3")
class Dare(Sparsified):
    """theta_0 + alpha * sum_t m_t * tau_t / density, each entry of m_t being 1 with probability ``density`` = 1 - p.

    The masks are a function of seed, parameter name and the vector's position. ``consensus`` "elect" is DARE-TIES.
    ``rescale`` "density" divides by the density, so that the mean over seeds is task arithmetic; "l1" gives every
    tensor its L1 norm back.

    The scheme: with "elect" an entry of the sparsified vectors x_t is merged from those that agree with the sign of
    sum_t x_t, as their ``combine`` (sum, mean, max). ``undecided`` is the sign where the sum is zero: the majority over
    all parameters (where that is zero too, minus or none), or plus. ``weights`` multiply the vectors before the
    election or after it (``weigh``); a mean divides by the number of agreeing vectors or their weights (``divide``).
    ``densities`` has one for each vector, in place of ``density``.
    ``of`` "factors" sparsifies and merges the factors of LoRA vectors instead of their products.
    """

    kind: Literal["dare"] = "dare"
    density: float = Field(0.5, gt=0, le=1)
    rescale: Literal["none", "density", "l1"] = "density"

    draws = True
    conventions = (
        Convention(
            "the paper with task arithmetic, FusionBench",
            "",
            "FusionBench's DareSimpleAverage: alpha 1/T",
        ),
        Convention("the paper with TIES, MergeLM's mask merging", "merge.consensus=elect"),
        Convention(
            "mergekit (dare_linear)", "merge.rescale=l1", "rescale: false is merge.rescale=none"
        ),
        Convention(
            "mergekit (dare_ties)",
            "merge.rescale=l1 merge.consensus=elect merge.undecided=plus merge.divide=weights",
        ),
        Convention("peft (dare_linear_svd)", "", "dare_linear: merge.of=factors"),
        Convention(
            "peft (dare_ties_svd)",
            "merge.consensus=elect merge.undecided=plus merge.weigh=after",
            "dare_ties: the same with merge.of=factors",
        ),
    )

    def sparse(self, piece: Piece, position: int, delta: Tensor, surveyed: Surveyed) -> Tensor:
        """Return the entries that the mask keeps, divided by the density if so asked."""
        from taskvec.merge.scheme.sparsify import dropped
        from taskvec.vectors.noise import Stream

        stream = Stream(surveyed.seed, piece.name, position)
        density = self.density_of(position)
        kept = dropped(delta, density, stream, piece.start)
        return kept / density if self.rescale == "density" else kept
