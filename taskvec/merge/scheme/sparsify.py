"""What can be kept of a task vector: entries above a cut of the magnitudes, or entries chosen at random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import hardshrink

from taskvec.merge.scheme.select import Pieces, select
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


def magnitudes(pieces: Pieces) -> Pieces:
    """Return the same passes over absolute values."""

    def absolute() -> Iterator[Tensor]:
        for piece in pieces():
            yield piece.abs()

    return absolute


def cut_of_rank(pieces: Pieces, rank: int, entries: int, zeros: int = 0) -> Cut:
    """Return the cut with ``rank`` of the ``entries`` of an array below it, pieces in the order of its places.

    ``zeros`` of them are zero by declaration, are not in the pieces, and come before the others.
    """
    if rank <= zeros:
        return EVERYTHING
    if rank >= entries:
        return NOTHING
    found = select(magnitudes(pieces), rank - zeros)
    ties_below = rank - zeros - found.below
    return Cut(found.value, _place_of_tie(pieces(), found.value, ties_below))


def inclusive_cut(pieces: Pieces, rank: int, zeros: int = 0) -> Cut:
    """Return the cut above which is the entry of a rank (0: the smallest) with all entries of its magnitude."""
    if rank < zeros:
        return EVERYTHING
    found = select(magnitudes(pieces), rank - zeros)
    return Cut(found.value)


def _place_of_tie(pieces: Iterable[Tensor], magnitude: float, number: int) -> int:
    """Return the place of an entry by its number (from 0) among those of a magnitude."""
    if number == 0:
        return 0
    start = 0
    for piece in pieces:
        equal = piece.abs() == magnitude
        places = equal.nonzero()
        if number < len(places):
            return start + int(places[number])
        number -= len(places)
        start += len(piece)
    return start


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


def flat_cuts(names: Iterable[str], lengths: Iterable[int], cut: Cut) -> Iterator[tuple[str, Cut]]:
    """Yield the cut within each array, of a cut through the arrays one after the other."""
    start = 0
    for name, length in zip(names, lengths, strict=True):
        first = _within(cut.first - start, length)
        yield name, Cut(cut.magnitude, first)
        start += length
