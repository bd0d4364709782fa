"""GradFix: the entries of a vector that the target's own loss agrees with, from a few labelled examples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.needs import Budget, Examples, Given, Needs, Scope, Statistics, Vector
from taskvec.registry import register
from taskvec.statistics.gradient import Gradient
from taskvec.transform.alike import BetweenAlike
from taskvec.transform.base import Fit

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector


@register("transform", "gradfix", paper="GradFix, merge-and-rebase; spec theseus 1.5")
class Gradfix(BetweenAlike):
    """tau_B keeps the entries of tau_A whose sign is that of -gradient of the target's loss; the others are zero.

    ``mask`` force gives every entry that sign instead of dropping those without it. The gradient is that of the
    zero-shot target on ``shots`` labelled training examples per class, or with ``vote`` majority the sign that most
    examples have.
    """

    kind: Literal["gradfix"] = "gradfix"
    shots: int = Field(5, ge=1)
    vote: Literal["mean", "majority"] = "mean"
    mask: Literal["keep", "force"] = "keep"

    def needs(self, scope: Scope) -> Needs:
        """Return the target's gradient on each task."""
        return [self._gradient(task) for task in scope.tasks]

    def _gradient(self, task: str) -> Statistics:
        examples = Examples(task, "train", "learning", labels=True, budget=Budget(shots=self.shots))
        return Statistics(Gradient(votes=self.vote == "majority"), examples)

    def fit(self, given: Given) -> Fit:
        """Return the wanted sign of each entry, int8: that of minus the gradients' sum over the tasks."""
        self.bases(given)
        gradients = [given[self._gradient(task)] for task in given.scope.tasks]
        per_task = [found.mean if self.vote == "mean" else found.votes for found in gradients]
        signs = {}
        for name in per_task[0]:
            total = sum(gradient[name] for gradient in per_task)
            signs[name] = (-total).sign().char()
        return Fit(signs)

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the vector with only the signs that the gradient agrees with."""
        from taskvec.vectors import TaskVector

        fixed = {}
        for name, delta in vector.items():
            if name in fit.tensors:
                fixed[name] = self.fixed(delta, fit.tensors[name].to(delta))
        return TaskVector(fixed)

    def fixed(self, delta: Tensor, wanted: Tensor) -> Tensor:
        """Return a delta whose entries have the ``wanted`` signs (-1, 0, 1) or are zero."""
        if self.mask == "force":
            return delta.abs() * wanted
        return delta * (delta.sign() == wanted)
