"""Paired differences between rows of runs, seed by seed, with intervals over test items and seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from taskvec.errors import UserError
from taskvec.protocols.rows import Metric, Row, mean
from taskvec.registry import did_you_mean
from taskvec.report.intervals import Interval, Outcomes, paired_difference
from taskvec.report.keys import is_seed
from taskvec.report.outcomes import outcomes
from taskvec.report.records import (
    CHOSEN_BY,
    Names,
    Record,
    Where,
    check_keys,
    check_metrics,
    records_of,
)
from taskvec.report.render import Grid, render
from taskvec.report.runs import Run
from taskvec.report.units import shown, unit_of

# Unless asked for: a ratio of what is shown, and another split
LEFT_OUT = ("normalised", CHOSEN_BY)


@dataclass(frozen=True)
class Line:
    """A row of a run, with its record."""

    run: Run
    row: Row
    record: Record

    def says(self, where: Where) -> bool:
        """Return whether every condition holds."""
        return self.record.says(where)

    def outcomes(self, name: str) -> Outcomes:
        """Return the outcomes of a metric by task; see :func:`taskvec.report.outcomes.outcomes`."""
        return outcomes(self.run, self.row, name)


Lines: TypeAlias = Sequence[Line]
Values: TypeAlias = tuple[str, ...]
Pairs: TypeAlias = list[tuple[Line, Line]]
BySeed: TypeAlias = dict[Values, Line]


@dataclass(frozen=True)
class Side:
    """A row of those runs that fulfil ``where``: ``row`` or ``row@key=value@key=value``."""

    row: str
    where: Where

    @classmethod
    def parse(cls, text: str) -> Side:
        """Return the side that a word of the command line names.

        Raises:
            UserError: if a condition is not of the form key=value.
        """
        row, *conditions = text.split("@")
        where = {}
        for condition in conditions:
            key, equals, value = condition.partition("=")
            if not equals:
                raise UserError(f"compare: {condition!r} in {text!r} is not of the form key=value")
            where[key] = value
        return cls(row, where)

    def of(self, lines: Lines, where: Where) -> list[Line]:
        """Return the lines of this side that fulfil further conditions.

        Raises:
            UserError: for an unknown key, or if no run has a row of the name.
        """
        rows = sorted({line.row.row for line in lines})
        if self.row not in rows:
            hint = did_you_mean(self.row, rows)
            raise UserError(f"compare: no run has a row {self.row!r}{hint}")
        check_keys([line.record for line in lines], self.where, "compare")
        own = [line for line in lines if line.row.row == self.row and line.says(where)]
        for key, text in self.where.items():
            own = _only(own, key, text)
        return own


def _only(lines: Lines, key: str, text: str) -> list[Line]:
    """Return the lines that fulfil a condition.

    Raises:
        UserError: if none does, though there are some with other values.
    """
    found = [line for line in lines if line.says({key: text})]
    if lines and not found:
        hint = did_you_mean(text, sorted({line.record.text(key) for line in lines}))
        raise UserError(f"compare: no run has {key}={text}{hint}")
    return found


@dataclass(frozen=True)
class Difference:
    """A metric's mean difference between two sides over some seeds; no interval where it is not kept per test item."""

    group: Values
    name: str
    metric: Metric
    seeds: int
    mean: float
    interval: Interval | None

    def cells(self, name: str) -> list[str]:
        """Return the line of a table, in which the two sides are called ``name``."""
        unit = self.metric.unit
        metric = self.name
        if self.metric.better == "lower":
            metric += " (lower is better)"
        interval = ""
        if self.interval is not None:
            low = change(self.interval.low, unit)
            high = change(self.interval.high, unit)
            interval = f"[{low}, {high}]"
        mean = change(self.mean, unit)
        return [*self.group, name, metric, str(self.seeds), mean, interval, unit_of(unit).gap]


def compare(
    runs: Sequence[Run],
    first: str,
    second: str,
    by: Names = (),
    where: Where | None = None,
    metrics: Names | None = None,
    style: str = "md",
) -> str:
    """Return each metric of ``first`` minus that of ``second`` with its 95 % interval, a line per group and metric.

    Fractions differ in points, other metrics in their unit. Runs are paired by seed within a group of equal ``by``
    keys; only seeds that both sides have count. ``metrics`` None means those that are measured on the test split.

    Raises:
        UserError: for unknown keys, rows or metrics, several runs of one side with the same seed in a group, or answers
            that the store no longer holds.
    """
    where = where or {}
    lines = lines_of(runs)
    records = [line.record for line in lines]
    check_keys(records, (*by, *where), "compare")
    check_metrics(records, metrics or (), "compare")
    one = Side.parse(first).of(lines, where)
    other = Side.parse(second).of(lines, where)
    found = []
    for group, pairs in paired(one, other, by).items():
        found += differences(group, pairs, metrics)
    if not found:
        raise UserError(
            f"compare: no seed has both {first} and {second}; `taskvec table --rows row seed` lists them"
        )
    grid = Grid([*by, "difference", "metric", "seeds", "mean", "95 % interval", "unit"])
    for one_metric in found:
        grid.lines.append(one_metric.cells(f"{first} - {second}"))
    return render(grid, style)


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Return the rows of some runs with their records."""
    found = []
    for run in runs:
        rows = run.result.rows
        for row, record in zip(rows, records_of(run), strict=True):
            found.append(Line(run, row, record))
    return found


def paired(first: Lines, second: Lines, by: Names) -> dict[Values, Pairs]:
    """Return the lines of two sides that have group and seed in common, in the order of their seeds.

    Where the runs of a side share a seed, those of the components tell them apart.

    Raises:
        UserError: if they do not.
    """
    try:
        groups = grouped(first, by, ["seed"])
        others = grouped(second, by, ["seed"])
    except UserError:
        seeds = seed_keys(first) | seed_keys(second)
        groups = grouped(first, by, sorted(seeds))
        others = grouped(second, by, sorted(seeds))
    found = {}
    for group, lines in groups.items():
        peers = others.get(group, {})
        shared = sorted(lines.keys() & peers.keys(), key=in_order)
        if shared:
            found[group] = [(lines[seed], peers[seed]) for seed in shared]
    return found


def seed_keys(lines: Lines) -> set[str]:
    """Return the keys of all seeds, the run's and its components'."""
    found: set[str] = set()
    for line in lines:
        found |= {key for key in line.record.keys if is_seed(key)}
    return found


def in_order(seeds: Values) -> list[tuple[int, str]]:
    """Return a key by which numbers come in their order."""
    return [(len(seed), seed) for seed in seeds]


def grouped(lines: Lines, by: Names, seeds: Names) -> dict[Values, BySeed]:
    """Return lines by group and seeds.

    Raises:
        UserError: if two lines of a group have the same seeds.
    """
    found: dict[Values, BySeed] = {}
    for line in lines:
        group = found.setdefault(line.record.texts(by), {})
        other = group.setdefault(line.record.texts(seeds), line)
        if other is not line:
            names = f"{other.record.text('run')} and {line.record.text('run')}"
            raise UserError(
                f"compare: {names} are the same but for other keys; add --where or --by"
            )
    return found


def differences(group: Values, pairs: Pairs, names: Names | None) -> list[Difference]:
    """Return the differences of one group, one per metric.

    Raises:
        UserError: for a metric that is not in both rows, or if they share none.
    """
    rows = [line.row for pair in pairs for line in pair]
    shared = [name for name in rows[0].metrics if in_all(rows, name)]
    for name in names or ():
        if name not in shared:
            hint = did_you_mean(name, shared)
            raise UserError(f"compare: {name} is not in both rows{hint}")
    chosen = names or [name for name in shared if name not in LEFT_OUT]
    if not chosen:
        raise UserError("compare: the rows have no metric in common")
    return [difference(group, pairs, name) for name in chosen]


def in_all(rows: Sequence[Row], name: str) -> bool:
    """Return whether all rows have a metric's mean."""
    return all(row.mean(name) is not None for row in rows)


def difference(group: Values, pairs: Pairs, name: str) -> Difference:
    """Return the difference of one metric, with its interval where all answers keep it per test item.

    Raises:
        UserError: if the rows were measured on different test items, or the store does not hold their answers.
    """
    firsts, seconds = zip(*pairs, strict=True)
    metric = firsts[0].row.metrics[name]
    one = [line.outcomes(name) for line in firsts]
    other = [line.outcomes(name) for line in seconds]
    interval = None
    if all(one) and all(other):
        check_same_items(name, [*one, *other])
        interval = paired_difference(one, other)
        gap = interval.mean
    else:
        gap = mean_of(firsts, name) - mean_of(seconds, name)
    return Difference(group, name, metric, len(pairs), gap, interval)


def mean_of(lines: Lines, name: str) -> float:
    """Return the mean of a metric over some runs."""
    return mean(line.row.mean(name) for line in lines)


def check_same_items(name: str, found: Sequence[Outcomes]) -> None:
    """Check that all runs were measured on the same test items.

    Raises:
        UserError: naming the first task of which that is not so.
    """
    expected = measured_on(found[0])
    for outcome in found:
        for task, items in measured_on(outcome) ^ expected:
            raise UserError(
                f"compare: not all rows' {name} of {task} is measured on the same test items ({items})"
            )


def measured_on(found: Outcomes) -> set[tuple[str, str]]:
    """Return each task with the name and number of the test items that it was measured on."""
    return {(task, f"{outcome.count} of {outcome.data}") for task, outcome in found.items()}


def change(value: float, unit: str) -> str:
    """Return a difference as text; that of two infinities is undefined."""
    return "undefined" if math.isnan(value) else shown(value, unit, sign=True)
