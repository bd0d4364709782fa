"""The k-th smallest of very many numbers, exactly and without a copy of them: in one pass where it was foreseen.

Otherwise by histograms of their bits, which are in the numbers' order: each pass counts the next 16 leading bits of the
numbers that share the bits found so far, so float32 takes two passes and float64 four (radix selection).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.merge.scheme.foreseen import Tail, watches
from taskvec.merge.scheme.order import (
    FORMATS,
    Format,
    Sample,
    Selected,
    Together,
    Wanted,
    number_of,
    order_keys,
)

# Starts a pass over one array; its pieces are 1-D, all of one dtype
Pieces = Callable[[], Iterable[Tensor]]

DIGIT = 16
BINS = 1 << DIGIT
HALF = BINS >> 1


class _Prefix(NamedTuple):
    """The leading bits that are known of a number, and its rank among the numbers that share them."""

    array: int
    bits: int | None
    rank: int

    @property
    def key(self) -> tuple[int, int | None]:
        """What numbers it is looked for among."""
        return self.array, self.bits


Counts = dict[tuple[int, int | None], Tensor]  # of each next digit, by array and known bits


def select(pieces: Pieces, rank: int) -> Selected:
    """Return the number of a rank (0: the smallest) among all numbers of the pieces, none of which may be NaN.

    Raises:
        ValueError: if there are not that many numbers.
    """

    def together() -> Iterable[Sequence[Tensor]]:
        return ((piece,) for piece in pieces())

    (found,) = select_together(together, [Wanted(0, rank)])
    return found


def select_together(
    pieces: Together, wanted: Sequence[Wanted], sample: Sample | None = None
) -> list[Selected]:
    """Return numbers by their ranks, of several arrays that are read in the same passes; float32 or float64.

    Raises:
        ValueError: if an array has not that many numbers.
    """
    return Selection(pieces, wanted, sample).find(wanted)


class Selection:
    """What one pass over several arrays counts, to find numbers at about the expected ranks; and ``zeros`` if asked."""

    def __init__(
        self,
        pieces: Together,
        expected: Sequence[Wanted],
        sample: Sample | None,
        *,
        zeros: bool = False,
    ):
        self.pieces, self.counts_zeros = pieces, zeros
        self.watches = watches(expected, sample)
        self.layout: Format = FORMATS[torch.float32]
        self.zeros = dict.fromkeys((array for array, _ in expected), 0)
        self.first: Counts = {}
        self._count(self._uncertain(expected))

    def find(self, wanted: Sequence[Wanted]) -> list[Selected]:
        """Return numbers by their ranks; those that were not foreseen take more passes.

        Raises:
            ValueError: if an array has not that many numbers.
        """
        found = {item: self._seen(item) for item in wanted}
        missing = [item for item, selected in found.items() if selected is None]
        found |= dict(zip(missing, self._by_digits(missing), strict=True))
        return [found[item] for item in wanted]

    def _uncertain(self, expected: Sequence[Wanted]) -> set[int]:
        """Return the arrays of which a rank may turn out to be elsewhere."""
        sure = {watch.array for watch in self.watches if isinstance(watch, Tail)}
        guessed = {watch.array for watch in self.watches if not isinstance(watch, Tail)}
        return {array for array, _ in expected if array not in sure or array in guessed}

    def _count(self, uncertain: set[int]) -> None:
        self.first = {(array, None): torch.zeros(BINS, dtype=torch.int64) for array in uncertain}
        for parts in self.pieces():
            for array in self.zeros:
                if parts[array] is not None:
                    self.layout = FORMATS[parts[array].dtype]
                    self._look(array, parts[array])

    def _look(self, array: int, part: Tensor) -> None:
        keys = order_keys(part)
        if self.counts_zeros:
            self.zeros[array] += len(part) - int(part.count_nonzero())
        for watch in self.watches:
            if watch.array == array:
                watch.see(keys)
        if (array, None) in self.first:
            _add(self.first[array, None], _digits(keys, None, self.layout.bits - DIGIT))

    def _seen(self, wanted: Wanted) -> Selected | None:
        for watch in self.watches:
            seen = watch.find(wanted.rank) if watch.array == wanted.array else None
            if seen is not None:
                return Selected(number_of(seen.key, self.layout), seen.below)
        return None

    def _by_digits(self, wanted: Sequence[Wanted]) -> list[Selected]:
        prefixes = [_Prefix(array, None, rank) for array, rank in wanted]
        shift = self.layout.bits
        known = self.first
        while shift > 0 and prefixes:
            shift -= DIGIT
            unknown = [prefix for prefix in prefixes if prefix.key not in known]
            counts = known | _histograms(self.pieces, unknown, shift)
            prefixes = [_longer(prefix, counts[prefix.key]) for prefix in prefixes]
            known = {}
        found = []
        for prefix, (_, rank) in zip(prefixes, wanted, strict=True):
            value = number_of(prefix.bits or 0, self.layout)
            found.append(Selected(value, rank - prefix.rank))
        return found


def _histograms(pieces: Together, prefixes: Sequence[_Prefix], shift: int) -> Counts:
    """Return, for each array and known bits, how many numbers with these bits have each next digit."""
    counts = {prefix.key: torch.zeros(BINS, dtype=torch.int64) for prefix in prefixes}
    if not counts:
        return counts
    for parts in pieces():
        keys: dict[int, Tensor] = {}
        for (array, bits), count in counts.items():
            part = parts[array]
            if part is None:
                continue
            if array not in keys:
                keys[array] = order_keys(part)
            _add(count, _digits(keys[array], bits, shift))
    return counts


def _add(count: Tensor, digits: Tensor) -> None:
    if len(digits):
        found = torch.bincount(digits, minlength=BINS)
        count += found.to(count.device)


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
