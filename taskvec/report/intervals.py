"""Paired differences between two models with a bootstrap interval over test items and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from taskvec.report.outcomes import Outcome

RESAMPLES = 10_000
SLOW_RESAMPLES = 1_000  # where a resample costs an evaluation of the metric
AT_ONCE = 4_000_000  # counts that are held in memory

Outcomes = Mapping[str, Outcome]


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Sequence[Outcomes], second: Sequence[Outcomes], *, resamples: int | None = None, seed: int = 0
) -> Interval:
    """Return mean score of ``first`` minus ``second`` with its 95 % percentile bootstrap interval.

    Each sequence holds, per seed, the outcomes of the same tasks on the same test items; the mean is over tasks. A
    resample draws seeds, and within all tasks that are measured on the same data the same items for all seeds.
    ``resamples`` None means 10,000, or 1,000 where a task's metric is not a mean over items.
    """
    rng = np.random.default_rng(seed)
    if resamples is None:
        slow = any(outcome.slow for outcome in first[0].values())
        resamples = SLOW_RESAMPLES if slow else RESAMPLES
    with np.errstate(invalid="ignore"):  # the difference of two infinities is undefined, and so is its interval
        centre = np.mean([_gap(*pair) for pair in zip(first, second, strict=True)])
        drawn = _resampled(first, second, resamples, rng)
        seeds = rng.integers(0, len(first), size=drawn.shape)
        means = np.take_along_axis(drawn, seeds, axis=1).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(centre), float(low), float(high))


def _gap(one: Outcomes, other: Outcomes) -> float:
    """Return the difference of two models' mean scores."""
    return float(np.mean([one[task].score() - other[task].score() for task in one]))


def _resampled(
    first: Sequence[Outcomes], second: Sequence[Outcomes], resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the difference of mean scores on drawn test items, [resamples, seeds]."""
    total = np.zeros((resamples, len(first)))
    for tasks in _by_data(first[0]):
        count = first[0][tasks[0]].count
        for rows, counts in _draws(rng, count, resamples):
            for seed, (one, other) in enumerate(zip(first, second, strict=True)):
                for task in tasks:
                    total[rows, seed] += one[task].scores(counts) - other[task].scores(counts)
    return total / len(first[0])


def _by_data(outcomes: Outcomes) -> list[list[str]]:
    """Return the tasks in groups that are measured on the same test items."""
    groups: dict[str, list[str]] = {}
    for task, outcome in outcomes.items():
        groups.setdefault(outcome.data, []).append(task)
    return list(groups.values())


def _draws(rng: np.random.Generator, count: int, resamples: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the resamples in blocks: which they are, and how often each holds each of ``count`` items [R, N]."""
    block = max(1, AT_ONCE // count)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        yield slice(start, stop), rng.multinomial(count, np.full(count, 1 / count), size=stop - start)
