"""Linear probe: logistic regression on unit features, without the zero-shot head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.adapters.base import Adapter, Shots
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("adapter", "linear_probe", paper="Radford et al., CLIP, ICML 2021, arXiv 2103.00020")
class LinearProbe(Adapter):
    """z W^T + b from zero, trained by ``steps`` full-batch AdamW steps on frozen features of ``copies`` crops."""

    kind: Literal["linear_probe"] = "linear_probe"
    lr: float = Field(0.1, gt=0)
    steps: int = Field(300, ge=1)
    weight_decay: float = Field(0.01, ge=0)
    copies: int = Field(10, ge=1)

    def fit(self, shots: Shots, seed: int) -> dict[str, Tensor]:
        """Train on frozen features."""
        from taskvec.merge.adapters.frozen import train_readout
        from taskvec.training.loop import Group
        from taskvec.training.schedule import Schedule

        features, count = shots.features, shots.logits.shape[1]
        leaves = {
            "linear": features.new_zeros(count, features.shape[1]),
            "bias": features.new_zeros(count),
        }
        fixed = {"mix": features.new_zeros(count)}
        schedule = Schedule(
            lr=self.lr, steps=self.steps, weight_decay=self.weight_decay, clip_norm=None
        )
        return train_readout(leaves, [Group(leaves)], lambda: leaves | fixed, shots, schedule)
