"""SimCLR on predictions: two views of an image should be told alike, and unlike those of the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.needs import View
from taskvec.registry import register
from taskvec.training.objectives.base import LogitsOf, Objective, State, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.objectives.twice import Twice
    from taskvec.training.schedule import Schedule


@register(
    "objective",
    "simclr",
    paper="Chen et al., ICML 2020, arXiv 2002.05709; on logits: spec atlas 6.3",
)
class SimClr(Objective):
    """mean_i -log softmax_j(<u_i, v_j> / temperature)_i, u and v the unit logits of two crops of the same images.

    On a batch of one image it is zero, and texts, which are not augmented, are their own second view.
    """

    kind: Literal["simclr"] = "simclr"
    temperature: float = Field(0.2, gt=0)

    labels: ClassVar[bool] = False

    def steps(self, views: Mapping[str, View], schedule: Schedule, seed: int) -> Steps:
        """Return batches that hold every image in two crops."""
        from taskvec.training.objectives.twice import TwoCrops

        return TwoCrops(views, schedule, seed)

    def loss(self, logits_of: LogitsOf, batch: Twice, state: State) -> Tensor:
        """Return the mean over a batch's images."""
        import torch
        import torch.nn.functional as F

        from taskvec.training.linearise import exact

        parts = []
        for task, rows in batch.first.rows.items():
            one = F.normalize(exact(logits_of(task, batch.first.inputs[rows])), dim=1)
            other = F.normalize(exact(logits_of(task, batch.second.inputs[rows])), dim=1)
            similarity = one @ other.T / self.temperature
            places = torch.arange(len(similarity), device=similarity.device)
            parts.append(F.cross_entropy(similarity, places, reduction="sum"))
        return torch.stack(parts).sum() / batch.size
