"""The curvature of a model's features: the GGN of the squared change of the features, as independent blocks.

TAK, the authors' KFAC-regularised task vectors (spec 3.1, 3.2); Eschenhagen et al., Kronecker-Factored Approximate
Curvature for Modern Neural Network Architectures, NeurIPS 2023, arXiv 2311.00636.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from taskvec.config import Config
from taskvec.registry import register
from taskvec.statistics.base import Accumulator, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.curvature_value import Curvature
    from taskvec.statistics.passes.survey import Survey


class Approximation(Config):
    """How the GGN of the features is approximated and estimated (spec 3.2, 3.5).

    ``probes`` counts the Gaussian backward vectors per example, drawn by ``seed``; 0 takes the exact sum over the
    feature's channels. ``precision`` is that of products and sums. ``faithful`` takes the conventions of the authors'
    code: 1/R in B too, probes summed, full blocks of EKFAC summed over examples, and B summed over tasks when merged.

    ``sharing`` is the treatment of a layer's tokens (Eschenhagen et al.). curvlinops gives c B (x) A where its loss is
    MSELoss: c = 2n with reduction "sum" over n examples (its Hessian is 2 I, and it does not divide by n), c = 2/d with
    "mean" over the features' d channels. ``reduce`` gives key projections no curvature, so it leaves them unpenalised:
    their gradients sum to zero over the tokens, because the same shift of all keys moves all scores of a query alike
    and softmax does not see it (with rotary positions the shift differs from token to token, and something is left).
    """

    structure: Literal["kfac", "ekfac", "diag_ggn"] = "kfac"
    probes: int = Field(1, ge=0)
    sharing: Literal["expand", "reduce"] = "expand"
    precision: Literal["float32", "float64"] = "float32"
    seed: int = 0
    faithful: bool = False

    @model_validator(mode="after")
    def _faithful_expands(self) -> Approximation:
        if self.faithful and self.sharing != "expand":
            raise ValueError("faithful: the authors' code expands; set sharing=expand")
        return self

    def record(self) -> dict[str, Any]:
        """Return what shapes the tensors as JSON values, to be stored with them."""
        return {name: getattr(self, name) for name in Approximation.model_fields}


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
