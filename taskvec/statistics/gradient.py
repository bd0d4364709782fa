"""The gradient of a task's loss with respect to all editable weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from taskvec.registry import register
from taskvec.statistics.base import Accumulator, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.passes.survey import Survey
    from taskvec.statistics.values import ParameterGradient

MEAN, VOTES = "mean/", "votes/"


@register("statistic", "gradient", paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880")
class Gradient(Statistic):
    """The gradient of the mean loss of the labels, by parameter: <gradient, tau> is d loss / d alpha at the weights.

    With ``votes`` each example also votes with the sign of its own gradient (GradFix), which takes a forward and a
    backward pass for every example. The value is a
    :class:`taskvec.statistics.values.ParameterGradient`.
    """

    kind: Literal["gradient"] = "gradient"
    votes: bool = False

    gradient: ClassVar[bool] = True
    labels: ClassVar[bool] = True

    def accumulator(self, *surveys: Survey) -> Accumulator:
        """Return the sums of one pass."""
        from taskvec.statistics.accumulators.gradients import GradientSums

        return GradientSums(self.votes)

    def pack(self, value: ParameterGradient) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return mean and votes under names of their own."""
        tensors = {MEAN + name: tensor for name, tensor in value.mean.items()}
        votes = value.votes or {}
        tensors |= {VOTES + name: tensor for name, tensor in votes.items()}
        return tensors, {"examples": value.examples}

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> ParameterGradient:
        """Return the gradient over stored tensors, which are looked up as they are used."""
        from taskvec.statistics.values import ParameterGradient, Prefixed

        votes = Prefixed(tensors, VOTES) if self.votes else None
        return ParameterGradient(Prefixed(tensors, MEAN), votes, meta["examples"])
