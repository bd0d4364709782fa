"""tau-Jp: tangent fine-tuning under the drift measured on images of the other tasks, the data-dependent reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from taskvec.registry import register
from taskvec.statistics.settings import PenaltySettings
from taskvec.training.recipe import Recipe, Reference

if TYPE_CHECKING:
    from taskvec.training.fit import Penalty


@register("finetune", "tau_jp", paper="Yoshida et al., ICLR 2025, openreview 1VwWi6zbxs")
class TauJp(Recipe):
    """L = CE + weight * mean ||J(x) tau||^2 over ``examples`` of another task at each step, the tasks in turn."""

    kind: Literal["tau_jp"] = "tau_jp"
    forward_mode: Literal["standard", "tangent"] = "tangent"
    decay_towards: Literal["zero", "base"] = "base"
    penalty: PenaltySettings = PenaltySettings()
    examples: int = Field(64, ge=1)

    reference: ClassVar[Literal["nothing", "curvature", "data"]] = "data"

    def penalties(self, others: Mapping[str, Reference], seed: int) -> list[Penalty]:
        """Return the drift on the other tasks' training examples."""
        import torch

        from taskvec.training.batches import generator
        from taskvec.training.regularisers import drift, regulariser

        if not others:
            return []
        references = list(others.values())

        def measured(step: int, deltas: Mapping) -> torch.Tensor:
            other = references[step % len(references)]
            chosen = torch.randint(len(other.view), (self.examples,), generator=generator(seed, -1 - step))
            return drift(other.model, deltas, other.view.take(chosen), other.view.head)

        return [lambda step, deltas: regulariser(lambda s: measured(s, deltas), self.penalty)(step)]
