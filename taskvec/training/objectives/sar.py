"""SAR: sharpness-aware minimisation of the entropy of reliable predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.needs import View
from taskvec.registry import register
from taskvec.training.objectives.base import LogitsOf, Objective, State, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.callbacks import Callback
    from taskvec.training.objectives.reliable import Noted
    from taskvec.training.schedule import Schedule


@register("objective", "sar", paper="Niu et al., SAR, ICLR 2023, arXiv 2302.12400; spec atlas 6.3")
class Sar(Objective):
    """The mean entropy of the examples whose entropy is below ``margin`` * ln C, C the number of classes.

    It wants sharpness-aware steps (``schedule.sam``, 0.05 with optimiser sgd): asked again at the ascended weights it
    takes those examples whose entropy is below the bound there too. When the moving average (``memory``) of that loss
    falls under ``floor``, the leaves go back to their start. ``faithful`` takes ln 1000 for every task.
    """

    kind: Literal["sar"] = "sar"
    margin: float = Field(0.4, gt=0)
    memory: float = Field(0.9, ge=0, lt=1)
    floor: float = Field(0.2, ge=0)
    faithful: bool = False

    labels: ClassVar[bool] = False

    def steps(self, views: Mapping[str, View], schedule: Schedule, seed: int) -> Steps:
        """Return batches that remember which of their examples were reliable."""
        from taskvec.training.objectives.reliable import NotedBatches

        return NotedBatches(super().steps(views, schedule, seed))

    def loss(self, logits_of: LogitsOf, batch: Noted, state: State) -> Tensor:
        """Return the mean over a batch's reliable examples, zero if there is none."""
        from taskvec.training.objectives.reliable import reliable

        classes = 1000 if self.faithful else None
        return reliable(logits_of, batch, self.margin, classes)

    def callbacks(self, leaves: Mapping[str, Tensor]) -> Sequence[Callback]:
        """Return what puts the leaves back to their start."""
        from taskvec.training.objectives.reliable import Recover

        return [Recover(leaves, self.memory, self.floor)]
