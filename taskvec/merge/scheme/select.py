"""The k-th smallest of very many numbers, exactly, in two passes (float64: four) and without a copy of them.

Floating-point numbers are ordered as their bits are, up to a flip for negative ones. Each pass counts the next 16
leading bits of the numbers that share the bits found so far (radix selection by histograms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Starts a pass over one array; its pieces are 1-D, all of one dtype
Pieces = Callable[[], Iterable[Tensor]]
Together = Callable[[], Iterable[Sequence[Tensor]]]  # starts a pass over several arrays

DIGIT = 16
BINS = 1 << DIGIT
HALF = BINS >> 1


class Wanted(NamedTuple):
    """Which number: its array, and its rank there (0: the smallest)."""

    array: int
    rank: int


class Selected(NamedTuple):
    """The value of a rank, and how many numbers are smaller than it: ``rank - below`` equal ones come before."""

    value: float
    below: int


class _Format(NamedTuple):
    """Floating-point numbers and the integers of the same size."""

    floats: torch.dtype
    integers: torch.dtype
    bits: int

    @property
    def magnitude(self) -> int:
        """All bits but the sign."""
        return (1 << (self.bits - 1)) - 1


_FORMATS = {
    torch.float32: _Format(torch.float32, torch.int32, 32),
    torch.float64: _Format(torch.float64, torch.int64, 64),
}


class _Prefix(NamedTuple):
    """The leading bits that are known of a number, and its rank among the numbers that share them."""

    array: int
    bits: int | None
    rank: int

    @property
    def key(self) -> tuple[int, int | None]:
        """What numbers it is looked for among."""
        return self.array, self.bits


def select(pieces: Pieces, rank: int) -> Selected:
    """Return the number of a rank (0: the smallest) among all numbers of the pieces, none of which may be NaN.

    Raises:
        ValueError: if there are not that many numbers.
    """

    def together() -> Iterable[Sequence[Tensor]]:
        return ((piece,) for piece in pieces())

    (found,) = select_together(together, [Wanted(0, rank)])
    return found


def select_together(pieces: Together, wanted: Sequence[Wanted]) -> list[Selected]:
    """Return numbers by their ranks, of several arrays that are read in the same passes; float32 or float64.

    Raises:
        ValueError: if an array has not that many numbers.
    """
    layout = _format_of(pieces)
    prefixes = [_Prefix(array, None, rank) for array, rank in wanted]
    shift = layout.bits
    while shift > 0:
        shift -= DIGIT
        counts = _histograms(pieces, prefixes, shift)
        prefixes = [_longer(prefix, counts[prefix.key]) for prefix in prefixes]
    found = []
    for prefix, (_, rank) in zip(prefixes, wanted, strict=True):
        value = _number(prefix.bits, layout)
        found.append(Selected(value, rank - prefix.rank))
    return found


def order_keys(numbers: Tensor) -> Tensor:
    """Return integers in the order of the numbers: int32 of float32, int64 of float64; -0 comes before 0."""
    layout = _FORMATS[numbers.dtype]
    bits = numbers.contiguous().view(layout.integers)
    sign = bits >> (layout.bits - 1)
    return bits ^ (sign & layout.magnitude)


def _format_of(pieces: Together) -> _Format:
    for parts in pieces():
        return _FORMATS[parts[0].dtype]
    return _FORMATS[torch.float32]


def _number(key: int, layout: _Format) -> float:
    bits = key if key >= 0 else key ^ layout.magnitude
    return torch.tensor(bits, dtype=layout.integers).view(layout.floats).item()


def _histograms(
    pieces: Together, prefixes: Sequence[_Prefix], shift: int
) -> dict[tuple[int, int | None], Tensor]:
    """Return, for each array and known bits, how many numbers with these bits have each next digit."""
    counts = {prefix.key: torch.zeros(BINS, dtype=torch.int64) for prefix in prefixes}
    for parts in pieces():
        keys: dict[int, Tensor] = {}
        for (array, bits), count in counts.items():
            if array not in keys:
                keys[array] = order_keys(parts[array])
            digits = _digits(keys[array], bits, shift)
            if len(digits):
                found = torch.bincount(digits, minlength=BINS)
                count += found.to(count.device)
    return counts


def _digits(keys: Tensor, bits: int | None, shift: int) -> Tensor:
    if bits is None:
        # The first digit is signed: it carries the numbers' sign.
        return (keys >> shift) + HALF
    known = keys >> (shift + DIGIT)
    matching = keys[known == bits]
    return (matching >> shift) & (BINS - 1)


def _longer(prefix: _Prefix, counts: Tensor) -> _Prefix:
    """Return the prefix with one more digit: that of the bin that holds its rank.

    Raises:
        ValueError: if there are not that many numbers.
    """
    running = counts.cumsum(0)
    total = int(running[-1])
    if not 0 <= prefix.rank < total:
        raise ValueError(f"rank {prefix.rank} of {total} numbers")
    digit = int(torch.searchsorted(running, prefix.rank, right=True))
    before = int(running[digit - 1]) if digit else 0
    bits = digit - HALF if prefix.bits is None else (prefix.bits << DIGIT) + digit
    return _Prefix(prefix.array, bits, prefix.rank - before)
