"""The k-th smallest of very many numbers, exactly, in two passes (float64: four) and without a copy of them.

Floating-point numbers are ordered as their bits are, up to a flip for negative ones. Each pass counts the next 16
leading bits of the numbers that share the bits found so far (radix selection by histograms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pieces = Callable[[], Iterable[Tensor]]  # starts a pass over one array; its pieces are 1-D, all of one dtype
Together = Callable[[], Iterable[Sequence[Tensor]]]  # starts a pass over several arrays

DIGIT = 16


class Wanted(NamedTuple):
    """Which number: its array, and its rank there (0: the smallest)."""

    array: int
    rank: int


class Selected(NamedTuple):
    """The value of a rank, and how many numbers are smaller than it: ``rank - below`` equal ones come before."""

    value: float
    below: int


class _Prefix(NamedTuple):
    """The leading bits that are known of a number, and its rank among the numbers that share them."""

    array: int
    bits: int | None
    rank: int


def select(pieces: Pieces, rank: int) -> Selected:
    """Return the number of a rank (0: the smallest) among all numbers of the pieces, none of which may be NaN.

    Raises:
        ValueError: if there are not that many numbers.
    """
    (found,) = select_together(lambda: ((piece,) for piece in pieces()), [Wanted(0, rank)])
    return found


def select_together(pieces: Together, wanted: Sequence[Wanted]) -> list[Selected]:
    """Return numbers by their ranks, of several arrays that are read in the same passes; float32 or float64.

    Raises:
        ValueError: if an array has not that many numbers.
    """
    dtype = next((parts[0].dtype for parts in pieces()), torch.float32)
    prefixes = [_Prefix(array, None, rank) for array, rank in wanted]
    shift = _bits(dtype)
    while shift > 0:
        shift -= DIGIT
        counts = _histograms(pieces, prefixes, shift)
        prefixes = [_longer(prefix, counts[prefix.array, prefix.bits]) for prefix in prefixes]
    return [
        Selected(_number(prefix.bits, dtype), rank - prefix.rank)
        for prefix, (_, rank) in zip(prefixes, wanted, strict=True)
    ]


def order_keys(numbers: Tensor) -> Tensor:
    """Return integers in the order of the numbers: int32 of float32, int64 of float64; -0 comes before 0."""
    bits = numbers.contiguous().view(torch.int32 if numbers.dtype == torch.float32 else torch.int64)
    sign_bit = _bits(numbers.dtype) - 1
    magnitude = (1 << sign_bit) - 1
    return bits ^ ((bits >> sign_bit) & magnitude)


def _bits(dtype: torch.dtype) -> int:
    return 32 if dtype == torch.float32 else 64


def _number(key: int, dtype: torch.dtype) -> float:
    size = _bits(dtype)
    bits = key if key >= 0 else key ^ ((1 << (size - 1)) - 1)
    kind = torch.int32 if size == 32 else torch.int64
    return torch.tensor(bits, dtype=kind).view(dtype).item()


def _histograms(pieces: Together, prefixes: Sequence[_Prefix], shift: int) -> dict[tuple[int, int | None], Tensor]:
    """Return, for each array and known bits, how many numbers with these bits have each next digit."""
    counts = {(prefix.array, prefix.bits): torch.zeros(1 << DIGIT, dtype=torch.int64) for prefix in prefixes}
    for parts in pieces():
        keys: dict[int, Tensor] = {}
        for (array, bits), count in counts.items():
            if array not in keys:
                keys[array] = order_keys(parts[array])
            digits = _digits(keys[array], bits, shift)
            if digits.numel():
                count += torch.bincount(digits, minlength=1 << DIGIT).to(count.device)
    return counts


def _digits(keys: Tensor, bits: int | None, shift: int) -> Tensor:
    if bits is None:
        # The first digit is signed: it carries the numbers' sign.
        return (keys >> shift) + (1 << (DIGIT - 1))
    matching = keys[(keys >> (shift + DIGIT)) == bits]
    return (matching >> shift) & ((1 << DIGIT) - 1)


def _longer(prefix: _Prefix, counts: Tensor) -> _Prefix:
    """Return the prefix with one more digit: that of the bin that holds its rank."""
    running = counts.cumsum(0)
    if not 0 <= prefix.rank < int(running[-1]):
        raise ValueError(f"rank {prefix.rank} of {int(running[-1])} numbers")
    digit = int(torch.searchsorted(running, prefix.rank, right=True))
    before = int(running[digit - 1]) if digit else 0
    bits = digit - (1 << (DIGIT - 1)) if prefix.bits is None else (prefix.bits << DIGIT) + digit
    return _Prefix(prefix.array, bits, prefix.rank - before)
