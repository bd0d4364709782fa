"""What a user sets of a curvature, as a schema that needs no torch."""

from __future__ import annotations

from pydantic import Field

from taskvec.needs import Budget
from taskvec.statistics.approximation import Approximation
from taskvec.statistics.curvature import FeatureCurvature


class CurvatureSettings(Approximation):
    """How a curvature is approximated, and the examples it is estimated on.

    ``examples`` is the budget per task; ``fraction``, where given, replaces it. ``seed`` draws probes and examples.
    """

    examples: int = Field(256, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)

    @property
    def statistic(self) -> FeatureCurvature:
        """The statistic to ask for."""
        return FeatureCurvature(**self.record())

    @property
    def budget(self) -> Budget:
        """The examples to ask for."""
        if self.fraction is not None:
            return Budget(fraction=self.fraction, seed=self.seed)
        return Budget(count=self.examples, seed=self.seed)
