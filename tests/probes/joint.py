"""A joint transform that needs statistics of all tasks: every vector is scaled by its share of the input energy."""

from __future__ import annotations

from typing import ClassVar, Literal

from taskvec.needs import Budget, Examples, Statistics
from taskvec.registry import register
from taskvec.statistics.input_moments import InputMoments
from taskvec.transform.base import Fit, Transform


@register("transform", "joint")
class Joint(Transform):
    """tau_t * e_t / max_s e_s, e_t the trace of all layers' input moments under theta_t."""

    kind: Literal["joint"] = "joint"

    joint: ClassVar[bool] = True

    def needs(self, scope):
        """Ask for the moments of each task under its own model."""
        return [self._moments(scope, task) for task in scope.tasks]

    def _moments(self, scope, task):
        on = Examples(task, "train", "calibration", budget=Budget(count=16))
        return Statistics(InputMoments(), on, at=scope.vector(task), side=scope.side)

    def fit(self, given):
        """Compare the tasks' energies."""
        energies = {}
        for task in given.scope.tasks:
            moments = given[self._moments(given.scope, task)]
            energies[task] = sum(float(moment.second().trace()) for moment in moments.values())
        highest = max(energies.values())
        shares = {task: energy / highest for task, energy in energies.items()}
        return Fit(meta={"shares": shares}, report={"shares": shares})

    def apply(self, vector, of, fit, given):
        """Scale one task's vector."""
        from taskvec.needs import tasks_of

        (task,) = tasks_of(of)
        return vector * fit.meta["shares"][task]
