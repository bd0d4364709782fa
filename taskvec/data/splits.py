"""The validation part that a data set without one is given, by the three rules in published use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

SplitRule = Literal["authors", "fusionbench", "merge_and_rebase"]
VAL_FRACTION, VAL_MAX, VAL_SEED = 0.1, 5000, 0
TEST_FRACTION, TEST_SEED = 0.9, 42
OF_TEST = ("merge_and_rebase",)  # rules that take validation out of the test split


def held_out(count: int, rule: SplitRule = "authors") -> int:
    """Return how many of ``count`` examples are held out.

    min(floor(0.1 N), 5000) of train by ``authors``, floor(0.1 N) of train by ``fusionbench``, N - ceil(0.9 N) of test
    by ``merge_and_rebase``.
    """
    if rule in OF_TEST:
        return count - math.ceil(TEST_FRACTION * count)
    part = int(VAL_FRACTION * count)
    return min(part, VAL_MAX) if rule == "authors" else part


def hold_out(count: int, rule: SplitRule = "authors") -> tuple[Tensor, Tensor]:
    """Return the indices, int64, of what stays in the split and of validation, :func:`held_out` of them.

    The indices are those of the published code (specs/suites.md 2): ``torch.utils.data.random_split`` with seed 0 for
    ``authors`` (the line of task-arithmetic papers) and ``fusionbench``, ``train_test_split`` of `datasets` with seed
    42 for ``merge_and_rebase``.
    """
    import torch

    val = held_out(count, rule)
    if rule not in OF_TEST:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(VAL_SEED))
        return order[: count - val], order[count - val :]
    import numpy as np

    shuffled = torch.from_numpy(np.random.default_rng(TEST_SEED).permutation(count))
    return shuffled[: count - val], shuffled[count - val :]
