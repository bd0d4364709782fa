"""A fine-tuning method with a penalty of its own: the vector's l1 norm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from taskvec.finetune.recipe import Recipe
from taskvec.registry import register


@register("finetune", "pulled")
class Pulled(Recipe):
    """L = CE + strength * ||tau||_1."""

    kind: Literal["pulled"] = "pulled"
    strength: float = Field(1e-3, ge=0)

    def penalties(self, given):
        """Return the penalty."""

        def lasso(step, deltas):
            return self.strength * sum(delta.abs().sum() for delta in deltas.values())

        return [lasso]
