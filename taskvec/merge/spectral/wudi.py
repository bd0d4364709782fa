"""WUDI: the vector that interferes least with what each task's layer does on its own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.merge.base import AS_IT_IS, Convention
from taskvec.merge.spectral.matrixwise import MatrixWise
from taskvec.registry import register

if TYPE_CHECKING:
    from torch import Tensor


@register("merge", "wudi", paper="Cheng et al., ICML 2025, arXiv 2503.08099, section 3")
class Wudi(MatrixWise):
    """theta_0 + alpha * X for each matrix, X the minimiser of sum_t ||(X - tau_t) tau_t^T||_F^2 / ||tau_t||_F^2.

    ``solver`` "adam" is the paper's: ``steps`` steps of Adam (lr 1e-5) from X_0 = sum_t tau_t, which moves little.
    "closed" solves X A = B in float64, A = sum_t tau_t^T tau_t / ||tau_t||^2, B = sum_t tau_t tau_t^T tau_t /
    ||tau_t||^2; where A is singular, the solution nearest to X_0 (a ``ridge`` towards it, relative to A's mean
    eigenvalue).
    """

    kind: Literal["wudi"] = "wudi"
    solver: Literal["adam", "closed"] = "adam"
    steps: int = Field(300, ge=0)
    lr: float = Field(1e-5, gt=0)
    ridge: float = Field(1e-8, gt=0)

    grid = AS_IT_IS
    conventions = (
        Convention("the paper", "", "300 steps"),
        Convention("FusionBench", "merge.steps=400", "its YAML's number of steps"),
        Convention(
            "merge-and-rebase",
            "merge.solver=closed",
            "the two solvers give different models in practice",
        ),
    )

    def matrix(self, deltas: Sequence[Tensor], count: int) -> Tensor:
        """Return X."""
        from taskvec.merge.spectral.interference import descended, solved

        moving = [delta for delta in deltas if delta.any()]
        if not moving:
            return deltas[0]
        if self.solver == "closed":
            return solved(moving, self.ridge)
        return descended(moving, self.steps, self.lr)
