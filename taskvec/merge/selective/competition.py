"""PCB's competition of entries, within their vector and between vectors, on runs of entries [n] of all vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskvec.merge.piece import Deltas, Piece
from taskvec.merge.pieces import are_read, read_together, sample_share
from taskvec.merge.scheme.consensus import summed
from taskvec.merge.scheme.order import Sample, Wanted
from taskvec.merge.scheme.select import select_together
from taskvec.vectors import Tensors

Ranks = tuple[int, int]  # the lower one, the upper one


class Range(NamedTuple):
    """The smallest and the largest number of interest."""

    low: float
    high: float

    def clamped(self, numbers: Tensor) -> Tensor:
        """Return numbers clamped to the range."""
        return numbers.clamp(self.low, self.high)

    def mapped(self, numbers: Tensor) -> Tensor:
        """Return numbers clamped and mapped to [0, 1]; of a range without width, 1 for positive ones from it on."""
        if self.high == self.low:
            top = (numbers >= self.high) & (numbers > 0)
            return top.to(numbers.dtype)
        height = self.clamped(numbers) - self.low
        return height / (self.high - self.low)


class Ranges(NamedTuple):
    """Of each vector: the range that its magnitudes are clamped to, and the range of its balances."""

    magnitudes: list[Range]
    balances: list[Range]


def balances(
    deltas: Sequence[Tensor], magnitudes: Sequence[Range], *, normalised: bool
) -> list[Tensor]:
    """Return b_t = exp(T N_t^2) tanh(tau_t * o), N_t the mapped magnitudes and o = sum_t tau_t.

    ``normalised``: o = sum_t sign(tau_t) N_t.
    """
    sizes, sides = [], []
    for delta, own in zip(deltas, magnitudes, strict=True):
        size = own.mapped(delta.abs())
        sizes.append(size)
        sides.append(delta.sign() * size)
    compared = sides if normalised else deltas
    opponents = summed(compared)
    found = []
    for delta, size in zip(deltas, sizes, strict=True):
        within = torch.exp(len(deltas) * size.square())
        between = torch.tanh(delta * opponents)
        found.append(within * between)
    return found


def winners(deltas: Sequence[Tensor], contested: Sequence[Tensor], ranges: Ranges) -> Tensor:
    """Return sum_t s_t sign(tau_t) A_t / sum_t s_t, A the clamped magnitudes, s the mapped balances."""
    total = torch.zeros_like(deltas[0])
    scores = torch.zeros_like(deltas[0])
    for place, delta in enumerate(deltas):
        score = ranges.balances[place].mapped(contested[place])
        size = ranges.magnitudes[place].clamped(delta.abs())
        total += delta.sign() * size * score
        scores += score
    return total / scores.clamp(min=1e-12)


def every(piece: Piece) -> list[Tensor]:
    """Return the deltas of all vectors, zeros in place of None: a zero competes, too."""
    present = piece.parts
    nothing = torch.zeros(piece.base.shape, device=piece.base.device)
    zero = torch.zeros_like(present[0]) if present else nothing
    return [zero if delta is None else delta for delta in piece.deltas]


def all_entries(base: Tensors, deltas: Deltas, share: int = 1) -> Iterator[list[Tensor]]:
    """Yield runs of all parameters over all vectors, those that no vector changes included; or one entry in so many."""
    for name in base:
        for piece in read_together(base, deltas, name, "entry", share):
            yield every(piece)


def quantiles(
    runs: Callable[[int], Iterable[Sequence[Tensor]]], deltas: Deltas, entries: int, ranks: Ranks
) -> list[Range]:
    """Return the numbers of two ranks of each of as many arrays of so many entries as there are deltas.

    ``runs(share)`` starts a pass over one entry in so many, all at 1.
    """
    wanted = []
    for array in range(len(deltas)):
        wanted += [Wanted(array, rank) for rank in ranks]
    share = sample_share(entries)
    few = (lambda: runs(share)) if are_read(deltas) else None
    sample = Sample(few, [entries] * len(deltas))
    found = select_together(lambda: runs(1), wanted, sample)
    pairs = zip(found[::2], found[1::2], strict=True)
    return [Range(lower.value, upper.value) for lower, upper in pairs]
