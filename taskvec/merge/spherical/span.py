"""What merges on the sphere share: coefficients from inner products, then one combination."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from taskvec.merge.base import AS_IT_IS, TensorWise, names_of
from taskvec.merge.piece import Deltas, Piece
from taskvec.needs import Given

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors


class Span(TensorWise):
    """sum_t c_t theta_t of each tensor, the c_t a function of the inner products of the tensors, in float64.

    ``of`` says whose inner products: those of the weights theta_t, or those of the deltas tau_t, which are then what is
    combined (theta_0 + alpha * sum_t c_t tau_t).
    """

    of: Literal["weights", "deltas"] = "weights"

    grid = AS_IT_IS

    @property
    def relative(self) -> bool:
        """Whether deltas are combined."""
        return self.of == "deltas"

    @property
    def passes(self) -> int:
        """Inner products first."""
        return 2

    @abstractmethod
    def coefficients(self, gram: Tensor) -> Tensor:
        """Return c [T] given the inner products [T, T]."""

    def survey(self, base: Tensors, deltas: Deltas, given: Given | None) -> dict[str, list[float]]:
        """Return the coefficients of each tensor."""
        from taskvec.merge.pieces import read_together
        from taskvec.merge.spherical.gram import gram

        found = {}
        for name in names_of(deltas):
            products = sum(
                gram(self.operands(piece)) for piece in read_together(base, deltas, name)
            )
            found[name] = self.coefficients(products).tolist()
        return found

    def merge(
        self, piece: Piece, given: Given | None, surveyed: Mapping[str, list[float]]
    ) -> Tensor:
        """Return sum_t c_t tau_t, and of weights (sum_t c_t - 1) theta_0 besides."""
        from taskvec.merge.scheme.consensus import weighted_sum

        coefficients = surveyed[piece.name]
        parts = piece.parts
        total = weighted_sum(parts, [coefficients[position] for position, _ in piece.present])
        excess = sum(coefficients) - 1
        if self.of == "deltas" or excess == 0:
            return total
        return total + excess * piece.base.to(total)

    def operands(self, piece: Piece) -> list[Tensor]:
        """Return what inner products are taken of, in float64: weights, or deltas."""
        import torch

        if self.of == "weights":
            base = piece.base.double()
            return [base if delta is None else base + delta for delta in piece.deltas]
        zero = torch.zeros_like(piece.present[0][1])
        return [zero if delta is None else delta for delta in piece.deltas]
