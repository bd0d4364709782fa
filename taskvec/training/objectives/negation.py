"""Forgetting: the loss of a target is raised while that of a control is lowered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.needs import View
from taskvec.registry import register
from taskvec.training.objectives.base import LogitsOf, Objective, State, Steps
from taskvec.training.objectives.cross_entropy import CrossEntropy

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.objectives.sides import Sides
    from taskvec.training.schedule import Schedule


@register(
    "objective", "negation", paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880; spec atlas 6.3"
)
class Negation(Objective):
    """-CE(target) + CE(control): the first task is the target, the second the control, half of a batch from each."""

    kind: Literal["negation"] = "negation"

    joint: ClassVar[bool] = True

    def steps(self, views: Mapping[str, View], schedule: Schedule, seed: int) -> Steps:
        """Return batches of both tasks; an epoch is the target's."""
        from taskvec.training.objectives.sides import TwoSides

        return TwoSides(views, schedule, seed)

    def loss(self, logits_of: LogitsOf, batch: Sides, state: State) -> Tensor:
        """Return the difference of the two means."""
        one = CrossEntropy()
        return one.loss(logits_of, batch.control, state) - one.loss(logits_of, batch.target, state)
