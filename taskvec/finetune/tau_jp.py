"""tau-Jp: tangent fine-tuning under the drift measured on images of the other tasks, the data-dependent reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.finetune.recipe import Penalised, Penalty
from taskvec.needs import Examples, Given, Scope
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors


@register("finetune", "tau_jp", paper="Yoshida et al., ICLR 2025, openreview 1VwWi6zbxs")
class TauJp(Penalised):
    """L = CE + weight * mean ||J(x) tau||^2 over ``examples`` of another task at each step, the tasks in turn."""

    kind: Literal["tau_jp"] = "tau_jp"
    examples: int = Field(64, ge=1)

    def needs(self, scope: Scope) -> list[Examples]:
        """Return the unlabelled training examples of the other tasks."""
        return [Examples(task, "train", "calibration") for task in scope.others(*scope.tasks)]

    def penalties(self, given: Given) -> Sequence[Penalty]:
        """Return the drift on the other tasks' examples; each task has its turn, whatever the cadence."""
        import torch

        from taskvec.training.batches import generator
        from taskvec.training.regularisers import drift, regulariser

        views = [given[need] for need in self.needs(given.scope)]
        if not views:
            return ()

        def measured(step: int, deltas: Tensors) -> Tensor:
            view = views[self.penalty.turn(step) % len(views)]
            chosen = torch.randint(
                len(view), (self.examples,), generator=generator(given.seed, -1 - step)
            )
            return drift(given.model, deltas, view.take(chosen), view.head)

        return [regulariser(measured, self.penalty)]
