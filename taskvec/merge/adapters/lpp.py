"""LP++: a linear probe blended with the zero-shot head by learned class-wise multipliers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.adapters.base import Adapter, Shots
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("adapter", "lpp", paper="Huang et al., LP++, CVPR 2024, arXiv 2404.02285; spec atlas 6.5")
class LPP(Adapter):
    """z W^T + b + alpha_c (head logits / 100), from the class sums, by full-batch steps of the loss's own size.

    The steps are the inverse Lipschitz bounds 4N / lambda_max(F^T F) for W and b and N / (4 max_c sum (F t_c)^2) for
    alpha, which moves every ``alternate``-th step only.
    """

    kind: Literal["lpp"] = "lpp"
    steps: int = Field(300, ge=1)
    momentum: float = Field(0.9, ge=0, lt=1)
    alternate: int = Field(10, ge=1)
    copies: int = Field(10, ge=1)

    def fit(self, shots: Shots, seed: int) -> dict[str, Tensor]:
        """Train on frozen features."""
        from taskvec.merge.adapters.lpp_steps import start, train

        found = train(
            start(shots), shots, steps=self.steps, momentum=self.momentum, alternate=self.alternate
        )
        return {"linear": found.linear, "bias": found.bias, "mix": found.mix}
