"""What a method may see of a task: examples, labels where they are granted, and the frozen head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TaskView:
    """One split of one task: ``inputs`` [N, ...], ``labels`` [N] int64 (None if not granted), ``head`` [C, d]."""

    inputs: Tensor
    labels: Tensor | None
    head: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: str) -> TaskView:
        """Return the view with everything on a device."""
        labels = None if self.labels is None else self.labels.to(device)
        return TaskView(self.inputs.to(device), labels, self.head.to(device))
