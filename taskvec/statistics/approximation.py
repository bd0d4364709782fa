"""How the curvature of a model's features is approximated, as a schema that needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from taskvec.config import Config


class Approximation(Config):
    """How the GGN of the features is approximated and estimated (spec 3.2, 3.5).

    ``probes`` counts the Gaussian backward vectors per example, drawn by ``seed``; 0 takes the exact sum over the
    feature's channels. ``precision`` is that of products and sums. ``faithful`` takes the conventions of the authors'
    code: 1/R in B too, probes summed, full blocks of EKFAC summed over examples, and B summed over tasks when merged.

    ``sharing`` is the treatment of a layer's tokens (Eschenhagen et al.). curvlinops gives c B (x) A where its loss is
    MSELoss: c = 2n with reduction "sum" over n examples (its Hessian is 2 I, and it does not divide by n), c = 2/d with
    "mean" over the features' d channels. ``reduce`` gives key projections no curvature, so it leaves them unpenalised:
    their gradients sum to zero over the tokens, because the same shift of all keys moves all scores of a query alike
    and softmax does not see it (positions that enter the scores of the keys, rotary or DeBERTa's, leave something).
    """

    structure: Literal["kfac", "ekfac", "diag_ggn"] = "kfac"
    probes: int = Field(1, ge=0)
    sharing: Literal["expand", "reduce"] = "expand"
    precision: Literal["float32", "float64"] = "float32"
    seed: int = 0
    faithful: bool = False

    @model_validator(mode="after")
    def _faithful_expands(self) -> Approximation:
        if self.faithful and self.sharing != "expand":
            raise ValueError("faithful: the authors' code expands; set sharing=expand")
        return self

    def record(self) -> dict[str, Any]:
        """Return what shapes the tensors as JSON values, to be stored with them."""
        return {name: getattr(self, name) for name in Approximation.model_fields}
