"""BiCo: outputs aligned by the gradients that reach them, inputs by their activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.needs import Budget, Examples, Given, Needs, Scope, Statistics
from taskvec.registry import register
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.transform.alignment.component import Carrying, Found, spaces_of

if TYPE_CHECKING:
    from taskvec.transform.alignment.transport import Axes

OUTPUTS = "gradients of "


@register("transform", "bico", paper="merge-and-rebase; spec theseus 1.5")
class Bico(Carrying):
    """tau_B = T_out^T tau_A T_in with T_in from input activations and T_out from gradients of the zero-shot loss.

    The gradients are those of ``examples`` labelled training rows of the vector's tasks with respect to each layer's
    outputs. ``tolerance`` and ``align`` are as in Theseus.
    """

    kind: Literal["bico"] = "bico"
    examples: int = Field(320, ge=1)
    align: Literal["interpolate2d", "interpolate", "cls", "mean"] = "interpolate2d"
    tolerance: float = Field(1e-4, ge=0, lt=1)

    def needs(self, scope: Scope) -> Needs:
        """Return the cross-moments of activations and of gradients."""
        return [*self._pairs(scope, "activations"), *self._pairs(scope, "gradients")]

    def _pairs(self, scope: Scope, of: Literal["activations", "gradients"]) -> list[Statistics]:
        what = CrossMoments(align=self.align, of=of)
        use = "learning" if what.labels else "calibration"
        needs = []
        for task in scope.tasks:
            examples = Examples(
                task, "train", use, labels=what.labels, budget=Budget(count=self.examples)
            )
            needs.append(Statistics(what, examples, pair=True))
        return needs

    def found(self, given: Given, axes: Mapping[str, Axes]) -> Found:
        """Return both maps of each space: a parameter's first axis is what it puts out, the others what it reads."""
        from taskvec.transform.alignment.maps import Alignments, SpaceMaps, described, pooled

        how = Alignments(tolerance=self.tolerance)
        found = Found({}, {}, {})
        for of, prefix in (("activations", ""), ("gradients", OUTPUTS)):
            moments = pooled([given[need] for need in self._pairs(given.scope, of)])
            spaces = SpaceMaps(moments, given.source.parameters, given.model.parameters, how)
            for space in filter(spaces.observed, spaces_of(axes)):
                aligned = spaces.of(space)
                found.maps[prefix + space] = aligned.map.float()
                found.report[prefix + space] = described(aligned, None)
        for name, spaces in axes.items():
            first = None if spaces[0] is None else OUTPUTS + spaces[0]
            found.axes[name] = (first, *spaces[1:])
        return found
