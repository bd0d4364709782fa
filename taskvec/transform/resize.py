"""Zero-pad or truncate: shapes made to fit without any alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.needs import Given, Vector
from taskvec.registry import register
from taskvec.transform.base import Fit, Transform

if TYPE_CHECKING:
    from taskvec.vectors import TaskVector


@register("transform", "resize", paper="a control; spec theseus 1.5")
class Resize(Transform):
    """tau_B holds the leading entries of tau_A along every axis, and zeros where the target has more.

    Parameters that only one of the two models has are left at zero, the added blocks of a deeper target among them.
    """

    kind: Literal["resize"] = "resize"

    moves: ClassVar[bool] = True

    def fit(self, given: Given) -> Fit:
        """Return nothing but the list of what is left at zero."""
        source, target = given.source.parameters, given.model.parameters
        left = {}
        for name, weight in source.items():
            if name not in target:
                left[name] = "the target has no such parameter"
            elif target[name].ndim != weight.ndim:
                left[name] = f"it has {weight.ndim} axes, and {target[name].ndim} in the target"
        return Fit(report={"left_at_zero": left})

    def apply(self, vector: TaskVector, of: Vector, fit: Fit, given: Given) -> TaskVector:
        """Return the vector in the target's shapes."""
        from taskvec.transform.alignment.transport import pad
        from taskvec.vectors import TaskVector

        resized = {}
        for name, delta in vector.items():
            if name in given.model.parameters and name not in fit.report["left_at_zero"]:
                resized[name] = pad(delta, tuple(given.model.parameters[name].shape))
        return TaskVector(resized)
