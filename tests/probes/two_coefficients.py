"""A learned merge: one coefficient for weights and one for everything else, from unlabelled validation batches."""

from __future__ import annotations

from typing import ClassVar, Literal

from taskvec.merge.base import Merge
from taskvec.registry import register
from taskvec.training.objectives.base import ChosenObjective
from taskvec.training.objectives.entropy import Entropy
from taskvec.training.schedule import Schedule


@register("merge", "two_coefficients")
class TwoCoefficients(Merge):
    """theta_0 + a * matrices(sum tau) + b * others(sum tau), a and b by the objective."""

    kind: Literal["two_coefficients"] = "two_coefficients"
    schedule: Schedule = Schedule(lr=0.05, steps=8, batch_size=8, weight_decay=0.0, augment="none")
    objective: ChosenObjective = Entropy()

    draws: ClassVar[bool] = True
    learned: ClassVar[bool] = True
    stored: ClassVar[bool] = True
    grid: ClassVar[tuple[float, ...]] = (1.0,)

    def compose(self, base, vectors, given):
        """Train the two coefficients on what the protocol grants."""
        import torch

        from taskvec.training.loop import Group, train
        from taskvec.vectors import TaskVector
        from taskvec.vectors.composition import Scaled

        total = dict(sum(signed.delta for signed in vectors))
        scales = torch.full((2,), 0.3, requires_grad=True)
        views = {need.task: given[need] for need in given.scope.learning}

        def scaled():
            return {name: delta * scales[int(delta.ndim < 2)] for name, delta in total.items()}

        def logits_of(task, inputs):
            weights = {name: base[name] + delta for name, delta in scaled().items()}
            return given.evaluator.scores(inputs, views[task].head, weights)

        steps = self.objective.steps(views, self.schedule, given.seed)
        train(
            [Group({"scales": scales})],
            lambda batch, state: self.objective.loss(logits_of, batch, state),
            steps,
            self.schedule,
            checkpoint=given.checkpoint,
            observe=given.observe,
        )
        return Scaled(base, TaskVector({name: delta.detach() for name, delta in scaled().items()}))
