"""Floating-point numbers as integers of the same order: their bits, up to a flip for negative ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Starts a pass over several arrays: pieces [n] of each at a time, all of one dtype; None: nothing of this array
Together = Callable[[], Iterable[Sequence[Tensor | None]]]


class Wanted(NamedTuple):
    """Which number: its array, and its rank there (0: the smallest)."""

    array: int
    rank: int


class Selected(NamedTuple):
    """The value of a rank, and how many numbers are smaller than it: ``rank - below`` equal ones come before."""

    value: float
    below: int


class Sample(NamedTuple):
    """A few numbers of each array, from all over it, and how many each array has in all.

    ``pieces`` None: another pass costs little, so that nothing is to be foreseen.
    """

    pieces: Together | None
    entries: Sequence[int]


class Format(NamedTuple):
    """Floating-point numbers and the integers of the same size."""

    floats: torch.dtype
    integers: torch.dtype
    bits: int

    @property
    def magnitude(self) -> int:
        """All bits but the sign."""
        return (1 << (self.bits - 1)) - 1


FORMATS = {
    torch.float32: Format(torch.float32, torch.int32, 32),
    torch.float64: Format(torch.float64, torch.int64, 64),
}


def order_keys(numbers: Tensor) -> Tensor:
    """Return integers in the order of the numbers: int32 of float32, int64 of float64; -0 comes before 0."""
    layout = FORMATS[numbers.dtype]
    bits = numbers.contiguous().view(layout.integers)
    sign = bits >> (layout.bits - 1)
    return bits ^ (sign & layout.magnitude)


def number_of(key: int, layout: Format) -> float:
    """Return the number of a key."""
    bits = key if key >= 0 else key ^ layout.magnitude
    return torch.tensor(bits, dtype=layout.integers).view(layout.floats).item()
