"""Tables over any set of runs: rows and columns by any key, mean and standard deviation over the rest."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from taskvec.graph.result import Result
from taskvec.protocols.rows import Better, Metric, Row
from taskvec.report.best import emphasised
from taskvec.report.keys import row_keys
from taskvec.report.records import (
    METRICS,
    Measured,
    Names,
    Record,
    Records,
    Where,
    check_keys,
    check_metrics,
    read,
    select,
    usual_metrics,
)
from taskvec.report.render import Grid, render
from taskvec.report.runs import Run
from taskvec.report.spread import half_interval
from taskvec.report.units import exactly, shown, summarised
from taskvec.text import printable

METRIC = "metric"  # the key under which a table's rows or columns name metrics
BESIDE = ("normalised", "control", "perplexity")  # columns after the tasks in the table of one run
DERIVED = ("normalised", "validation", "control")  # never what a row is about

Values: TypeAlias = tuple[str, ...]  # of row or column keys


@dataclass
class Sample:
    """The numbers of one cell, all in one unit."""

    unit: str = "number"
    better: Better = "higher"
    values: list[float] = field(default_factory=list)

    def goodness(self) -> float:
        """Return how good the mean is, the larger the better; NaN where there is none, or no better direction."""
        if not self.values or self.better == "neither":
            return math.nan
        mean = sum(self.values) / len(self.values)
        return -mean if self.better == "lower" else mean


Cells: TypeAlias = dict[Values, Sample]


@dataclass
class Table:
    """Samples by the values of row and column keys, in the order in which they were added."""

    rows: Names
    columns: Names
    heads: dict[Values, None] = field(default_factory=dict)
    lines: dict[Values, Cells] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, record: Record, name: str, measured: Measured) -> None:
        """Add a record's number; one in another unit than the metric's others gets a name of its own."""
        usual = self.units.setdefault(name, measured.unit)
        label = name
        if measured.unit != usual:
            label = f"{name} ({measured.unit})"
        named = Record({**record.keys, METRIC: label}, {})
        head = named.texts(self.columns)
        self.heads[head] = None
        cells = self.lines.setdefault(named.texts(self.rows), {})
        sample = cells.setdefault(head, Sample(measured.unit, measured.better))
        sample.values.append(measured.value)


def table(
    runs: Iterable[Run | Result],
    rows: Names,
    columns: Names,
    metrics: Names | None = None,
    style: str = "md",
    where: Where | None = None,
    *,
    best: bool = False,
    interval: bool = False,
) -> str:
    """Return mean ± sample standard deviation of each metric per row and column group; ``where`` filters records.

    With ``interval`` it is ± half of the 95 % interval over seeds (Student's t); with ``best`` the best number of each
    column is bold, the second best underlined.

    Runs that differ in a key that is neither a row nor a column nor a seed are not averaged: the key becomes a row key.
    ``metrics`` None means those that have values, the validation accuracy and single tasks left out.

    Raises:
        UserError: for an unknown key or metric, or if no record fulfils the conditions.
    """
    everything = read(runs)
    named = [key for key in (*rows, *columns) if key != METRIC]
    check_keys(everything, named, "table")
    check_metrics(everything, metrics or (), "table")
    records = select(everything, where or {})
    found = aggregate(records, rows, columns, metrics or usual_metrics(records))
    if style == "csv":
        return render(exact_grid(found), style)
    grid = short_grid(found, interval=interval)
    if best:
        grid = emphasised(grid, goodness(found))
    return render(grid, style)


def aggregate(records: Records, rows: Names, columns: Names, metrics: Names) -> Table:
    """Return the records' metrics by row and column keys, with further row keys for what must not be averaged."""
    if METRIC not in (*rows, *columns) and several_numbers(records, metrics):
        columns = (*columns, METRIC)
    found = Table(row_keys(records, rows, columns), columns)
    for record in records:
        for name in metrics:
            if name in record.metrics:
                found.add(record, name, record.metrics[name])
    return found


def several_numbers(records: Records, metrics: Names) -> bool:
    """Return whether there are numbers that must not be averaged: several metrics, or one in several units."""
    units = set()
    for record in records:
        for name in metrics:
            if name in record.metrics:
                units.add(record.metrics[name].unit)
    return len(metrics) > 1 or len(units) > 1


def short_grid(found: Table, *, interval: bool = False) -> Grid:
    """Return a table as text, mean and deviation (or half of the interval) in the metric's digits."""
    said = half_interval if interval else summarised
    names = [" ".join(head) for head in found.heads]
    grid = Grid([*found.rows, *names])
    for values, cells in found.lines.items():
        line = list(values)
        for head in found.heads:
            sample = cells.get(head, Sample())
            line.append(said(sample.values, sample.unit))
        grid.lines.append(line)
    return grid


def goodness(found: Table) -> dict[int, list[float]]:
    """Return by column of the text how good each line's mean is, the larger the better, NaN where that is not said."""
    by_column = {}
    for column, head in enumerate(found.heads, len(found.rows)):
        samples = [cells.get(head, Sample()) for cells in found.lines.values()]
        by_column[column] = [sample.goodness() for sample in samples]
    return by_column


def exact_grid(found: Table) -> Grid:
    """Return a table as text, mean and deviation in columns of their own and in full precision."""
    grid = Grid(list(found.rows))
    for head in found.heads:
        name = " ".join(head)
        grid.heads += [name, f"{name} std"]
    for values, cells in found.lines.items():
        line = list(values)
        for head in found.heads:
            sample = cells.get(head, Sample())
            line += exactly(sample.values, sample.unit)
        grid.lines.append(line)
    return grid


# One run


def run_table(result: Result) -> str:
    """Return one run's rows: each task's number under the metric that judges it, then the mean and what sums up."""
    tasks: dict[str, None] = {}
    means: dict[str, None] = {}
    for row in result.rows:
        tasks |= dict.fromkeys(judged(row))
        means |= dict.fromkeys(row.metrics)
    beside = [name for name in BESIDE if name in means]
    titles = [task_title(result, task) for task in tasks]
    grid = Grid(["", "alpha", *titles, "mean", *beside])
    for row in result.rows:
        alpha = "" if row.alpha is None else f"{row.alpha:.3g}"
        by_task = judged(row)
        line = [row.row, alpha]
        line += [by_task.get(task, NOTHING).text for task in tasks]
        line.append(mean_text(row, main_metric(row)))
        line += [mean_text(row, name) for name in beside]
        grid.lines.append(line)
    return render(grid, "md", align="right")


@dataclass(frozen=True)
class Judgement:
    """A task's number as text, and the name of the metric that it is."""

    name: str
    text: str


NOTHING = Judgement("", "")


def judged(row: Row) -> dict[str, Judgement]:
    """Return the number of each task of a row."""
    found: dict[str, Judgement] = {}
    for name, metric in row.metrics.items():
        if name in DERIVED:
            continue
        for task, judgement in judgements(name, metric).items():
            found.setdefault(task, judgement)
    return found


def judgements(name: str, metric: Metric) -> dict[str, Judgement]:
    """Return the numbers of a metric by task."""
    found = {}
    for task, value in metric.values.items():
        title = metric.by_task.get(task, name)
        found[task] = Judgement(title, shown(value, metric.unit))
    return found


def main_metric(row: Row) -> str:
    """Return the metric that a row is about: the first that is not derived from another or about the control."""
    names = [name for name in row.metrics if name not in DERIVED]
    return names[0] if names else ""


def mean_text(row: Row, name: str) -> str:
    """Return the mean of a row's metric as text, empty where the row does not have it."""
    if name not in row.metrics:
        return ""
    metric = row.metrics[name]
    return shown(metric.mean, metric.unit)


def task_title(result: Result, task: str) -> str:
    """Return a task's name, with the metric that judges it where all rows agree on one that is not accuracy."""
    names = set()
    for row in result.rows:
        found = judged(row).get(task)
        if found is not None:
            told = "" if found.name == row.row else found.name
            names.add(told)
    name = names.pop()
    plain = names or name in ("", METRICS[0])
    return task if plain else f"{task} ({name})"


def report_lines(result: Result) -> list[str]:
    """Return what the stages have to say, one line each: words and numbers, of several numbers the range."""
    found = []
    for stage, report in result.reports.items():
        words = []
        for name, value in report.items():
            text = said(value)
            if text:
                words.append(f"{name} {text}")
        if words:
            line = f"{stage}: {', '.join(words)}"
            found.append(printable(line))
    return found


def said(value: Any) -> str:
    """Return a word or number as text, of a collection of numbers the smallest and the largest, else nothing."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:.4g}"
    numbers = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(numbers, list) or not numbers:
        return ""
    if any(type(number) not in (int, float) for number in numbers):
        return ""
    low, high = min(numbers), max(numbers)
    return f"{low:.4g} to {high:.4g}"
