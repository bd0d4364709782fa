"""What merges of weight matrices share: which tensors are matrices, and what becomes of the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from taskvec.merge.base import TensorWise
from taskvec.merge.piece import Grain, Piece
from taskvec.needs import Given

if TYPE_CHECKING:
    from torch import Tensor


TEXT_PROJECTION = """\"merge.exclude=['*text_projection*']\""""  # an override, quoted for a shell


class MatrixWise(TensorWise):
    """A merge of matrices; every other tensor (vectors, kernels, numbers) gets the mean of the deltas, or their sum.

    ``others`` "none" leaves them at theta_0. ``exclude`` names parameters, or patterns of names such as
    ``*projection*``, that are treated as the others although they are matrices.
    """

    others: Literal["mean", "sum", "none"] = "mean"
    exclude: tuple[str, ...] = ()

    grain = "tensor"
    stored = True

    @abstractmethod
    def matrix(self, deltas: Sequence[Tensor], count: int) -> Tensor:
        """Return the merged delta [o, i] from those of ``count`` vectors that are not zero by declaration."""

    def merge(self, piece: Piece, given: Given | None, surveyed: Any) -> Tensor | None:
        """Return the merged matrix, or what the others get."""
        parts = piece.parts
        if self.is_matrix(piece.name, piece.shape):
            return self.matrix(parts, len(piece.deltas))
        if self.others == "none":
            return None
        total = sum(parts[1:], parts[0])
        return total / len(piece.deltas) if self.others == "mean" else total

    def grain_of(self, name: str, shape: Sequence[int]) -> Grain:
        """Return that a matrix is read as a whole, and anything else in pieces."""
        return "tensor" if self.is_matrix(name, shape) else "entry"

    def is_matrix(self, name: str, shape: Sequence[int]) -> bool:
        """Return whether a parameter is merged as a matrix."""
        excluded = any(fnmatchcase(name, pattern) for pattern in self.exclude)
        return len(shape) == 2 and 0 not in shape and not excluded
