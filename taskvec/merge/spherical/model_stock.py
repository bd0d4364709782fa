"""Model Stock: as far towards the mean of the fine-tuned models as their angle says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from taskvec.merge.base import Convention
from taskvec.merge.spherical.span import Span
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "model_stock", paper="Jang et al., ECCV 2024, arXiv 2403.19522, section 4")
class ModelStock(Span):
    """theta_0 + t mean_t tau_t for each tensor, t = T cos / (1 + (T - 1) cos), cos the mean cosine of two deltas.

    Vectors at right angles (or beyond, on average) leave theta_0 where it is, parallel ones give their mean.
    """

    kind: Literal["model_stock"] = "model_stock"
    of: Literal["deltas"] = "deltas"

    conventions = (
        Convention(
            "the paper, FusionBench, mergekit (model_stock)",
            "",
            "mergekit's filter_wise (rows) is not offered",
        ),
    )

    def coefficients(self, gram: Tensor) -> Tensor:
        """Return t / T for each vector."""
        from taskvec.merge.spherical.gram import model_stock

        return model_stock(gram)
