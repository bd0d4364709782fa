"""The validation split that a data set without one is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VAL_FRACTION, VAL_MAX, VAL_SEED = 0.1, 5000, 0


def held_out(count: int) -> int:
    """Return how many of ``count`` training examples are held out: min(floor(0.1 N), 5000)."""
    return min(int(VAL_FRACTION * count), VAL_MAX)


def hold_out(count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of (train, val), int64: min(floor(0.1 N), 5000) random training examples, seed 0, are val.

    The rule and the indices are those of the task-arithmetic line of papers (spec 1.3), whose code calls
    ``torch.utils.data.random_split``.
    """
    import torch

    val = held_out(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(VAL_SEED))
    return order[: count - val], order[count - val :]
