"""The entropy of predictions, which needs no labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.errors import UserError
from taskvec.registry import register
from taskvec.training.objectives.base import LogitsOf, Objective, State

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.batches import Batch


@register("objective", "entropy", paper="Yang et al., AdaMerging, ICLR 2024, arXiv 2310.02575")
class Entropy(Objective):
    """The mean of -sum_c p_c log p_c, p = softmax(logits), over the examples of all tasks."""

    kind: Literal["entropy"] = "entropy"

    labels: ClassVar[bool] = False

    def loss(self, logits_of: LogitsOf, batch: Batch, state: State) -> Tensor:
        """Return the mean over a batch's examples, in float32 or better.

        Raises:
            UserError: for a head of one output, whose prediction has no entropy.
        """
        import torch

        parts = []
        for task, rows in batch.rows.items():
            logits = logits_of(task, batch.inputs[rows])
            if logits.shape[1] == 1:
                raise UserError(
                    f"objective=entropy: task {task} has one output and no classes; leave it out"
                )
            log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
            parts.append(-(log_p.exp() * log_p).sum())
        return torch.stack(parts).sum() / batch.size
