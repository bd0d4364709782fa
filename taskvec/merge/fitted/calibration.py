"""Statistics of each fine-tuned model on calibration data of its own task."""

from __future__ import annotations

from typing import Any

from taskvec.config import Component
from taskvec.errors import UserError
from taskvec.needs import Budget, Examples, Given, Scope, Statistics


def calibrated(what: Component, scope: Scope, task: str, examples: int) -> Statistics:
    """Return the need for a statistic of theta_0 + the task's vector on training examples of the task, unlabelled."""
    rows = Examples(task, "train", "calibration", budget=Budget(count=examples))
    return Statistics(what, rows, at=scope.vector(task), side=scope.side)


def of_each(what: Component, given: Given, vectors: int, examples: int, owner: str) -> list[Any]:
    """Return the statistic of each vector's task, in order.

    Raises:
        UserError: if the vectors are not one for each task.
    """
    tasks = given.scope.tasks
    if len(tasks) != vectors:
        raise UserError(
            f"merge={owner} takes one vector for each task, not {vectors} vectors for {len(tasks)} tasks"
        )
    return [given[calibrated(what, given.scope, task, examples)] for task in tasks]
