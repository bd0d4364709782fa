"""An objective of its own: cross-entropy with label smoothing."""

from __future__ import annotations

from typing import Literal

from taskvec.registry import register
from taskvec.training.objectives.base import Objective


@register("objective", "smoothed")
class Smoothed(Objective):
    """The mean of (1 - s) CE(y) + s CE(uniform)."""

    kind: Literal["smoothed"] = "smoothed"
    smoothing: float = 0.2

    def loss(self, logits_of, batch, state):
        """Return the mean over a batch's examples."""
        import torch.nn.functional as F

        total = 0.0
        for task, rows in batch.rows.items():
            logits = logits_of(task, batch.inputs[rows])
            labels = batch.labels[task]
            total = total + F.cross_entropy(
                logits, labels, label_smoothing=self.smoothing, reduction="sum"
            )
        return total / batch.size
