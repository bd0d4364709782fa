"""Means with their 95 % intervals: over seeds, or over the test items of a single run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from taskvec.errors import UserError
from taskvec.protocols.rows import Row
from taskvec.report.outcomes import Means, outcomes
from taskvec.report.runs import Run
from taskvec.report.units import scaled, shown, summed_up

CONFIDENCE = 0.95
Over = Literal["seeds", "items", "nothing"]


@dataclass(frozen=True)
class Spread:
    """The mean of ``count`` runs in its unit and the ends of its interval, which are the mean where there is none."""

    mean: float
    low: float
    high: float
    count: int
    unit: str
    over: Over

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return self.over != "nothing"

    @property
    def text(self) -> str:
        """The mean and its interval as they are shown."""
        centre = shown(self.mean, self.unit)
        if not self.known:
            return centre
        return f"{centre} [{shown(self.low, self.unit)}, {shown(self.high, self.unit)}]"

    def drawn(self) -> list[float | None]:
        """Return mean and ends in the shown unit, None for what is infinite and cannot be drawn."""
        numbers = [scaled(value, self.unit) for value in (self.mean, self.low, self.high)]
        return [number if math.isfinite(number) else None for number in numbers]


def over_seeds(values: Sequence[float], unit: str) -> Spread:
    """Return the mean of n runs and its interval, mean ± t(n - 1) s / sqrt(n) with Student's t.

    One run has none; nor have infinite values.
    """
    count = len(values)
    centre = statistics.fmean(values)
    if count < 2 or not math.isfinite(centre):
        return Spread(centre, centre, centre, count, unit, "nothing")
    # statistics.stdev is exact and fifty times as slow
    squares = sum((value - centre) ** 2 for value in values)
    deviation = math.sqrt(squares / (count - 1))
    half = quantile(count - 1) * deviation / math.sqrt(count)
    return Spread(centre, centre - half, centre + half, count, unit, "seeds")


def half_interval(values: Sequence[float], unit: str) -> str:
    """Return "mean ± half of its interval" over runs (n > 1), the value alone, or nothing."""
    if not values:
        return ""
    found = over_seeds(values, unit)
    if not found.known:
        return shown(found.mean, unit)
    # Both in the digits of the mean
    return summed_up(scaled(found.mean, unit), scaled(found.high - found.mean, unit), unit)


@cache
def quantile(degrees: int) -> float:
    """Return the quantile of Student's t of which 95 % of the mass lies within plus and minus."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, degrees))


def over_items(run: Run, row: Row, name: str) -> Spread | None:
    """Return a row's mean over tasks with the interval over their test items, None where answers are not at hand.

    The variance is the sum over T tasks of p (1 - p) / n, divided by T squared; 1.96 deviations to each side. There is
    none where a task is judged otherwise than item by item.
    """
    metric = row.metrics[name]
    if metric.mean is None:
        return None
    try:
        found = list(outcomes(run, row, name).values())
    except UserError:
        return None
    if not found or not all(isinstance(outcome, Means) for outcome in found):
        return None
    variance = sum(outcome.values.var() / outcome.count for outcome in found)
    half = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(variance) / len(found)
    return Spread(metric.mean, metric.mean - half, metric.mean + half, 1, metric.unit, "items")
