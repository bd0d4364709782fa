"""What a method may see of a task: examples, labels where they are granted, and the frozen head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskView:
    """One split of one task: ``inputs`` [N, ...], ``labels`` [N] int64, or float32 scores of a regression (None if not
    granted), ``head`` (see :meth:`taskvec.models.base.Backbone.heads`). A corpus has neither labels nor head.
    """

    inputs: Tensor
    labels: Tensor | None
    head: Tensor | None

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def regression(self) -> bool:
        """Whether the labels are scores."""
        return self.labels is not None and self.labels.is_floating_point()

    def to(self, device: str) -> TaskView:
        """Return the view with everything on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        head = None if self.head is None else self.head.to(device)
        return TaskView(self.inputs.to(device), labels, head)
