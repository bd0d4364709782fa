"""Where a number of a rank will be found, so that one pass is enough: near an end of its array, or near a sample's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.merge.scheme.order import Sample, Together, Wanted, order_keys

KEPT = 2**18  # numbers from the end of an array that are kept rather than counted
TAIL = 16  # an end is at most one number in so many
WIDEST = 2**21  # keys that are counted one by one
MARGIN = 2**17  # keys on either side: 1.6 to 3 % of a float32
DEVIATIONS = 8  # of the sample's rank; its entries come in runs, which are worth less than as many single ones


class Seen(NamedTuple):
    """The key of a rank, and how many keys are smaller."""

    key: int
    below: int


class Watch(ABC):
    """Looks at all keys of one array as they pass, and knows some ranks afterwards."""

    array: int

    @abstractmethod
    def see(self, keys: Tensor) -> None:
        """Look at some more keys [n]."""

    @abstractmethod
    def find(self, rank: int) -> Seen | None:
        """Return the key of a rank; None if it was not foreseen."""


class Tail(Watch):
    """The ``count`` smallest or largest keys of an array of so many entries."""

    def __init__(self, array: int, count: int, entries: int, *, smallest: bool):
        self.array, self.count, self.entries, self.smallest = array, count, entries, smallest
        # One array, made once: many small ones that stay would leave the heap full of holes
        self.kept = torch.empty(0)
        self.size = 0
        # What is beyond the bound is kept, what equals it is counted
        self.bound: int | None = None
        self.equal = 0

    def see(self, keys: Tensor) -> None:
        """Keep what may belong to the tail."""
        turned = self._turned(keys)
        if self.bound is not None:
            near = turned[turned >= self.bound]
            turned = near[near > self.bound]
            self.equal += len(near) - len(turned)
        if not len(self.kept):
            self.kept = turned.new_empty(min(2 * self.count, self.entries))
        if self.size + len(turned) > len(self.kept):
            turned = self._shortened(torch.cat([self.kept[: self.size], turned]))
            self.size = 0
        self.kept[self.size : self.size + len(turned)] = turned
        self.size += len(turned)

    def find(self, rank: int) -> Seen | None:
        """Return the key of a rank within the tail."""
        place = rank if self.smallest else self.entries - 1 - rank
        if not 0 <= place < self.count:
            return None
        together = self.kept[: self.size]
        if place < len(together):
            key = int(together.kthvalue(len(together) - place).values)
            beyond = int((together > key).sum())
            equal = int((together == key).sum())
        elif self.bound is not None:
            key, beyond, equal = self.bound, len(together), self.equal
        else:
            return None
        if self.smallest:
            return Seen(~key, beyond)
        return Seen(key, self.entries - beyond - equal)

    def _turned(self, keys: Tensor) -> Tensor:
        """Return keys such that larger ones belong to the tail; inverted bits are in the opposite order."""
        return ~keys if self.smallest else keys

    def _shortened(self, together: Tensor) -> Tensor:
        """Return what is beyond the ``count``-th key, the new bound."""
        self.bound = int(together.kthvalue(len(together) - self.count + 1).values)
        self.equal = int((together == self.bound).sum())
        return together[together > self.bound]


class Window(Watch):
    """How often each of the keys low, ..., low + width - 1 comes."""

    def __init__(self, array: int, low: int, width: int):
        self.array, self.low, self.width = array, low, width
        self.below = 0
        self.counts = torch.zeros(width, dtype=torch.int32)

    def see(self, keys: Tensor) -> None:
        """Count what lies within the window, and below it."""
        smaller = keys < self.low
        self.below += int(smaller.sum())
        inside = keys[(keys <= self.low + self.width - 1) & ~smaller]
        places = inside.cpu().long() - self.low
        self.counts.index_add_(0, places, torch.ones_like(places, dtype=torch.int32))

    def find(self, rank: int) -> Seen | None:
        """Return the key of a rank within the window."""
        running = self.counts.cumsum(0)
        inside = rank - self.below
        if not 0 <= inside < int(running[-1]):
            return None
        place = int(torch.searchsorted(running, inside, right=True))
        before = int(running[place - 1]) if place else 0
        return Seen(self.low + place, self.below + before)


def watches(expected: Sequence[Wanted], sample: Sample | None) -> list[Watch]:
    """Return what to look out for, to find numbers at about the expected ranks; small arrays are kept as a whole."""
    if sample is None or sample.pieces is None:
        return []
    found: list[Watch] = []
    inner: list[Wanted] = []
    for array in sorted({array for array, _ in expected}):
        entries = sample.entries[array]
        if 0 < entries <= KEPT:
            found.append(Tail(array, entries, entries, smallest=True))
    for array, rank in expected:
        entries = sample.entries[array]
        from_top = entries - 1 - rank
        nearest = min(rank, from_top)
        at_end = 0 <= nearest < min(KEPT, entries // TAIL)
        if entries > KEPT and at_end:
            found.append(Tail(array, nearest + 1, entries, smallest=rank <= from_top))
        elif entries > KEPT:
            inner.append(Wanted(array, rank))
    return found + _windows(inner, sample, sample.pieces)


def _windows(expected: Sequence[Wanted], sample: Sample, pieces: Together) -> list[Watch]:
    arrays = {array for array, _ in expected}
    drawn: dict[int, list[Tensor]] = {array: [] for array in arrays}
    if arrays:
        for parts in pieces():
            for array in arrays:
                if parts[array] is not None:
                    drawn[array].append(order_keys(parts[array]).cpu())
    ordered: dict[int, Tensor] = {}
    for array in arrays:
        own = drawn.pop(array)
        if own:
            ordered[array] = torch.cat(own).sort().values
    found: list[Watch] = []
    for array, rank in expected:
        if array in ordered:
            share = rank / sample.entries[array]
            found += _window(array, ordered[array], share)
    return found


def _window(array: int, keys: Tensor, share: float) -> list[Watch]:
    """Return a window around a share of sorted keys; none of float64, where it would be too wide."""
    if keys.dtype == torch.int64:
        return []
    count = len(keys)
    share = min(max(share, 0.0), 1.0)
    spread = 1 + DEVIATIONS * math.sqrt(count * share * (1 - share))
    place = share * count

    def key(at: float) -> int:
        inside = min(max(int(at), 0), count - 1)
        return int(keys[inside])

    limits = torch.iinfo(keys.dtype)
    low = max(key(place - spread) - MARGIN, limits.min)
    high = min(key(place + spread) + MARGIN, limits.max)
    if high - low >= WIDEST:
        middle = key(place)
        low = max(middle - WIDEST // 2, limits.min)
        high = min(low + WIDEST - 1, limits.max)
    return [Window(array, low, high - low + 1)]
