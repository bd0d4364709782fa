"""TAK: tangent fine-tuning under a dataless penalty on the drift that a vector causes on the other tasks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from taskvec.finetune.recipe import Penalised, Penalty
from taskvec.needs import Examples, Given, Scope, Statistics
from taskvec.registry import register
from taskvec.statistics.settings import CurvatureSettings

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.curvature_value import Curvature
    from taskvec.vectors import Tensors


@register("finetune", "kfac", paper="Porrello et al., ICLR 2026, arXiv 2602.17385")
class Kfac(Penalised):
    """L = CE + weight * tau^T G tau, G the curvature of the features on the suite's other tasks at theta_0 (spec 3.1).

    ``curvature.structure`` is ``kfac``, ``ekfac`` or ``diag_ggn``. ``per_task`` keeps the other tasks' curvatures apart
    (exact, cost O(T)); EKFAC always does. Works with either forward mode and any selection of parameters. Embeddings of
    tokens, positions and patches have no block: with ``regularised_only`` they stay at theta_0 (spec 3.4), because what
    they change no penalty sees.
    """

    kind: Literal["kfac"] = "kfac"
    curvature: CurvatureSettings = CurvatureSettings()
    per_task: bool = False
    regularised_only: bool = True

    def needs(self, scope: Scope) -> list[Statistics]:
        """Return the curvature on each other task, estimated on unlabelled training examples."""
        settings, needs = self.curvature, []
        for task in scope.others(*scope.tasks):
            examples = Examples(task, "train", "calibration", budget=settings.budget)
            needs.append(Statistics(settings.statistic, examples, side=scope.side))
        return needs

    def penalties(self, given: Given) -> Sequence[Penalty]:
        """Return the penalty under the other tasks' curvature, merged into one unless ``per_task``."""
        from taskvec.statistics.curvature_value import exact_sum, merge
        from taskvec.training.regularisers import penalty, regulariser

        needs = self.needs(given.scope)
        if not needs:
            return ()
        apart = self.per_task or self.curvature.structure == "ekfac"
        found = self._curvatures(given, needs)
        curvature = exact_sum(list(found)) if apart else merge(found)
        settings = self.penalty

        def drift(step: int, deltas: Tensors) -> Tensor:
            return penalty(
                curvature,
                deltas,
                full_scale=settings.full_scale,
                projection_scale=settings.projection_scale,
            )

        return [regulariser(drift, settings)]

    def frozen(self, given: Given) -> Collection[str]:
        """Return the parameters without a block."""
        needs = self.needs(given.scope)
        if not needs or not self.regularised_only:
            return ()
        return given[needs[0]].untracked

    @staticmethod
    def _curvatures(given: Given, needs: Sequence[Statistics]) -> Iterator[Curvature]:
        """Yield the curvatures one after another, so that merging holds two at a time."""
        import torch

        for need in needs:
            yield given[need].to(given.device, torch.float32)
