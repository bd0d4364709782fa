"""How sparsified task vectors become one: their sum, or what agrees with an elected sign."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Combine = Literal["sum", "mean", "max"]
Undecided = Literal["majority_or_minus", "majority", "plus"]


class Election(NamedTuple):
    """The rules of an election of signs; see :class:`taskvec.merge.sparse.sparsified.Sparsified`."""

    combine: Combine = "mean"
    undecided: Undecided = "majority_or_minus"
    weigh: Literal["before", "after"] = "before"
    divide: Literal["count", "weights"] = "count"


def weighted_sum(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_t w_t x_t in the order of the parts, so that every way of cutting arrays gives the same bits."""
    total = parts[0] * weights[0]
    # One product at a time, so that it is still in the cache when it is added
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        total += _scaled(part, weight)
    return total


def summed(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the parts, in their order."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def signs(total: Tensor, *, zero: float) -> Tensor:
    """Return +1 where a sum is positive, -1 where it is negative, and ``zero``, one of the two, where it is zero."""
    positive = total > 0 if zero < 0 else total >= 0
    return positive.to(total.dtype).mul_(2).sub_(1)


def _scaled(part: Tensor, weight: float) -> Tensor:
    return part if weight == 1 else part * weight


def elected(
    parts: Sequence[Tensor],
    weights: Sequence[float],
    rules: Election,
    majority: Callable[[], float] | None,
) -> Tensor:
    """Return the entries that agree with the sign of their sum, combined (TIES steps 2 and 3).

        s = sign(sum_t x_t),  A = {t: x_t s > 0},  sum_A x_t  or  sum_A x_t / |A|  or  s max_A |x_t|

    ``majority`` gives the sign over all parameters, which stands in where the sum is zero; it is asked only when such
    an entry has parts that are not zero.
    """
    weighted = [_scaled(part, weight) for part, weight in zip(parts, weights, strict=True)]
    voters = weighted if rules.weigh == "before" else parts
    total = summed(voters)
    sign = signs(total, zero=1)
    merged = _agreeing(voters, sign, weights, rules)
    if rules.undecided == "plus":
        return merged
    ties = total == 0
    # A zero sum of parts that are not zero has positive ones, so it shows in what was merged under the sign +1.
    disputed = ties & (merged != 0)
    if not disputed.any():
        return merged
    stand_in = majority()
    if stand_in == 0 and rules.undecided == "majority_or_minus":
        stand_in = -1.0
    sign[ties] = stand_in
    return _agreeing(voters, sign, weights, rules)


def _agreeing(
    voters: Sequence[Tensor], sign: Tensor, weights: Sequence[float], rules: Election
) -> Tensor:
    chosen = torch.zeros_like(sign)
    shares = torch.zeros_like(sign)
    for part, weight in zip(voters, weights, strict=True):
        agreeing = (part * sign).clamp_(min=0)
        if rules.combine == "mean":
            share = weight if rules.divide == "weights" else 1.0
            shares += _scaled(agreeing.sign(), share)
        if rules.weigh == "after":
            agreeing = _scaled(agreeing, weight)
        if rules.combine == "max":
            torch.maximum(chosen, agreeing, out=chosen)
        else:
            chosen += agreeing
    if rules.combine == "mean":
        shares[shares == 0] = 1
        chosen /= shares
    return chosen.mul_(sign)
