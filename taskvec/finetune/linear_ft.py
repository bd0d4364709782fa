"""Attention-only fine-tuning: the weights of q, k, v and out in every block, by the ordinary forward."""

from __future__ import annotations

from typing import Literal

from taskvec.finetune.recipe import Recipe
from taskvec.registry import register


@register("finetune", "linear_ft", paper="Jin et al., ICLR 2025, arXiv 2407.07089")
class LinearFT(Recipe):
    """Only the attention projections' weights move (spec 5.1); ``select`` has the study's variants."""

    kind: Literal["linear_ft"] = "linear_ft"
    select: str = "attn_w"
