"""Task arithmetic: the plain sum of task vectors under one scaling coefficient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from taskvec.merge.composition import Composition, Merge, Scaled
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector


@register("merge", "task_arithmetic", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 2")
class TaskArithmetic(Merge):
    """theta_0 + alpha * sum_t tau_t."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"

    def compose(self, base: Mapping[str, Tensor], vectors: Mapping[str, TaskVector]) -> Composition:
        """Return the composition of the summed vectors."""
        return Scaled(base, sum(vectors.values()))
