"""A merge from Gram matrices at theta_t: W = (sum_t G_t)^-1 sum_t G_t W_t per linear layer, others averaged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from taskvec.merge.base import Merge
from taskvec.needs import Budget, Examples, Statistics
from taskvec.registry import register
from taskvec.statistics.input_moments import InputMoments


@register("merge", "gram")
class Gram(Merge):
    """theta_0 + alpha * (W - theta_0), W the least-squares fit to every task's own outputs."""

    kind: Literal["gram"] = "gram"
    examples: int = Field(16, ge=1)
    ridge: float = Field(1e-3, ge=0)

    def needs(self, scope):
        """Ask for the moments of each task's inputs under its own model."""
        return [self._moments(scope, task) for task in scope.tasks]

    def _moments(self, scope, task):
        on = Examples(task, "train", "calibration", budget=Budget(count=self.examples))
        return Statistics(InputMoments(), on, at=scope.vector(task), side=scope.side)

    def compose(self, base, vectors, given):
        """Solve layer by layer, one task's moments at a time."""
        import torch

        from taskvec.vectors import TaskVector
        from taskvec.vectors.composition import Scaled

        merged = sum(signed.delta for signed in vectors) * (1 / len(vectors))
        layers = {f"{layer.name}.weight": layer.name for layer in given.model.layers}
        deltas = dict(merged)
        for name, layer in layers.items():
            left, right = 0.0, 0.0
            for signed in vectors:
                moments = given[self._moments(given.scope, signed.tasks[0])]
                gram = moments[layer].second()
                left = left + gram
                right = right + gram @ signed.delta[name].double().mT
            left = left + self.ridge * left.trace() * torch.eye(len(left), dtype=left.dtype)
            deltas[name] = torch.linalg.solve(left, right).mT.to(base[name].dtype)
        return Scaled(base, TaskVector(deltas))
