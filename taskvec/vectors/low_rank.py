"""Low-rank deltas as their factors (Hu et al., LoRA, arXiv 2106.09685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LowRank:
    """scale * B A with ``up`` = B [out, r] and ``down`` = A [r, in]: the delta of one weight matrix [out, in]."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """Return scale * B A [out, in]."""
        return self.scale * self.up @ self.down

    def like(self) -> Tensor:
        """Return a meta tensor of the delta's shape and dtype, for which nothing is multiplied."""
        return self.up.new_empty(len(self.up), self.down.shape[1], device="meta")

    def times(self, factor: float) -> LowRank:
        """Return the factors of ``factor`` times the delta."""
        return LowRank(self.up, self.down, self.scale * factor)

    def to(self, *args: Any, **kwargs: Any) -> LowRank:
        """Return the factors moved or cast as by ``Tensor.to``."""
        return LowRank(self.up.to(*args, **kwargs), self.down.to(*args, **kwargs), self.scale)
