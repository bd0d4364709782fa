"""Moments of two models' activations on the same examples, from which maps between their spaces are found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from taskvec.registry import register
from taskvec.statistics.base import Accumulator, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.statistics.cross_value import SpaceMoments
    from taskvec.statistics.passes.survey import Survey


@register("statistic", "cross_moments", paper="Theseus")
class CrossMoments(Statistic):
    """C = A^T B [a, b] in float64 of the rows A of the source and B of the target, for every space that both observe.

    With it come the sums and squares of the rows, from which centred moments follow, and with ``grams`` A^T A and B^T B
    (partial whitening; the residual of maps that narrow). Spaces that are seen at the same tensor in both models share
    one moment, and that of a linear layer's output follows from its input's. ``align`` pairs tokens where an example
    has more of them in one model (:func:`taskvec.statistics.passes.pairing.paired`); padding has no rows.

    ``of`` gradients takes, in place of activations, the gradients of the labels' loss with respect to each output
    (BiCo). ``precision`` is that of the products of a batch. The value is a
    :class:`taskvec.statistics.cross_value.SpaceMoments`.
    """

    kind: Literal["cross_moments"] = "cross_moments"
    align: Literal["interpolate2d", "interpolate", "cls", "mean"] = "interpolate2d"
    of: Literal["activations", "gradients"] = "activations"
    grams: bool = False
    precision: Literal["float32", "float64"] = "float32"

    pair: ClassVar[bool] = True

    @property
    def gradient(self) -> bool:
        """Whether a pass must run backwards."""
        return self.of == "gradients"

    @property
    def labels(self) -> bool:
        """Whether the labels must be granted."""
        return self.of == "gradients"

    def accumulator(self, *surveys: Survey) -> Accumulator:
        """Return the sums of one pass over both models."""
        from taskvec.statistics.accumulators.crossed import CrossSums

        source, target = surveys
        return CrossSums(
            source,
            target,
            align=self.align,
            gradients=self.gradient,
            grams=self.grams,
            precision=self.precision,
        )

    def pack(self, value: SpaceMoments) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return each shared moment once, and which spaces share or follow."""
        return dict(value.tensors), dict(value.meta)

    def unpack(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> SpaceMoments:
        """Return the moments over stored tensors, which are looked up as they are used."""
        from taskvec.statistics.cross_value import SpaceMoments

        return SpaceMoments(tensors, meta)
