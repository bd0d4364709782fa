"""Full fine-tuning: every editable parameter is trained."""

from __future__ import annotations

from typing import Literal

from taskvec.finetune.recipe import Recipe
from taskvec.registry import register


@register("finetune", "full", paper="Ilharco et al., ICLR 2023, arXiv 2212.04089")
class Full(Recipe):
    """All editable parameters move, from theta_0, by the recipe of the base class."""

    kind: Literal["full"] = "full"
