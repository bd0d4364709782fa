"""Cross-entropy, or squared error where a head has one output for scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from taskvec.registry import register
from taskvec.training.objectives.base import LogitsOf, Objective, State

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.batches import Batch


@register("objective", "cross_entropy")
class CrossEntropy(Objective):
    """The mean of -log softmax(logits)_y over the examples of all tasks, each under the head of its own task.

    A head of one output learns the labels of a regression by squared error instead; one of several, whose words stand
    for 0, 1, ..., learns the nearest.
    """

    kind: Literal["cross_entropy"] = "cross_entropy"

    def loss(self, logits_of: LogitsOf, batch: Batch, state: State) -> Tensor:
        """Return the mean over a batch's examples, in float32 or better."""
        import torch

        parts = []
        for task, rows in batch.rows.items():
            logits = logits_of(task, batch.inputs[rows])
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            labels = batch.labels[task].to(logits.device)
            parts.append(_total(logits, labels))
        return torch.stack(parts).sum() / batch.size


def _total(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of an example's losses over logits [N, C] and classes or scores [N]."""
    import torch.nn.functional as F

    scores = labels.is_floating_point()
    if scores and logits.shape[1] == 1:
        return F.mse_loss(logits[:, 0], labels, reduction="sum")
    classes = labels.round().long() if scores else labels
    return F.cross_entropy(logits, classes, reduction="sum")
