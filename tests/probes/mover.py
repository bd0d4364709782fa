"""A transform that moves vectors to another width: orthogonal maps between the layers' outputs and inputs."""

from __future__ import annotations

from typing import ClassVar, Literal

from taskvec.needs import Budget, Examples, Statistics
from taskvec.registry import register
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.transform.base import Fit, Transform


@register("transform", "mover")
class Mover(Transform):
    """T_out^T tau T_in for every parameter whose axes are all in mapped spaces, zero for the others."""

    kind: Literal["mover"] = "mover"
    examples: int = 32

    moves: ClassVar[bool] = True

    def needs(self, scope):
        """Ask for the paired moments on the vectors' tasks."""
        return [self._pairs(task) for task in scope.tasks]

    def _pairs(self, task):
        on = Examples(task, "train", "calibration", budget=Budget(count=self.examples))
        return Statistics(CrossMoments(), on, pair=True)

    def fit(self, given):
        """Solve the orthogonal Procrustes problem of each space."""
        import torch

        pairs = [given[self._pairs(task)] for task in given.scope.tasks]
        weights = (given.source.parameters, given.model.parameters)
        maps = {}
        for space in pairs[0].spaces:
            cross = sum(pair.moment(space, *weights).cross for pair in pairs)
            left, _, right = torch.linalg.svd(cross, full_matrices=False)
            maps[space] = (left @ right).float()
        return Fit(maps, report={"maps": len(maps)})

    def apply(self, vector, of, fit, given):
        """Carry each parameter over."""
        from taskvec.vectors import TaskVector

        spaces, moved = given.source.spaces, {}
        for name, delta in vector.items():
            axes = spaces[name]
            if all(axis in fit.tensors for axis in axes) and name in given.model.parameters:
                for axis in axes:  # each step contracts the first axis and appends its image
                    delta = delta.movedim(0, -1) @ fit.tensors[axis]
                moved[name] = delta
        return TaskVector(moved)
