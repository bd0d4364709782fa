"""What a user sets of a curvature and its penalty, as schemas that need no torch."""

from __future__ import annotations

from pydantic import Field

from taskvec.config import Config
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


class PenaltySettings(Config):
    """How a quadratic drift penalty enters the loss (spec 3.3, 3.4).

    The strength is ``weight``, reached linearly over the first ``warmup`` steps. With ``cadence`` N it is applied at
    steps 0, N, 2N, ..., N times as strong so that its mean over steps stays, or as it is if ``faithful``.
    ``full_scale`` multiplies the blocks of norms and class token, ``projection_scale`` that of the output projection.
    """

    weight: float = Field(1.0, ge=0)
    full_scale: float = Field(1.0, ge=0)
    projection_scale: float = Field(1.0, ge=0)
    cadence: int = Field(1, ge=1)
    warmup: int = Field(0, ge=0)
    faithful: bool = False

    def strength(self, step: int) -> float:
        """Return the factor of the penalty at a step, 0 where it is left out."""
        if step % self.cadence:
            return 0.0
        ramp = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.weight * ramp * (1 if self.faithful else self.cadence)
