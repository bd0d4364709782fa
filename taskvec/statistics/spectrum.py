"""Singular values of every linear layer's weight on the data it sees: what PAVE divides ranks by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from taskvec.needs import Given, Needs, Scope, Statistics
from taskvec.registry import register
from taskvec.statistics.base import Statistic
from taskvec.statistics.input_moments import InputMoments

if TYPE_CHECKING:
    from torch import Tensor


@register("statistic", "spectrum", paper="PAVE")
class Spectrum(Statistic):
    """The singular values of W C by layer, descending, [min(out, in)] float64, with C = sum x x^T / rows + damping I.

    W are the weights at the vector that the statistic is asked at, theta_0 without one, and C is taken there too.
    ``whitening`` sqrt takes W C^(1/2) instead, whose discarded squares are the error on activations. Layers without
    moments have no spectrum.
    """

    kind: Literal["spectrum"] = "spectrum"
    moments: InputMoments = InputMoments()
    whitening: Literal["cov", "sqrt"] = "cov"
    damping: float = Field(0.0, ge=0)

    derived: ClassVar[bool] = True

    def needs(self, asked: Statistics, scope: Scope | None = None) -> Needs:
        """Return the moments at the same place, and the vector."""
        moments = replace(asked, what=self.moments)
        return (moments,) if asked.at is None else (moments, asked.at)

    def made(self, asked: Statistics, given: Given) -> dict[str, Tensor]:
        """Return the singular values by layer."""
        from taskvec.statistics.accumulators.spectra import singular_values

        moments = given[replace(asked, what=self.moments)]
        model = given.source if asked.side == "source" else given.model
        weights = model.parameters
        if asked.at is not None:
            weights = given[asked.at].apply_to(weights)
        spectra = {}
        for layer in moments:
            weight = weights.get(f"{layer}.weight")
            if weight is not None:
                second = moments[layer].second(weight.device)
                spectra[layer] = singular_values(weight, second, self.whitening, self.damping)
        return spectra

    def pack(self, value: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors."""
        return dict(value), {}

    def unpack(
        self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> Mapping[str, Tensor]:
        """Return the stored tensors."""
        return tensors
