"""TAK: tangent fine-tuning under a dataless penalty on the drift that a vector causes on the other tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from taskvec.registry import register
from taskvec.statistics.settings import CurvatureSettings, PenaltySettings
from taskvec.training.recipe import Recipe, Reference

if TYPE_CHECKING:
    from taskvec.training.fit import Penalty


@register("finetune", "kfac", paper="Porrello et al., ICLR 2026, arXiv 2602.17385")
class Kfac(Recipe):
    """L = CE + weight * tau^T G tau, G the curvature of the features on the suite's other tasks at theta_0 (spec 3.1).

    ``curvature.structure`` is ``kfac``, ``ekfac`` or ``diag_ggn``. ``per_task`` keeps the other tasks' curvatures apart
    (exact, cost O(T)); EKFAC always does. Works with either forward mode and any selection of parameters. Embeddings of
    tokens, positions and patches have no block: with ``regularised_only`` they stay at theta_0 (spec 3.4), because what
    they change no penalty sees.
    """

    kind: Literal["kfac"] = "kfac"
    forward_mode: Literal["standard", "tangent"] = "tangent"
    decay_towards: Literal["zero", "base"] = "base"
    curvature: CurvatureSettings = CurvatureSettings()
    penalty: PenaltySettings = PenaltySettings()
    per_task: bool = False
    regularised_only: bool = True

    reference: ClassVar[Literal["nothing", "curvature", "data"]] = "curvature"

    def penalties(self, others: Mapping[str, Reference], seed: int) -> list[Penalty]:
        """Return the penalty under the other tasks' curvature, merged into one unless ``per_task``."""
        from taskvec.statistics.curvature import exact_sum, merge
        from taskvec.training.regularisers import penalty, regulariser

        if not others:
            return []
        apart = self.per_task or self.curvature.structure == "ekfac"
        found = (reference.curvature() for reference in others.values())
        curvature = exact_sum(list(found)) if apart else merge(found)
        settings = self.penalty
        scales = {"full_scale": settings.full_scale, "projection_scale": settings.projection_scale}
        return [
            lambda step, deltas: regulariser(lambda _: penalty(curvature, deltas, **scales), settings)(step),
        ]

    def frozen(self, others: Mapping[str, Reference]) -> Collection[str]:
        """Return the parameters without a block."""
        return next(iter(others.values())).curvature().untracked if self.regularised_only and others else ()
