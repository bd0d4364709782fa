"""Theseus: vectors carried to a backbone of another width in closed form, from unlabelled examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from taskvec.needs import Beyond, Budget, Examples, Given, Needs, Scope, Statistics
from taskvec.registry import register
from taskvec.statistics.cross_moments import CrossMoments
from taskvec.transform.alignment.component import Carrying, Found, spaces_of

if TYPE_CHECKING:
    from taskvec.transform.alignment.transport import Axes


@register("transform", "theseus", paper="Theseus, 2026; spec theseus 1")
class Theseus(Carrying):
    """tau_B = T_out^T tau_A T_in, with T the orthogonal Procrustes maps between the two base models' activations.

    The maps come from ``examples`` unlabelled rows of the training split of the vector's own tasks, or of the task
    ``calibration``, which may be held out or a corpus; ``split`` val takes validation rows (a corpus has no others).
    ``align`` pairs tokens where the models have different numbers of them. With ``centre`` the rows'
    means are taken off; ``whiten`` p in [0, 1/2] turns C into G_A^-p C G_B^-p with ``whiten_eps`` on the Grams'
    diagonals.

    Directions whose singular value lies below ``tolerance`` times the largest are not carried, and ``hidden`` shared
    uses one map for an MLP's hidden units, that of the activation function's outputs: before it the data cannot
    determine more than a quarter of the directions. ``tolerance=0 hidden=own`` is what the authors do; rounding errors
    decide the rest then. The result lists rank, gap and error of every map, the error on ``held_out`` validation rows,
    others than those of ``examples``.
    """

    kind: Literal["theseus"] = "theseus"
    examples: int = Field(320, ge=1)
    calibration: str | None = None
    split: Literal["train", "val"] = "train"
    held_out: int = Field(128, ge=0)
    align: Literal["interpolate2d", "interpolate", "cls", "mean"] = "interpolate2d"
    centre: bool = False
    whiten: float = Field(0.0, ge=0, le=0.5)
    whiten_eps: float = Field(1e-6, gt=0)
    tolerance: float = Field(1e-4, ge=0, lt=1)
    hidden: Literal["shared", "own"] = "shared"

    def needs(self, scope: Scope) -> Needs:
        """Return the moments of pairs of activations, to fit on and to measure on."""
        return [*self._fitted(scope), *self._measured(scope)]

    def _fitted(self, scope: Scope) -> list[Statistics]:
        what = CrossMoments(align=self.align, grams=self.whiten > 0)
        return self._pairs(scope, what, self.split, Budget(count=self.examples))

    def _measured(self, scope: Scope) -> list[Statistics]:
        if not self.held_out:
            return []
        budget = Budget(count=self.held_out)
        if self.split == "val":
            budget = Beyond(count=self.held_out, after=self.examples)
        return self._pairs(scope, CrossMoments(align=self.align), "val", budget)

    def _pairs(
        self, scope: Scope, what: CrossMoments, split: str, budget: Budget
    ) -> list[Statistics]:
        tasks = scope.tasks if self.calibration is None else (self.calibration,)
        needs = []
        for task in tasks:
            examples = Examples(task, split, "calibration", budget=budget)
            needs.append(Statistics(what, examples, pair=True))
        return needs

    def found(self, given: Given, axes: Mapping[str, Axes]) -> Found:
        """Return the Procrustes map of each space, and rank, gap and held-out error of each."""
        from taskvec.transform.alignment.maps import Alignments, SpaceMaps, described, pooled

        how = Alignments(self.centre, self.whiten, self.whiten_eps, self.tolerance, self.hidden)
        weights = given.source.parameters, given.model.parameters
        train = [given[need] for need in self._fitted(given.scope)]
        held_out = [given[need] for need in self._measured(given.scope)]
        spaces = SpaceMaps(pooled(train), *weights, how)
        measured = pooled(held_out) if held_out else None
        named = spaces.known(axes)
        maps: dict[str, Any] = {}
        report: dict[str, Any] = {}
        for name in filter(spaces.observed, spaces_of(named)):
            aligned = spaces.of(name)
            maps[name] = aligned.map.float()
            moment = measured and measured.moment(name, *weights)
            report[name] = described(aligned, moment)
        return Found(maps, named, report)
