"""A parameter, or a part of it, over all task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.vectors import Tensors

Grain: TypeAlias = Literal["entry", "row", "tensor"]
Deltas: TypeAlias = Sequence["Tensors"]  # of several vectors, in their order


@dataclass(frozen=True)
class Piece:
    """One parameter, or a part of it, as a tensor-wise merge gets it.

    ``deltas`` holds each vector's signed delta in the order of the vectors, in float32 or float64, None where a vector
    leaves the parameter at theta_0. They and ``base`` may be views and must not be written to. ``start`` is the place
    of the part's first entry within the parameter of the given ``shape``, in row-major order.
    """

    name: str
    shape: tuple[int, ...]
    base: Tensor
    deltas: Sequence[Tensor | None]
    start: int = 0

    @property
    def parts(self) -> list[Tensor]:
        """The deltas that are not zero by declaration."""
        return [delta for delta in self.deltas if delta is not None]

    @property
    def present(self) -> list[tuple[int, Tensor]]:
        """The deltas that are not zero by declaration, each with its vector's position."""
        return [
            (position, delta) for position, delta in enumerate(self.deltas) if delta is not None
        ]
