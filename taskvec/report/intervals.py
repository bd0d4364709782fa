"""Paired differences between two models with a bootstrap interval over test items and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from taskvec.report.outcomes import Outcome

RESAMPLES = 10_000
SLOW_RESAMPLES = 1_000  # where a resample costs an evaluation of the metric
AT_ONCE = 4_000_000  # counts that are held in memory
ENDS = (0.025, 0.975)

Outcomes: TypeAlias = Mapping[str, Outcome]  # by task
Side: TypeAlias = Sequence[Outcomes]  # by seed
Pair: TypeAlias = tuple[Outcomes, Outcomes]  # of one seed
Array: TypeAlias = np.ndarray
Random: TypeAlias = np.random.Generator


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval, in the unit of the scores."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Side, second: Side, *, resamples: int | None = None, seed: int = 0
) -> Interval:
    """Return mean score of ``first`` minus ``second`` with its 95 % percentile bootstrap interval.

    Each side holds, per seed, the outcomes of the same tasks on the same test items; the mean is over tasks. A resample
    draws seeds, and within all tasks that are measured on the same data the same items for all seeds. ``resamples``
    None means 10,000, or 1,000 where a task's metric is not a mean over items.
    """
    rng = np.random.default_rng(seed)
    pairs = list(zip(first, second, strict=True))
    if resamples is None:
        resamples = SLOW_RESAMPLES if is_slow(first[0]) else RESAMPLES
    # The difference of two infinities is undefined, and so is its interval
    with np.errstate(invalid="ignore"):
        gaps = [gap(pair) for pair in pairs]
        drawn = resampled(pairs, resamples, rng)
        seeds = rng.integers(0, len(pairs), size=drawn.shape)
        means = np.take_along_axis(drawn, seeds, axis=1).mean(1)
        low, high = np.quantile(means, ENDS)
    return Interval(float(np.mean(gaps)), float(low), float(high))


def is_slow(outcomes: Outcomes) -> bool:
    """Return whether a score takes an evaluation of a metric."""
    return any(outcome.slow for outcome in outcomes.values())


def gap(pair: Pair) -> float:
    """Return the difference of two models' mean scores on the test items as they are."""
    one, other = pair
    total = 0.0
    for task in one:
        total += one[task].score()
        total -= other[task].score()
    return total / len(one)


def resampled(pairs: Sequence[Pair], resamples: int, rng: Random) -> Array:
    """Return the difference of mean scores on drawn test items, [resamples, seeds]."""
    total = np.zeros((resamples, len(pairs)))
    first, _ = pairs[0]
    for tasks in by_data(first):
        items = first[tasks[0]].count
        for rows in blocks(resamples, items):
            counts = drawn_counts(items, rows, rng)
            for seed, pair in enumerate(pairs):
                total[rows, seed] += summed_gaps(pair, tasks, counts)
    return total / len(first)


def summed_gaps(pair: Pair, tasks: Sequence[str], counts: Array) -> Array:
    """Return the difference of two models' scores, summed over tasks, on each resample [R]."""
    one, other = pair
    total = np.zeros(len(counts))
    for task in tasks:
        total += one[task].scores(counts)
        total -= other[task].scores(counts)
    return total


def by_data(outcomes: Outcomes) -> list[list[str]]:
    """Return the tasks in groups that are measured on the same test items."""
    groups: dict[str, list[str]] = {}
    for task, outcome in outcomes.items():
        group = groups.setdefault(outcome.data, [])
        group.append(task)
    return list(groups.values())


def blocks(resamples: int, items: int) -> Iterator[slice]:
    """Yield the resamples in blocks whose counts fit into memory together."""
    size = max(1, AT_ONCE // items)
    for start in range(0, resamples, size):
        yield slice(start, min(start + size, resamples))


def drawn_counts(items: int, rows: slice, rng: Random) -> Array:
    """Return how often each resample of a block holds each of N items, [R, N]."""
    even = np.full(items, 1 / items)
    return rng.multinomial(items, even, size=rows.stop - rows.start)
