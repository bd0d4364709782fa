"""Fine-tuning in the tangent space: the model linearised at theta_0 is trained, merged and evaluated."""

from __future__ import annotations

from typing import Literal

from taskvec.finetune.recipe import Recipe
from taskvec.registry import register


@register("finetune", "tangent", paper="Ortiz-Jimenez et al., NeurIPS 2023, arXiv 2305.12827")
class Tangent(Recipe):
    """g(x; theta_0 + tau) = f(x; theta_0) + J(x) tau in place of f, in training and in evaluation (spec 3.1)."""

    kind: Literal["tangent"] = "tangent"
    forward_mode: Literal["tangent"] = "tangent"
