"""Pictures over many runs, from the lines of a leaderboard: what the page draws as charts, a paper as figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from taskvec.errors import UserError
from taskvec.panel import Bars, Heat, Lines, Picture, Points, Radar
from taskvec.registry import did_you_mean
from taskvec.report.leaderboard import Line
from taskvec.report.marks import Mark
from taskvec.report.spread import Spread
from taskvec.report.units import scaled

PLACES = ("backbone", "suite", "protocol", "row")
ENDS = {"series": "mean", "low": "low", "high": "high"}  # a picture's fields by a spread's
DOT = " · "
GIB = 2**30

Ends: TypeAlias = dict[str, dict[str, Any]]
Titled: TypeAlias = dict[str, Line]


def picture(lines: Sequence[Line], kind: str, metric: str) -> Picture:
    """Return one of the :data:`KINDS` of pictures of some lines.

    Raises:
        UserError: for an unknown kind, a metric that no line has, or lines of which there is nothing to draw.
    """
    if kind not in KINDS:
        hint = did_you_mean(kind, list(KINDS))
        raise UserError(f"figure: unknown kind {kind!r}{hint}")
    draw = KINDS[kind]
    alike = measured(lines, metric)
    made = draw(alike, metric)
    marks = marks_of(alike, getattr(made, "series", ()))
    return made.model_copy(update={"marks": marks})


def measured(lines: Sequence[Line], metric: str) -> list[Line]:
    """Return the lines that have a metric, in the unit of the first.

    Raises:
        UserError: if there is none.
    """
    having = [line for line in lines if metric in line.metrics]
    if not having:
        known: dict[str, None] = {}
        for line in lines:
            known |= dict.fromkeys(line.metrics)
        means = [name for name in known if "/" not in name]
        hint = did_you_mean(metric, means)
        raise UserError(f"figure: no line has {metric!r}{hint}")
    unit = having[0].metrics[metric].unit
    return [line for line in having if line.metrics[metric].unit == unit]


def marks_of(lines: Sequence[Line], names: Iterable[str]) -> dict[str, Mark]:
    """Return the marks of those names that are of a line: bars are called by its name, all else by its full title."""
    known = {line.name: line.mark for line in lines}
    for title, line in titled(lines).items():
        known[title] = line.mark
    return {name: known[name] for name in names if name in known}


def varying(lines: Sequence[Line]) -> list[str]:
    """Return the keys beside the name in which lines differ."""
    found = []
    for key in PLACES:
        texts = {line.about[key] for line in lines}
        if len(texts) > 1:
            found.append(key)
    return found


def place_of(line: Line, keys: Sequence[str]) -> str:
    """Return what some keys say of a line."""
    return DOT.join(line.about[key] for key in keys)


def titled(lines: Sequence[Line]) -> Titled:
    """Return lines by what tells them apart: the name, and where they differ backbone, suite, protocol and row."""
    keys = varying(lines)
    found: Titled = {}
    for line in lines:
        place = place_of(line, keys)
        title = f"{line.name}{DOT}{place}" if place else line.name
        found.setdefault(title, line)
    return found


def axis_title(metric: str, lines: Sequence[Line]) -> str:
    """Return a metric with its unit."""
    unit = lines[0].metrics[metric].unit
    if unit == "fraction":
        return f"{metric}, %"
    return metric if unit == "number" else f"{metric}, {unit}"


def shown(spread: Spread | None, end: str = "mean") -> float:
    """Return a mean or an end of its interval in the shown unit, NaN where there is none."""
    if spread is None:
        return math.nan
    value = getattr(spread, end)
    return scaled(value, spread.unit)


def ends_of(spreads: Mapping[str, Sequence[Spread | None]]) -> Ends:
    """Return means and ends of the intervals of some names, as pictures have them."""
    found: Ends = {}
    for field, end in ENDS.items():
        found[field] = {}
        for name, row in spreads.items():
            found[field][name] = [shown(spread, end) for spread in row]
    return found


def points_of(curves: Mapping[str, Mapping[float, Spread]]) -> Ends:
    """Return points, and those of the ends of their intervals, of some names."""
    rows = {name: list(curve.values()) for name, curve in curves.items()}
    found = ends_of(rows)
    for series in found.values():
        for name, heights in series.items():
            places = curves[name]
            series[name] = list(zip(places, heights, strict=True))
    return found


def bars(lines: Sequence[Line], metric: str) -> Bars:
    """Return bars with intervals: a group for each backbone, suite, protocol and row, in it a bar for each name."""
    keys = varying(lines)
    places = list(dict.fromkeys(place_of(line, keys) for line in lines))
    rows: dict[str, list[Spread | None]] = {}
    for line in lines:
        row = rows.setdefault(line.name, [None] * len(places))
        number = places.index(place_of(line, keys))
        row[number] = row[number] or line.metrics[metric]
    title = axis_title(metric, lines)
    return Bars(labels=places, y=title, **ends_of(rows))


def radar(lines: Sequence[Line], metric: str) -> Radar:
    """Return a spoke for each task that every line has, a closed line for each line.

    Raises:
        UserError: if the lines have no task in common.
    """
    rows = {title: line.tasks(metric) for title, line in titled(lines).items()}
    shared = set.intersection(*map(set, rows.values()))
    spokes = [task for task in lines[0].tasks(metric) if task in shared]
    if not spokes:
        raise UserError(f"figure: the lines have no task's {metric} in common; choose with --where")
    series = {}
    for title, spreads in rows.items():
        series[title] = [shown(spreads[task]) for task in spokes]
    title = axis_title(metric, lines)
    return Radar(labels=spokes, series=series, title=title)


def curves(lines: Sequence[Line], metric: str) -> Lines:
    """Return the validation accuracy of each searched line over the coefficient, with intervals.

    Raises:
        UserError: if no line was searched.
    """
    searched = [line for line in lines if len(line.curve) > 1]
    if not searched:
        raise UserError("figure: no line was searched over coefficients")
    found = {title: line.curve for title, line in titled(searched).items()}
    return Lines(x="α", y="accuracy on validation, %", **points_of(found))


def tasks(lines: Sequence[Line], metric: str) -> Heat:
    """Return the matrix of lines by tasks.

    Raises:
        UserError: if no line has the metric by task.
    """
    columns: dict[str, None] = {}
    for line in lines:
        columns |= dict.fromkeys(line.tasks(metric))
    if not columns:
        raise UserError(f"figure: no line has {metric} by task")
    rows, values = [], []
    for title, line in titled(lines).items():
        spreads = line.tasks(metric)
        rows.append(title)
        values.append([shown(spreads.get(task)) for task in columns])
    title = axis_title(metric, lines)
    return Heat(rows=rows, columns=list(columns), values=values, title=title)


def seconds(lines: Sequence[Line], metric: str) -> Points:
    """Return the metric against the seconds that a run takes if nothing of it is there yet."""
    found = {}
    for title, line in titled(lines).items():
        if line.seconds is not None:
            found[title] = {line.seconds: line.metrics[metric]}
    title = axis_title(metric, lines)
    return Points(scale="log", x="seconds", y=title, **points_of(found))


def memory(lines: Sequence[Line], metric: str) -> Points:
    """Return the metric against the peak memory."""
    found = {}
    for title, line in titled(lines).items():
        if line.bytes is not None:
            found[title] = {line.bytes / GIB: line.metrics[metric]}
    title = axis_title(metric, lines)
    return Points(x="peak memory, GiB", y=title, **points_of(found))


KINDS: dict[str, Callable[[Sequence[Line], str], Picture]] = {
    "bars": bars,
    "radar": radar,
    "curves": curves,
    "tasks": tasks,
    "seconds": seconds,
    "memory": memory,
}
