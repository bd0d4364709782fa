"""What shapes a curvature and its penalty, as schemas that need no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from taskvec.config import Config

if TYPE_CHECKING:
    from torch import Tensor


class CurvatureSettings(Config):
    """How the GGN of the features is approximated and estimated (spec 3.2, 3.5).

    ``probes`` counts the Gaussian backward vectors per example; 0 takes the exact sum over the feature's channels.
    ``sharing`` is the treatment of a layer's tokens (Eschenhagen et al., NeurIPS 2023). ``examples`` is the budget per
    task; ``fraction``, where given, replaces it. ``precision`` is that of products and sums. ``faithful`` takes the
    conventions of the authors' code: 1/R in B too, probes summed, full blocks of EKFAC summed over examples, and B
    summed over tasks when merged.
    """

    structure: Literal["kfac", "ekfac", "diag_ggn"] = "kfac"
    probes: int = Field(1, ge=0)
    sharing: Literal["expand", "reduce"] = "expand"
    examples: int = Field(256, ge=1)
    fraction: float | None = Field(None, gt=0, le=1)
    precision: Literal["float32", "float64"] = "float32"
    seed: int = 0
    faithful: bool = False

    @model_validator(mode="after")
    def _faithful_expands(self) -> CurvatureSettings:
        if self.faithful and self.sharing != "expand":
            raise ValueError("faithful: the authors' code expands; set sharing=expand")
        return self

    def record(self) -> dict[str, Any]:
        """Return every setting as JSON values, to be stored with what they shaped."""
        return self.model_dump(mode="json")

    def choose(self, total: int) -> Tensor:
        """Return the indices [n] int64 of the budget's examples out of ``total``, drawn by the seed, in order."""
        import torch

        count = self.examples if self.fraction is None else max(1, round(self.fraction * total))
        order = torch.randperm(total, generator=torch.Generator().manual_seed(self.seed))
        return order[:count].sort().values


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
