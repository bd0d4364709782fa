"""What a merge returns: weights (and a forward mode) for any scaling coefficient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from taskvec.config import Component

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector

GRID = tuple(round(0.05 * i, 2) for i in range(21))


class Composition:
    """A merged model: theta(alpha), another one for each task where ``per_task`` says so."""

    per_task: bool = False

    @abstractmethod
    def parameters(self, alpha: float, task: str | None = None) -> Mapping[str, Tensor]:
        """Return the editable weights at scaling coefficient alpha."""

    def direction(self, task: str | None = None) -> TaskVector | None:
        """Return tau where theta(alpha) = theta_0 + alpha tau, so that one jvp serves every alpha; None elsewhere."""
        return None


class Scaled(Composition):
    """theta_0 + alpha * tau: the composition of every merge that yields one merged vector."""

    def __init__(self, base: Mapping[str, Tensor], merged: TaskVector):
        self.base, self.merged = base, merged

    def parameters(self, alpha: float, task: str | None = None) -> Mapping[str, Tensor]:
        """Return theta_0 + alpha * tau; the task makes no difference."""
        return self.merged.apply_to(self.base, alpha)

    def direction(self, task: str | None = None) -> TaskVector:
        """Return tau; the task makes no difference."""
        self.merged = self.merged.materialised()  # it is looked at with every batch
        return self.merged


class Merge(Component):
    """Combines signed task vectors into one model; its coefficients are searched on ``default_grid``."""

    default_grid: ClassVar[tuple[float, ...]] = GRID
    forward_modes: ClassVar[frozenset[str]] = frozenset({"standard", "tangent"})

    @abstractmethod
    def compose(self, base: Mapping[str, Tensor], vectors: Mapping[str, TaskVector]) -> Composition:
        """Return the composition of ``vectors`` (by task, signs applied) on the base weights."""
