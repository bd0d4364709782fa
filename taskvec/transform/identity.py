"""The untransported vector: the plain baseline between two trainings of one architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from taskvec.needs import Given, Vector
from taskvec.registry import register
from taskvec.transform.alike import BetweenAlike
from taskvec.transform.base import Fit

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


@register("transform", "identity", paper="spec theseus 1.5")
class Identity(BetweenAlike):
    """tau_B = tau_A."""

    kind: Literal["identity"] = "identity"

    def fit(self, given: Given) -> Fit:
        """Check the shapes; there is nothing to find."""
        self.bases(given)
        return Fit()

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the deltas as they are."""
        from taskvec.vectors import TaskVector

        return TaskVector(dict(vector))
