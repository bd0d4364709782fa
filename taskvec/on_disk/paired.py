"""Tensors with a row for each token, over models that number their tokens differently."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

ROWS = 4096  # at a time, where all are looked at


class Paired:
    """One tensor over the base and all models, by the rows of the written one; all blocks are [rows, width].

    ``of`` holds, first for the base and then for each model, its own row for each written one (-1: none). ``base`` is
    None where theta_0 is zero. A model's table is its weights, or its deltas (``are_deltas``, which has the base's
    rows), or None if it does not have the tensor.

    A written row that the base lacks is the mean over the models that have it, from which no model deviates. A row
    that nobody has is the mean of all rows of the first that has any.
    """

    def __init__(
        self,
        of: Sequence[Tensor],
        base: Tensor | None,
        models: Sequence[Tensor | None],
        are_deltas: Sequence[bool],
        dtype: torch.dtype,
    ):
        self.of, self.are_deltas, self.dtype = of, are_deltas, dtype
        self.base = None if base is None else _table(base)
        self.models = [None if model is None else _table(model) for model in models]

    def base_rows(self, first: int, last: int) -> Tensor:
        """Return rows of theta_0."""
        if self.base is None:
            return torch.zeros(last - first, self._width, dtype=self.dtype)
        return self._filled(self.base, self.of[0], first, last)

    def model_rows(self, position: int, first: int, last: int) -> Tensor:
        """Return rows of theta_t; those that the model or the base lacks are theta_0's."""
        table, rows = self.models[position], self.of[position + 1]
        if self.base is None:
            return self._filled(table, rows, first, last)
        wanted = rows[first:last]
        in_base = self.of[0][first:last]
        known = (wanted >= 0) & (in_base >= 0)
        own = self._taken(table, wanted)
        theta_0 = self.base_rows(first, last)
        return torch.where(known.unsqueeze(1), own, theta_0)

    def delta_rows(self, position: int, first: int, last: int) -> Tensor:
        """Return rows of theta_t - theta_0, zero where the model or the base lacks them."""
        table = self.models[position]
        if self.are_deltas[position]:
            wanted = self.of[0][first:last]
            return self._taken(table, wanted) * (wanted >= 0).unsqueeze(1)
        rows = self.model_rows(position, first, last)
        return rows if self.base is None else rows - self.base_rows(first, last)

    def _filled(self, table: Tensor, rows: Tensor, first: int, last: int) -> Tensor:
        wanted = rows[first:last]
        found = self._taken(table, wanted)
        lacking = wanted < 0
        if lacking.any():
            found[lacking] = self._mean_of_holders(first, last)[lacking]
        return found

    def _mean_of_holders(self, first: int, last: int) -> Tensor:
        """Return the mean of rows over the models that have them."""
        total = torch.zeros(last - first, self._width, dtype=torch.float64)
        count = torch.zeros(last - first, 1, dtype=torch.float64)
        for table, rows, deltas in zip(self.models, self.of[1:], self.are_deltas, strict=True):
            if table is None or deltas:
                continue
            has = (rows[first:last] >= 0).unsqueeze(1)
            total += self._taken(table, rows[first:last]) * has
            count += has
        mean = total / count.clamp(min=1)
        return torch.where(count > 0, mean, self._mean_row).to(self.dtype)

    def _taken(self, table: Tensor, wanted: Tensor) -> Tensor:
        """Return rows by number, that of -1 being anything."""
        return table[wanted.clamp(min=0)].to(self.dtype)

    @property
    def _tables(self) -> list[Tensor]:
        weights = [
            table
            for table, deltas in zip(self.models, self.are_deltas, strict=True)
            if table is not None and not deltas
        ]
        return weights if self.base is None else [self.base, *weights]

    @property
    def _width(self) -> int:
        return self._tables[0].shape[1]

    @cached_property
    def _mean_row(self) -> Tensor:
        total = torch.zeros(self._width, dtype=torch.float64)
        table = self._tables[0]
        for rows in table.split(ROWS):
            total += rows.double().sum(0)
        return total / len(table)


def _table(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)
