"""Task arithmetic: the plain sum of task vectors under one scaling coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import TensorWise
from taskvec.needs import Given
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "task_arithmetic", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089, section 2")
class TaskArithmetic(TensorWise):
    """theta_0 + alpha * sum_t tau_t."""

    kind: Literal["task_arithmetic"] = "task_arithmetic"

    def merge(
        self, name: str, base: Tensor, deltas: Sequence[Tensor | None], given: Given | None, surveyed: Any
    ) -> Tensor:
        """Return the sum of the deltas."""
        present = [delta for delta in deltas if delta is not None]
        return sum(present[1:], present[0])
