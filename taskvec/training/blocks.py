"""How a coefficient of a vector is shared among a parameter's entries: the blocks of aTLAS and AdaMerging.

The coefficients of one vector are a row [m]. Every parameter takes a run of its columns, spread over the parameter's
entries by its layout; several parameters may share a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from taskvec.vectors.noise import Stream, random_bits

Shape = Sequence[int]
Kind = Literal["vector", "tensor", "rows", "columns", "thirds"]

HALF = 2**31


@dataclass(frozen=True)
class Layout(ABC):
    """The columns ``first`` to ``first + count`` of the coefficients, spread over a parameter of a shape."""

    first: int
    count: int
    shape: tuple[int, ...]

    @property
    def columns(self) -> slice:
        """The columns of the coefficients."""
        return slice(self.first, self.first + self.count)

    @abstractmethod
    def spread(self, coefficients: Tensor) -> Tensor:
        """Return coefficients [count] in a shape that broadcasts over the parameter's."""

    @abstractmethod
    def summed(self, products: Tensor) -> Tensor:
        """Return, for each coefficient, the sum of a tensor of the parameter's shape over its entries [count]."""


@dataclass(frozen=True)
class Whole(Layout):
    """One coefficient for all entries."""

    def spread(self, coefficients: Tensor) -> Tensor:
        """Return the coefficient, 0-d."""
        return coefficients[0]

    def summed(self, products: Tensor) -> Tensor:
        """Return the sum of all entries."""
        return products.sum().view(1)


@dataclass(frozen=True)
class Axis(Layout):
    """One coefficient for each group of ``shape[axis] / count`` neighbours along an axis: rows, columns, thirds."""

    axis: int = 0

    def spread(self, coefficients: Tensor) -> Tensor:
        """Return the coefficients along the axis."""
        size = self.shape[self.axis]
        along = coefficients.repeat_interleave(size // self.count)
        view = [1] * len(self.shape)
        view[self.axis] = size
        return along.view(view)

    def summed(self, products: Tensor) -> Tensor:
        """Return the sum over each group."""
        return products.movedim(self.axis, 0).reshape(self.count, -1).sum(1)


@dataclass(frozen=True)
class Parts(Layout):
    """One coefficient for each of ``count`` parts, to which every entry belongs at random (aTLAS x K).

    An entry's part is a hash of seed, parameter name and place, so that nothing is stored. The same parts serve all
    vectors.
    """

    name: str = ""
    seed: int = 0

    def parts(self) -> Tensor:
        """Return each entry's part, int64 of the parameter's shape."""
        return _parts(self)

    def spread(self, coefficients: Tensor) -> Tensor:
        """Return each entry's coefficient."""
        return coefficients[self.parts().to(coefficients.device)]

    def summed(self, products: Tensor) -> Tensor:
        """Return the sum over each part."""
        parts = self.parts().to(products.device).view(-1)
        return products.new_zeros(self.count).index_add_(0, parts, products.reshape(-1))


@lru_cache(maxsize=1)  # of the parameter at hand: all vectors ask for the same
def _parts(layout: Parts) -> Tensor:
    entries = torch.Size(layout.shape).numel()
    bits = random_bits(Stream(layout.seed, layout.name, 0), 0, entries)
    unsigned = bits.long() + HALF
    return ((unsigned * layout.count) >> 32).view(layout.shape)


@dataclass(frozen=True)
class Blocks:
    """The layouts of all parameters that have coefficients, and the number of columns m."""

    layouts: Mapping[str, Layout]
    count: int

    @property
    def names(self) -> list[str]:
        """The parameters that have coefficients."""
        return list(self.layouts)

    def columns(self) -> list[str]:
        """Return a name for each column: its parameter, those that share it joined by "+", with a number in a run."""
        found = [""] * self.count
        for name, layout in self.layouts.items():
            for number in range(layout.count):
                own = name if layout.count == 1 else f"{name}[{number}]"
                shared = found[layout.first + number]
                found[layout.first + number] = f"{shared}+{own}" if shared else own
        return found


def blocks(
    kind: Kind, shapes: Mapping[str, Shape], *, only: str = "*", matrices: bool = False
) -> Blocks:
    """Return the blocks of parameters by shape; those without coefficients stay at theta_0.

    ``vector``: one coefficient for all parameters (isotropic, task-wise). ``tensor``: one for each (layer-wise).
    ``rows``, ``columns``: one for each row or column of a matrix, for each output channel of a kernel, for each vector
    (spec 6.1). ``thirds``: three for each parameter, along its first axis (packed q, k, v). ``only`` is a pattern of
    names, ``matrices`` leaves out all that has not two axes.
    """
    layouts: dict[str, Layout] = {}
    columns = 0
    for name, given in shapes.items():
        shape = tuple(given)
        if not fnmatchcase(name, only) or (matrices and len(shape) != 2):
            continue
        if kind == "vector":
            layouts[name] = Whole(0, 1, shape)
            columns = 1
            continue
        layouts[name] = _MAKERS[kind](columns, shape)
        columns += layouts[name].count
    return Blocks(layouts, columns)


def joined(whole: Blocks, groups: Mapping[str, str]) -> Blocks:
    """Return blocks in which the parameters of one group share a coefficient; the others, by name, keep their own.

    Raises:
        ValueError: for blocks of rows or columns.
    """
    columns: dict[str, int] = {}
    layouts: dict[str, Layout] = {}
    for name, layout in whole.layouts.items():
        _require_whole(name, layout)
        group = groups.get(name, name)
        column = columns.setdefault(group, len(columns))
        layouts[name] = Whole(column, 1, layout.shape)
    return Blocks(layouts, len(columns))


def divided(whole: Blocks, parts: int, seed: int, *, by_shape: bool = False) -> Blocks:
    """Return blocks that are cut into random parts with a coefficient each; only blocks of whole tensors can be.

    With ``by_shape`` parameters of equal shape are cut alike (the released code of aTLAS, spec 6.2).

    Raises:
        ValueError: for blocks of rows or columns.
    """
    layouts = {}
    for name, layout in whole.layouts.items():
        _require_whole(name, layout)
        cut_by = str(layout.shape) if by_shape else name
        layouts[name] = Parts(layout.first * parts, parts, layout.shape, cut_by, seed)
    return Blocks(layouts, whole.count * parts)


def _require_whole(name: str, layout: Layout) -> None:
    if not isinstance(layout, Whole):
        raise ValueError(
            f"{name}: only blocks of whole tensors can be joined or cut into random parts"
        )


def _whole(first: int, shape: tuple[int, ...]) -> Layout:
    return Whole(first, 1, shape)


def _rows(first: int, shape: tuple[int, ...]) -> Layout:
    plain = len(shape) < 2 or 0 in shape
    return Whole(first, 1, shape) if plain else Axis(first, shape[0], shape, 0)


def _columns(first: int, shape: tuple[int, ...]) -> Layout:
    matrix = len(shape) == 2 and 0 not in shape
    return Axis(first, shape[1], shape, 1) if matrix else _rows(first, shape)


def _thirds(first: int, shape: tuple[int, ...]) -> Layout:
    if not shape or 0 in shape or shape[0] % 3:
        return Whole(first, 1, shape)
    return Axis(first, 3, shape, 0)


_MAKERS: Mapping[str, Callable[[int, tuple[int, ...]], Layout]] = {
    "tensor": _whole,
    "rows": _rows,
    "columns": _columns,
    "thirds": _thirds,
}
