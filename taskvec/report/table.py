"""Tables over any set of runs: rows and columns by any key, mean and standard deviation over the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from taskvec.graph.result import Result
from taskvec.protocols.rows import Metric, Row
from taskvec.report.keys import row_keys, text_of
from taskvec.report.records import METRICS, Measured, Record, check_keys, metrics_of, read, select
from taskvec.report.render import render
from taskvec.report.runs import Run
from taskvec.report.units import exactly, shown, summarised
from taskvec.text import printable

METRIC = "metric"  # the key under which a table's rows or columns name metrics
BESIDE = ("normalised", "control", "perplexity")  # columns after the tasks in the table of one run
DERIVED = ("normalised", "validation", "control")  # never what a row is about

Key = tuple[str, ...]


@dataclass
class Sample:
    """The numbers of one cell, all in one unit."""

    unit: str
    values: list[float] = field(default_factory=list)


@dataclass
class Table:
    """Samples by the values of row and column keys, in the order in which they were added."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    heads: dict[Key, None] = field(default_factory=dict)
    cells: dict[Key, dict[Key, Sample]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    def add(self, record: Record, name: str, measured: Measured) -> None:
        """Add a record's number; one in another unit than the metric's others gets a name of its own."""
        label = name
        if self.units.setdefault(name, measured.unit) != measured.unit:
            label = f"{name} ({measured.unit})"
        keys = {**record.keys, METRIC: label}
        line = tuple(text_of(keys.get(key)) for key in self.rows)
        head = tuple(text_of(keys.get(key)) for key in self.columns)
        self.heads[head] = None
        sample = self.cells.setdefault(line, {}).setdefault(head, Sample(measured.unit))
        sample.values.append(measured.value)


def table(
    runs: Iterable[Run | Result],
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[str] | None = None,
    style: str = "md",
    where: Mapping[str, str] | None = None,
) -> str:
    """Return mean ± sample standard deviation of each metric per row and column group; ``where`` filters records.

    Runs that differ in a key that is neither a row nor a column nor a seed are not averaged: the key becomes a row key.
    ``metrics`` None means those that have values, the validation accuracy and single tasks left out.

    Raises:
        UserError: for an unknown key or metric.
    """
    everything = read(runs)
    check_keys(everything, [key for key in (*rows, *columns) if key != METRIC], "table")
    records = select(everything, where or {})
    # A metric that only other records have is no mistake.
    names = metrics_of(records) if metrics is None else metrics_of(everything, metrics)
    found = aggregate(records, rows, columns, names)
    heads, lines = laid_out(found, exact=style == "csv")
    return render(heads, lines, style)


def aggregate(records: Sequence[Record], rows: Sequence[str], columns: Sequence[str], metrics: Sequence[str]) -> Table:
    """Return the records' metrics by row and column keys, with further row keys for what must not be averaged."""
    units = {(name, record.metrics[name].unit) for record in records for name in metrics if name in record.metrics}
    if max(len(units), len(metrics)) > 1 and METRIC not in (*rows, *columns):
        columns = (*columns, METRIC)
    keys = row_keys(records, rows, columns)
    found = Table(tuple(keys), tuple(columns))
    for record in records:
        for name in metrics:
            if name in record.metrics:
                found.add(record, name, record.metrics[name])
    return found


def laid_out(found: Table, *, exact: bool = False) -> tuple[list[str], list[list[str]]]:
    """Return a table's heads and lines as text.

    ``exact`` gives mean and deviation as two columns in full precision, else they are one text in the metric's digits.
    """
    names = [" ".join(head) for head in found.heads]
    heads = [*found.rows, *names]
    if exact:
        heads = list(found.rows)
        for name in names:
            heads += [name, f"{name} std"]
    lines = []
    for key, samples in found.cells.items():
        line = list(key)
        for head in found.heads:
            sample = samples.get(head, Sample("number"))
            line += exactly(sample.values, sample.unit) if exact else [summarised(sample.values, sample.unit)]
        lines.append(line)
    return heads, lines


def run_table(result: Result) -> str:
    """Return one run's rows: each task's number under the metric that judges it, then the mean and what sums up."""
    tasks = list(dict.fromkeys(task for row in result.rows for task in judged(row)))
    beside = [name for name in BESIDE if any(row.mean(name) is not None for row in result.rows)]
    lines = []
    for row in result.rows:
        by_task = judged(row)
        line = [row.row, "" if row.alpha is None else f"{row.alpha:.3g}"]
        for task in tasks:
            line.append(task_text(by_task.get(task), task))
        line.append(mean_text(main_metric(row)))
        line += [mean_text(row.metrics.get(name)) for name in beside]
        lines.append(line)
    heads = ["", "alpha", *(task_head(result, task) for task in tasks), "mean", *beside]
    return render(heads, lines, "md", align="right")


def main_metric(row: Row) -> Metric | None:
    """Return the metric that a row is about: the first that is not derived from another or about the control."""
    names = [name for name in row.metrics if name not in DERIVED]
    return row.metrics[names[0]] if names else None


def judged(row: Row) -> dict[str, tuple[str, Metric]]:
    """Return the name and metric that judge each task of a row."""
    found: dict[str, tuple[str, Metric]] = {}
    for name, metric in row.metrics.items():
        if name in DERIVED:
            continue
        for task in metric.values:
            found.setdefault(task, (metric.by_task.get(task, name), metric))
    return found


def task_text(found: tuple[str, Metric] | None, task: str) -> str:
    """Return a task's number as text, empty where the row has none."""
    if found is None:
        return ""
    _, metric = found
    return shown(metric.values[task], metric.unit)


def task_head(result: Result, task: str) -> str:
    """Return a task's name, with the metric that judges it where all rows agree on one that is not accuracy."""
    names = {judged(row)[task][0] for row in result.rows if task in judged(row)}
    (name, *others) = names
    return task if others or name == METRICS[0] else f"{task} ({name})"


def mean_text(metric: Metric | None) -> str:
    """Return a metric's mean as text, empty where there is none."""
    return "" if metric is None else shown(metric.mean, metric.unit)


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
            found.append(printable(f"{stage}: {', '.join(words)}"))
    return found


def said(value: Any) -> str:
    """Return a word or number as text, of a collection of numbers the smallest and the largest, else nothing."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int | float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list) or not value:
        return ""
    if any(isinstance(number, bool) or not isinstance(number, int | float) for number in value):
        return ""
    return f"{min(value):.4g} to {max(value):.4g}"
