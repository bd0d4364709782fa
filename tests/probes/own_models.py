"""A merge with one model per task: each task keeps its own entries of the mean vector, by sign."""

from __future__ import annotations

from typing import ClassVar, Literal

from taskvec.merge.base import Merge
from taskvec.registry import register


@register("merge", "own_models")
class OwnModels(Merge):
    """theta_0 + alpha * m_t * mean(tau), m_t = [tau_t * mean(tau) > 0]."""

    kind: Literal["own_models"] = "own_models"

    models: ClassVar[str] = "per_task"

    def compose(self, base, vectors, given):
        """Return a model for each task, and the mean for tasks without one."""
        from taskvec.vectors import TaskVector
        from taskvec.vectors.composition import PerTask

        mean = sum(signed.delta for signed in vectors) * (1 / len(vectors))
        masked = {}
        for signed in vectors:
            own = {name: delta * (signed.delta[name] * delta > 0) for name, delta in mean.items()}
            masked[signed.tasks[0]] = TaskVector(own)
        return PerTask(base, masked, mean)
