"""The composition of merges that learn coefficients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taskvec.merge.piece import Tensors
from taskvec.vectors import TaskVector
from taskvec.vectors.composition import Scaled

MERGED = "merged/"
COEFFICIENTS = "coefficients"


class Learned(Scaled):
    """theta_0 + alpha * sum_i Lambda_i tau_i: the vector, and the coefficients [n, m] that made it."""

    def __init__(
        self,
        base: Tensors,
        merged: TaskVector,
        coefficients: Tensor,
        report: Mapping[str, Any] | None = None,
    ):
        super().__init__(base, merged)
        self.coefficients, self.report = coefficients, dict(report or {})

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the deltas as merged/NAME, and the coefficients."""
        tensors = {f"{MERGED}{name}": delta for name, delta in self.merged.items()}
        return tensors | {COEFFICIENTS: self.coefficients}, {}

    @classmethod
    def unpack(cls, base: Tensors, tensors: Tensors, meta: Mapping[str, Any]) -> Learned:
        """Invert ``pack``; the report stays in the store."""
        deltas = {name.removeprefix(MERGED): tensors[name] for name in tensors if name.startswith(MERGED)}
        return cls(base, TaskVector(deltas), tensors[COEFFICIENTS])
