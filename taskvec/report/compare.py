"""Paired differences between rows of runs, seed by seed, with intervals over test items and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskvec.errors import UserError
from taskvec.protocols.rows import Metric, Row
from taskvec.registry import did_you_mean
from taskvec.report.intervals import Interval, Outcomes, paired_difference
from taskvec.report.keys import is_seed, text_of
from taskvec.report.outcomes import outcomes
from taskvec.report.records import CHOSEN_BY, Record, check_keys, metrics_of, records_of
from taskvec.report.render import render
from taskvec.report.runs import Run
from taskvec.report.units import shown, unit_of

LEFT_OUT = ("normalised", CHOSEN_BY)  # unless asked for: a ratio of what is shown, and another split

Group = tuple[str, ...]
Seeds = tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """A row of those runs that fulfil ``where``: ``row`` or ``row@key=value@key=value``."""

    row: str
    where: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Side:
        """Return the side that a word of the command line names.

        Raises:
            UserError: if a condition is not of the form key=value.
        """
        row, *conditions = text.split("@")
        for condition in conditions:
            if "=" not in condition:
                raise UserError(f"compare: {condition!r} in {text!r} is not of the form key=value")
        return cls(row, dict(condition.split("=", 1) for condition in conditions))

    def of(self, lines: Sequence[Line], where: Mapping[str, str]) -> list[Line]:
        """Return the lines of this side.

        Raises:
            UserError: if no run has a row of the name.
        """
        rows = sorted({line.row.row for line in lines})
        if self.row not in rows:
            raise UserError(f"compare: no run has a row {self.row!r}{did_you_mean(self.row, rows)}")
        wanted = {**where, **self.where, "row": self.row}
        return [line for line in lines if line.record.says(wanted)]


@dataclass(frozen=True)
class Line:
    """A row of a run, with its record."""

    run: Run
    row: Row
    record: Record


@dataclass(frozen=True)
class Difference:
    """A metric's mean difference between two sides over some seeds; no interval where it is not kept per test item."""

    group: Group
    name: str
    metric: Metric
    seeds: int
    mean: float
    interval: Interval | None


def compare(
    runs: Sequence[Run],
    first: str,
    second: str,
    by: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    metrics: Sequence[str] | None = None,
    style: str = "md",
) -> str:
    """Return each metric of ``first`` minus that of ``second`` with its 95 % interval, a line per group and metric.

    Fractions differ in points, other metrics in their unit. Runs are paired by seed within a group of equal ``by``
    keys; only seeds that both sides have count. ``metrics`` None means those that are measured on the test split.

    Raises:
        UserError: for unknown keys, rows or metrics, several runs of one side with the same seed in a group, or answers
            that the store no longer holds.
    """
    sides = [Side.parse(text) for text in (first, second)]
    lines = lines_of(runs)
    records = [line.record for line in lines]
    conditions = {**(where or {}), **sides[0].where, **sides[1].where}
    check_keys(records, [*by, *conditions], "compare")
    names = None if metrics is None else metrics_of(records, metrics, "compare")
    chosen = [side.of(lines, where or {}) for side in sides]
    found = []
    for group, pairs in paired(chosen, by).items():
        found += differences(group, pairs, names)
    if not found:
        raise UserError(f"compare: no seed has both {first} and {second}; `taskvec table --rows row seed` lists them")
    return render(*laid_out(found, by, f"{first} - {second}"), style)


def lines_of(runs: Sequence[Run]) -> list[Line]:
    """Return the rows of some runs with their records."""
    found = []
    for run in runs:
        for row, record in zip(run.result.rows, records_of(run), strict=True):
            found.append(Line(run, row, record))
    return found


def paired(sides: Sequence[Sequence[Line]], by: Sequence[str]) -> dict[Group, list[tuple[Line, Line]]]:
    """Return the lines of two sides that have group and seed in common.

    Where the runs of a side share a seed, those of the components tell them apart.

    Raises:
        UserError: if they do not.
    """
    try:
        first, second = (grouped(lines, by, ["seed"]) for lines in sides)
    except UserError:
        every = {key for lines in sides for line in lines for key in line.record.keys}
        seeds = sorted(key for key in every if is_seed(key))
        first, second = (grouped(lines, by, seeds) for lines in sides)
    found = {}
    for group, lines in first.items():
        others = second.get(group, {})
        shared = sorted((seeds for seeds in lines if seeds in others), key=in_order)
        if shared:
            found[group] = [(lines[seeds], others[seeds]) for seeds in shared]
    return found


def grouped(lines: Sequence[Line], by: Sequence[str], seeds: Sequence[str]) -> dict[Group, dict[Seeds, Line]]:
    """Return lines by group and seeds.

    Raises:
        UserError: if two lines of a group have the same seeds.
    """
    found: dict[Group, dict[Seeds, Line]] = {}
    for line in lines:
        group = tuple(text_of(line.record.get(key)) for key in by)
        own = tuple(text_of(line.record.get(key)) for key in seeds)
        other = found.setdefault(group, {}).setdefault(own, line)
        if other is not line:
            names = f"{other.run.result.run_id} and {line.run.result.run_id}"
            raise UserError(f"compare: {names} are the same but for other keys; add --where or --by")
    return found


def differences(group: Group, pairs: Sequence[tuple[Line, Line]], names: Sequence[str] | None) -> list[Difference]:
    """Return the differences of one group, one per metric.

    Raises:
        UserError: for a metric that is not in both rows, or if they share none.
    """
    rows = [line.row for pair in pairs for line in pair]
    shared = [name for name in rows[0].metrics if all(row.mean(name) is not None for row in rows)]
    for name in names or ():
        if name not in shared:
            raise UserError(f"compare: {name} is not in both rows{did_you_mean(name, shared)}")
    chosen = names or [name for name in shared if name not in LEFT_OUT]
    if not chosen:
        raise UserError(f"compare: {rows[0].row} and {rows[1].row} have no metric in common")
    return [difference(group, pairs, name) for name in chosen]


def difference(group: Group, pairs: Sequence[tuple[Line, Line]], name: str) -> Difference:
    """Return the difference of one metric, with its interval where all answers keep it per test item.

    Raises:
        UserError: if the rows were measured on different test items, or the store does not hold their answers.
    """
    metric = pairs[0][0].row.metrics[name]
    sides = [[outcomes(line.run, line.row, name) for line in lines] for lines in zip(*pairs, strict=True)]
    interval = None
    if all(sides[0]) and all(sides[1]):
        check_same_items(name, sides)
        interval = paired_difference(*sides)
        mean = interval.mean
    else:
        mean = sum(first.row.mean(name) - second.row.mean(name) for first, second in pairs) / len(pairs)
    return Difference(group, name, metric, len(pairs), mean, interval)


def check_same_items(name: str, sides: Sequence[Sequence[Outcomes]]) -> None:
    """Check that all runs were measured on the same test items.

    Raises:
        UserError: naming the first task of which that is not so.
    """
    expected = {task: (outcome.data, outcome.count) for task, outcome in sides[0][0].items()}
    for found in (*sides[0], *sides[1]):
        for task in expected.keys() | found.keys():
            outcome = found.get(task)
            if outcome is None or expected.get(task) != (outcome.data, outcome.count):
                raise UserError(f"compare: the {name} of both rows on {task} is not measured on the same test items")


def laid_out(found: Sequence[Difference], by: Sequence[str], name: str) -> tuple[list[str], list[list[str]]]:
    """Return heads and lines of some differences."""
    heads = [*by, "difference", "metric", "seeds", "mean", "95 % interval", "unit"]
    lines = []
    for one in found:
        unit = one.metric.unit
        direction = " (lower is better)" if one.metric.better == "lower" else ""
        interval = ""
        if one.interval is not None:
            low, high = (change(value, unit) for value in one.interval[1:])
            interval = f"[{low}, {high}]"
        mean = change(one.mean, unit)
        lines.append([*one.group, name, one.name + direction, str(one.seeds), mean, interval, unit_of(unit).gap])
    return heads, lines


def change(value: float, unit: str) -> str:
    """Return a difference as text; that of two infinities is undefined."""
    return "undefined" if math.isnan(value) else shown(value, unit, sign=True)


def in_order(seeds: Seeds) -> list[tuple[int, str]]:
    """Return a key by which numbers come in their order."""
    return [(len(seed), seed) for seed in seeds]
