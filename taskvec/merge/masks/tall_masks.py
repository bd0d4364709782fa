"""TALL masks: for each task, the entries of the summed vector that matter to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import Convention, Merge
from taskvec.needs import Given, Signed
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.merge.base import TensorWise
    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition


@register("merge", "tall_masks", paper="Wang et al., ICML 2024, arXiv 2405.07813, section 4")
class TallMasks(Merge):
    """theta_0 + m_t * tau for task t, m_t = |tau_t| > alpha |tau - tau_t|.

    alpha is the threshold of the masks, not a scale. tau is the sum of the vectors, or (``shared`` "ties") the sum of
    their entries that TIES keeps at ``density``.
    """

    kind: Literal["tall_masks"] = "tall_masks"
    shared: Literal["sum", "ties"] = "sum"
    density: float = Field(0.2, gt=0, le=1)

    grid = (0.2, 0.3, 0.4, 0.5, 0.6)
    models = "per_task"
    conventions = (
        Convention("the paper", "", "the threshold is chosen for each task on validation data"),
        Convention("the paper on TIES", "merge.shared=ties"),
        Convention(
            "FusionBench's helper",
            "",
            "it compares |theta_0 - tau_t|, which is no task vector",
            offered=False,
        ),
    )

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return a model for each task, for any threshold."""
        from taskvec.merge.masks.compositions import Localised

        deltas = self.checked(vectors)
        summed = shared_merge(self.shared, self.density).merged(base, deltas, given)
        by_task = {task: signed.delta for signed in vectors for task in signed.tasks}
        return Localised(base, summed, by_task)


def shared_merge(shared: Literal["sum", "ties"], density: float) -> TensorWise:
    """Return the merge that makes the vector which masks localise."""
    from taskvec.merge.sparse.ties import Ties
    from taskvec.merge.task_arithmetic import TaskArithmetic

    return Ties(density=density, combine="sum") if shared == "ties" else TaskArithmetic()
