"""Orthogonal shift: what a vector has in common with the difference of the two base models is taken off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.needs import Given, Vector
from taskvec.registry import register
from taskvec.transform.alike import BetweenAlike
from taskvec.transform.base import Fit

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import TaskVector


@register("transform", "orthogonal_shift", paper="merge-and-rebase; spec theseus 1.5")
class OrthogonalShift(BetweenAlike):
    """tau_B = tau_A - beta <tau_A, s> / <s, s> s in each tensor, with s = theta_B - theta_A."""

    kind: Literal["orthogonal_shift"] = "orthogonal_shift"
    beta: float = Field(1.0, ge=0)

    def fit(self, given: Given) -> Fit:
        """Check the shapes; there is nothing to find."""
        self.bases(given)
        return Fit()

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the vector less its projections."""
        from taskvec.vectors import TaskVector

        source, target = self.bases(given)
        shifted = {}
        for name, delta in vector.items():
            shift = (target[name] - source[name]).to(delta)
            shifted[name] = self.off(delta, shift)
        return TaskVector(shifted)

    def off(self, delta: Tensor, shift: Tensor) -> Tensor:
        """Return a delta less beta times its projection on a shift, which may be zero."""
        square = shift.double().square().sum()
        if square == 0:
            return delta
        share = (delta.double() * shift.double()).sum() / square
        return delta - self.beta * share.to(delta.dtype) * shift
