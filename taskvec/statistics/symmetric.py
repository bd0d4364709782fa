"""Symmetric matrices as strips of their lower triangle: half of the memory, and half of the products of a sum of x x^T.

A strip holds the rows of some columns' products with all columns up to them: [stop - start, stop] for each run of
``STRIP`` columns, all in one tensor [about n (n + STRIP) / 2].
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

STRIP = 256


def zeros(width: int, like: Tensor) -> Tensor:
    """Return a folded matrix [width, width] of zeros, float64, where ``like`` is."""
    *_, (_, _, last) = _strips(width)
    return like.new_zeros(last.stop, dtype=torch.float64)


def add_products(folded: Tensor, rows: Tensor) -> None:
    """Add sum x x^T of rows x [m, n] in place; products in the dtype of the rows."""
    for start, stop, place in _strips(rows.shape[1]):
        strip = folded[place].view(-1, stop)
        columns = rows[:, start:stop].T
        if rows.dtype == folded.dtype:
            strip.addmm_(columns, rows[:, :stop])
        else:
            strip += columns @ rows[:, :stop]


def unfolded(folded: Tensor, width: int) -> Tensor:
    """Return the whole matrix [width, width]."""
    whole = folded.new_empty(width, width)
    for start, stop, place in _strips(width):
        strip = folded[place].view(-1, stop)
        whole[start:stop, :stop] = strip
        whole[:start, start:stop] = strip[:, :start].T
    return whole


def _strips(width: int) -> Iterator[tuple[int, int, slice]]:
    """Yield the first column of each strip, the one after its last, and where it lies in the folded tensor."""
    end = 0
    for start in range(0, width, STRIP):
        stop = min(start + STRIP, width)
        begin, end = end, end + (stop - start) * stop
        yield start, stop, slice(begin, end)
