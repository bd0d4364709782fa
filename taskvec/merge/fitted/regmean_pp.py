"""RegMean++: RegMean block after block, on the inputs that the merged blocks below produce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import AS_IT_IS, Convention, Merge
from taskvec.needs import Budget, Examples, Given, Needs, Scope, Signed
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.vectors import Tensors
    from taskvec.vectors.composition import Composition


@register("merge", "regmean_pp", paper="Nguyen et al., 2025, arXiv 2508.03121, section 3")
class RegMeanPlusPlus(Merge):
    """RegMean's solution for the linear layers of one block at a time, from below.

    The inputs X_t of a block's layers are those of the model whose blocks below are merged already and whose own block
    is that of theta_t. Everything outside the blocks' layers is averaged first. The layers above the last block and
    those below the first one are taken as blocks of their own.
    """

    kind: Literal["regmean_pp"] = "regmean_pp"
    off_diagonal: float = Field(0.9, ge=0, le=1)
    examples: int = Field(256, ge=1)

    grid = AS_IT_IS
    stored = True
    forward_modes = frozenset({"standard"})
    conventions = (Convention("FusionBench for CLIP", "merge.off_diagonal=0.95"),)

    def needs(self, scope: Scope) -> Needs:
        """Return training examples of each vector's task, without labels."""
        return [self._rows(task) for task in scope.tasks]

    def compose(self, base: Tensors, vectors: Sequence[Signed], given: Given) -> Composition:
        """Return theta_0 + alpha * the merged vector."""
        from taskvec.merge.fitted.blockwise import solve_blocks
        from taskvec.vectors.composition import Scaled

        deltas = self.checked(vectors)
        views = [given[self._rows(signed.tasks[0])] for signed in vectors]
        return Scaled(
            base, solve_blocks(given.source, deltas, views, self.off_diagonal, given.observe)
        )

    def _rows(self, task: str) -> Examples:
        return Examples(task, "train", "calibration", budget=Budget(count=self.examples))
