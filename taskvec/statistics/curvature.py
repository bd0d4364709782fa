"""The curvature of a model's features: the GGN of the squared change of the features, as independent blocks.

TAK, the authors' KFAC-regularised task vectors (spec 3.1, 3.2); Eschenhagen et al., Kronecker-Factored Approximate
Curvature for Modern Neural Network Architectures, NeurIPS 2023, arXiv 2311.00636.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from taskvec.registry import register
from taskvec.statistics.approximation import Approximation
from taskvec.statistics.base import Accumulator, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.curvature_value import Curvature
    from taskvec.statistics.passes.survey import Survey


@register("statistic", "curvature", paper="Eschenhagen et al., NeurIPS 2023, arXiv 2311.00636")
class FeatureCurvature(Approximation, Statistic):
    """G = (1/n) sum_x J(x)^T J(x), J the Jacobian of the features, block by block; EKFAC takes two passes.

    The value is a :class:`taskvec.statistics.curvature_value.Curvature`. Parameters that modules share, that are used
    several times or not once per example, or of another kind (position, patch and token embeddings) have no block.
    """

    kind: Literal["curvature"] = "curvature"

    gradient: ClassVar[bool] = True

    def accumulator(self, *surveys: Survey) -> Accumulator:
        """Return the sums of the first pass."""
        from taskvec.statistics.accumulators.ggn import CurvatureSums

        (survey,) = surveys
        return CurvatureSums(survey, self)

    def pack(self, value: Curvature) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the blocks' tensors, a shared factor once, and the header."""
        return value.pack()

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Curvature:
        """Return the curvature over stored tensors.

        Raises:
            ValueError: if other settings shaped them, naming these.
        """
        from taskvec.statistics.curvature_value import Curvature

        return Curvature.unpack(tensors, meta, self.record())
