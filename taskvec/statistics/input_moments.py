"""Second moments of the inputs of every linear layer: what RegMean, PAVE and other methods know of a task's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from taskvec.registry import register
from taskvec.statistics.base import Accumulator, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.passes.survey import Survey
    from taskvec.statistics.values import LayerMoments


@register("statistic", "input_moments", paper="Jin et al., ICLR 2023, arXiv 2212.09849")
class InputMoments(Statistic):
    """sum x x^T [in, in], sum x [in] (float64) and the number of rows x: a layer's inputs at all real tokens.

    Layers that are given the same tensor (q, k, v; gate, up) share one moment. A layer's rows are those of the one call
    in which its input has a row per token. ``precision`` is that of the products of a batch; batches add up in float64.
    The value is a :class:`taskvec.statistics.values.LayerMoments`.
    """

    kind: Literal["input_moments"] = "input_moments"
    precision: Literal["float32", "float64"] = "float32"

    version: ClassVar[int] = 2

    def accumulator(self, *surveys: Survey) -> Accumulator:
        """Return the sums of one forward pass."""
        from taskvec.statistics.accumulators.moments import InputSums

        (survey,) = surveys
        return InputSums(survey, self.precision)

    def pack(self, value: LayerMoments) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return each shared moment once, folded, and who shares it."""
        return dict(value.tensors), dict(value.meta)

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> LayerMoments:
        """Return the moments over stored tensors, which are looked up as they are used."""
        from taskvec.statistics.values import LayerMoments

        return LayerMoments(tensors, meta)
