"""The diagonal Fisher information of a model's weights on a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from taskvec.registry import register
from taskvec.statistics.base import Accumulator, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.passes.survey import Survey


@register("statistic", "fisher", paper="Matena and Raffel, NeurIPS 2022, arXiv 2111.09832")
class Fisher(Statistic):
    """F = (1/n) sum over groups of ``batch`` examples of (sum_x grad l(x))^2, by editable parameter.

    ``outcome`` is what l is the log-likelihood of:

    - ``root``: sum_c sqrt(p_c) log p_c under the model's own predictions p, held constant (MergeLM). One backward pass,
      but the classes' gradients are added before they are squared: it is not the Fisher information.
    - ``signed``: the same with a random sign for each example and class, drawn by ``seed``: unbiased for the Fisher
      information, at the same cost, for any ``batch``.
    - ``every``: sum_c p_c (grad log p_c)^2 exactly, with a backward pass for each class.
    - ``label``: the log-likelihood of the label (the empirical Fisher information).

    ``batch`` 1 squares the gradient of each example; MergeLM squares that of a batch. A head of one output is Gaussian,
    its log-likelihood the squared error. The value maps names to tensors of the parameters' shape.
    """

    kind: Literal["fisher"] = "fisher"
    outcome: Literal["root", "signed", "every", "label"] = "root"
    batch: int = Field(1, ge=1)
    seed: int = 0

    gradient: ClassVar[bool] = True

    @property
    def labels(self) -> bool:
        """Whether the labels must be granted."""
        return self.outcome == "label"

    @model_validator(mode="after")
    def _every_alone(self) -> Fisher:
        if self.outcome == "every" and self.batch > 1:
            raise ValueError(
                "outcome=every squares the gradient of each example and class; set batch=1"
            )
        return self

    def accumulator(self, *surveys: Survey) -> Accumulator:
        """Return the sums of one pass."""
        from taskvec.statistics.accumulators.gradients import FisherSums

        return FisherSums(self.outcome, self.batch, self.seed)

    def pack(self, value: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors."""
        return dict(value), {}

    def unpack(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Return the stored tensors."""
        return tensors
