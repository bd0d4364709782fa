"""Unsupervised FixMatch: confident predictions teach the strongly augmented views (aTLAS's test-time adaptation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.needs import View
from taskvec.registry import register
from taskvec.training.objectives.base import LogitsOf, Objective, State, Steps

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.objectives.pseudo import Taught
    from taskvec.training.schedule import Schedule


@register(
    "objective",
    "ufm",
    paper="Zhang et al., NeurIPS 2024, arXiv 2407.02880, appendix; spec atlas 6.3",
)
class Ufm(Objective):
    """Cross-entropy of strong views against pseudo-labels, over trusted images and those predicted with confidence.

    Of every class c the ``share`` * N / C most confident images that are predicted as c, at most ``most``, are trusted,
    anew before every epoch; they are a quarter of a batch, and their target is the predicted class. Of the others the
    target is p^power / sum p^power, p the prediction on the plain image, and they count where its maximum exceeds
    threshold + (1 - threshold) e / E in epoch e of E. The loss is the mean over what counts.

    ``faithful`` is the released code: every image is trusted with its zero-shot prediction.
    """

    kind: Literal["ufm"] = "ufm"
    share: float = Field(0.1, gt=0, le=1)
    most: int = Field(100, ge=1)
    power: float = Field(0.5, gt=0)
    threshold: float = Field(0.9, ge=0)
    faithful: bool = False

    labels: ClassVar[bool] = False

    def steps(self, views: Mapping[str, View], schedule: Schedule, seed: int) -> Steps:
        """Return batches of trusted and other images of one task, in a weak and a strong view."""
        from taskvec.training.objectives.pseudo import TaughtBatches

        return TaughtBatches(views, schedule, seed)

    def epoch(
        self, logits_of: LogitsOf, views: Mapping[str, View], epoch: int, epochs: int, state: State
    ) -> State:
        """Return the trusted images, everybody's predicted class, and the threshold."""
        from taskvec.training.objectives import pseudo

        if self.faithful and state:
            return state
        ((task, view),) = views.items()
        chances = pseudo.chances(logits_of, task, view)
        if self.faithful:
            return pseudo.everybody(chances)
        threshold = self.threshold + (1 - self.threshold) * epoch / epochs
        share = self.share * len(view) / chances.shape[1]
        count = max(1, min(int(share), self.most))
        return pseudo.estimate(chances, count, self.power, threshold)

    def loss(self, logits_of: LogitsOf, batch: Taught, state: State) -> Tensor:
        """Return the mean over what counts in a batch, zero if nothing does."""
        from taskvec.training.objectives.pseudo import taught

        return taught(logits_of, batch, self.power, state["threshold"])

    def notes(self, state: State) -> dict[str, Tensor]:
        """Return the trusted rows with their classes, and the share of the others that count."""
        import torch

        rows = state["trusted"]
        return {
            "trusted": rows,
            "classes": state["classes"][rows],
            "accepted": torch.tensor(state["accepted"]),
        }
