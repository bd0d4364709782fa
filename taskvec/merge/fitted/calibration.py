"""Statistics of each fine-tuned model on calibration data of its own task."""

from __future__ import annotations

from taskvec.config import Component
from taskvec.needs import Budget, Examples, Scope, Statistics


def calibrated(what: Component, scope: Scope, task: str, examples: int) -> Statistics:
    """Return the need for a statistic of theta_0 + the task's vector on training examples of the task, unlabelled."""
    rows = Examples(task, "train", "calibration", budget=Budget(count=examples))
    return Statistics(what, rows, at=scope.vector(task), side=scope.side)
