"""What can be kept of a task vector: entries above a cut of the magnitudes, or entries chosen at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from taskvec.merge.scheme.order import Sample, Together, Wanted
from taskvec.merge.scheme.select import select_together
from taskvec.vectors.noise import Stream, chosen, uniform


class Cut(NamedTuple):
    """A place in the order of an array by magnitude, equal magnitudes by place.

    Above it are the entries larger than ``magnitude``, and those as large from the place ``first`` on.
    """

    magnitude: float
    first: int = 0


EVERYTHING = Cut(0.0, 0)
NOTHING = Cut(math.inf, 0)


def above(delta: Tensor, cut: Cut, start: int) -> Tensor:
    """Return a run of entries [n], from the place ``start``, with those below the cut set to zero."""
    magnitude, first = cut
    ties = _within(first - start, len(delta))  # the first so many entries need a larger magnitude
    if ties == 0:
        return _at_least(delta, magnitude)
    larger = hardshrink(delta[:ties], magnitude)
    if ties == len(delta):
        return larger
    rest = _at_least(delta[ties:], magnitude)
    return torch.cat([larger, rest])


def _within(place: int, length: int) -> int:
    return min(max(place, 0), length)


def _at_least(delta: Tensor, magnitude: float) -> Tensor:
    if magnitude == 0:
        return delta
    # hardshrink keeps what is strictly larger than its bound and is one pass; so the bound is the next smaller number
    smallest = torch.tensor(magnitude, dtype=delta.dtype)
    bound = torch.nextafter(smallest, torch.zeros_like(smallest))
    return hardshrink(delta, bound.item())


class Asked(NamedTuple):
    """A cut with ``rank`` of the ``entries`` of an array below it, by its number.

    ``zeros`` of the entries are zero by declaration, are not in the pieces, and come before the others. ``exact``:
    equal magnitudes are told apart by their place; else all that equal the entry of the rank are above the cut.
    """

    array: int
    rank: int
    entries: int
    zeros: int = 0
    exact: bool = True


@dataclass
class Open:
    """A cut through entries of one magnitude, ``left`` of which are below it: the first ones in the order of places."""

    magnitude: float
    left: int = 0

    @property
    def settled(self) -> Cut:
        """The cut where no equal ones are below it."""
        return Cut(self.magnitude)

    def within(self, delta: Tensor, start: int) -> Cut:
        """Return the cut as far as a run [n] from the place ``start`` tells, after those that were read before."""
        if self.left == 0:
            return self.settled
        places = (delta.abs() == self.magnitude).nonzero()
        if self.left < len(places):
            first = start + int(places[self.left])
            self.left = 0
            return Cut(self.magnitude, first)
        self.left -= len(places)
        return Cut(self.magnitude, start + len(delta))


def opened(pieces: Together, asked: Sequence[Asked], sample: Sample | None) -> list[Open]:
    """Return the cuts through magnitudes; one pass, and more where the sample misled."""
    inner = [item for item in asked if _trivial(item) is None]
    wanted = [Wanted(item.array, item.rank - item.zeros) for item in inner]
    selected = (
        dict(zip(inner, select_together(pieces, wanted, sample), strict=True)) if inner else {}
    )
    found = []
    for item in asked:
        trivial = _trivial(item)
        if trivial is not None:
            found.append(trivial)
            continue
        value, below = selected[item]
        left = item.rank - item.zeros - below if item.exact else 0
        found.append(Open(value, left))
    return found


def _trivial(asked: Asked) -> Open | None:
    """Return the cut below or above everything, where nothing has to be looked at."""
    above_zeros = asked.rank - asked.zeros
    if above_zeros < 0 or (asked.exact and above_zeros == 0):
        return Open(EVERYTHING.magnitude)
    return Open(NOTHING.magnitude) if asked.rank >= asked.entries else None


def dropped(delta: Tensor, density: float, stream: Stream, start: int) -> Tensor:
    """Return a run of entries, each kept with probability ``density`` and else zero (DARE's mask)."""
    mask = chosen(stream, density, start, len(delta), delta.device)
    return delta * mask


def keep_probabilities(rows: Tensor, density: float, spread: float) -> Tensor:
    """Return p = density - spread + 2 spread (rank - 1) / (n - 1), the rank by magnitude within rows [rows, n] (DELLA).

    The smallest magnitude has rank 1. Equal ones rank by place; a row of one entry has p = density.
    """
    count = rows.shape[1]
    order = rows.abs().argsort(dim=1, stable=True)
    places = torch.arange(count, dtype=rows.dtype, device=rows.device)
    ranks = torch.empty_like(rows)
    ranks.scatter_(1, order, places.expand_as(rows))
    if count == 1:
        return ranks + density
    step = 2 * spread / (count - 1)
    return density - spread + step * ranks


def drawn(rows: Tensor, probabilities: Tensor, stream: Stream, start: int) -> Tensor:
    """Return rows of entries, each kept with its own probability and else zero."""
    numbers = uniform(stream, start, rows.numel(), rows.device)
    mask = numbers.view_as(rows) < probabilities
    return rows * mask
