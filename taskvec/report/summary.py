"""Pictures over many runs, from the lines of a leaderboard: what the page draws as charts, a paper as figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from taskvec.errors import UserError
from taskvec.panel import Bars, Heat, Lines, Picture, Points, Radar
from taskvec.registry import did_you_mean
from taskvec.report.leaderboard import Line
from taskvec.report.spread import Spread
from taskvec.report.units import scaled

PLACES = ("backbone", "suite", "protocol", "row")
ENDS = {"series": "mean", "low": "low", "high": "high"}  # a picture's fields by a spread's
GIB = 2**30

Ends: TypeAlias = dict[str, dict[str, Any]]
Titled: TypeAlias = dict[str, Line]


def picture(lines: Sequence[Line], kind: str, metric: str) -> Picture:
    """Return one of the :data:`KINDS` of pictures of some lines.

    Raises:
        UserError: for an unknown kind, a metric that no line has, or lines of which there is nothing to draw.
    """
    if kind not in KINDS:
        raise UserError(f"figure: unknown kind {kind!r}{did_you_mean(kind, list(KINDS))}")
    having = [line for line in lines if metric in line.metrics]
    if not having:
        known = sorted({name for line in lines for name in line.metrics if "/" not in name})
        raise UserError(f"figure: no line has {metric!r}{did_you_mean(metric, known)}")
    unit = having[0].metrics[metric].unit
    alike = [line for line in having if line.metrics[metric].unit == unit]
    made = KINDS[kind](alike, metric)
    # Bars are called by the name alone, all else by the full title
    known_marks = {line.name: line.mark for line in alike}
    known_marks |= {title: line.mark for title, line in titled(alike).items()}
    names = getattr(made, "series", ())
    marks = {name: known_marks[name] for name in names if name in known_marks}
    return made.model_copy(update={"marks": marks})


def varying(lines: Sequence[Line]) -> list[str]:
    """Return the keys beside the name in which lines differ."""
    return [key for key in PLACES if len({line.about[key] for line in lines}) > 1]


def titled(lines: Sequence[Line]) -> Titled:
    """Return lines by what tells them apart: the name, and where they differ backbone, suite, protocol and row."""
    keys = varying(lines)
    found: Titled = {}
    for line in lines:
        parts = [line.name, *(line.about[key] for key in keys)]
        found.setdefault(" · ".join(parts), line)
    return found


def axis_title(metric: str, lines: Sequence[Line]) -> str:
    """Return a metric with its unit."""
    unit = lines[0].metrics[metric].unit
    if unit == "fraction":
        return f"{metric}, %"
    return metric if unit == "number" else f"{metric}, {unit}"


def shown(spread: Spread | None, end: str = "mean") -> float:
    """Return a mean or an end of its interval in the shown unit, NaN where there is none."""
    return math.nan if spread is None else scaled(getattr(spread, end), spread.unit)


def bars(lines: Sequence[Line], metric: str) -> Bars:
    """Return bars with intervals: a group for each backbone, suite, protocol and row, in it a bar for each name."""
    keys = varying(lines)
    groups: dict[str, dict[str, Spread]] = {}
    for line in lines:
        label = " · ".join(line.about[key] for key in keys)
        group = groups.setdefault(label, {})
        group.setdefault(line.name, line.metrics[metric])
    names = dict.fromkeys(line.name for line in lines)
    ends: Ends = {}
    for field, end in ENDS.items():
        ends[field] = {name: column(groups.values(), name, end) for name in names}
    return Bars(labels=list(groups), y=axis_title(metric, lines), **ends)


def column(groups: Iterable[dict[str, Spread]], name: str, end: str) -> list[float]:
    """Return one end of a name's interval in each group."""
    return [shown(group.get(name), end) for group in groups]


def radar(lines: Sequence[Line], metric: str) -> Radar:
    """Return a spoke for each task that every line has, a closed line for each line.

    Raises:
        UserError: if the lines have no task in common.
    """
    first, *others = [line.tasks(metric) for line in lines]
    spokes = [task for task in first if all(task in other for other in others)]
    if not spokes:
        raise UserError(f"figure: the lines have no task's {metric} in common; choose with --where")
    series = {}
    for title, line in titled(lines).items():
        spreads = line.tasks(metric)
        series[title] = [shown(spreads[task]) for task in spokes]
    return Radar(labels=spokes, series=series, title=axis_title(metric, lines))


def curves(lines: Sequence[Line], metric: str) -> Lines:
    """Return the validation accuracy of each searched line over the coefficient, with intervals.

    Raises:
        UserError: if no line was searched.
    """
    searched = [line for line in lines if len(line.curve) > 1]
    if not searched:
        raise UserError("figure: no line was searched over coefficients")
    ends: Ends = {field: {} for field in ENDS}
    for title, line in titled(searched).items():
        for field, end in ENDS.items():
            points = [(alpha, shown(spread, end)) for alpha, spread in line.curve.items()]
            ends[field][title] = points
    return Lines(x="α", y="accuracy on validation, %", **ends)


def tasks(lines: Sequence[Line], metric: str) -> Heat:
    """Return the matrix of lines by tasks.

    Raises:
        UserError: if no line has the metric by task.
    """
    columns = dict.fromkeys(task for line in lines for task in line.tasks(metric))
    if not columns:
        raise UserError(f"figure: no line has {metric} by task")
    rows, values = [], []
    for title, line in titled(lines).items():
        spreads = line.tasks(metric)
        rows.append(title)
        values.append([shown(spreads.get(task)) for task in columns])
    return Heat(rows=rows, columns=list(columns), values=values, title=axis_title(metric, lines))


def seconds(lines: Sequence[Line], metric: str) -> Points:
    """Return the metric against the seconds that a run takes if nothing of it is there yet."""
    places = {title: line.seconds for title, line in titled(lines).items()}
    ends = against(lines, metric, places)
    return Points(scale="log", x="seconds", y=axis_title(metric, lines), **ends)


def memory(lines: Sequence[Line], metric: str) -> Points:
    """Return the metric against the peak memory."""
    places = {}
    for title, line in titled(lines).items():
        places[title] = None if line.bytes is None else line.bytes / GIB
    ends = against(lines, metric, places)
    return Points(x="peak memory, GiB", y=axis_title(metric, lines), **ends)


def against(lines: Sequence[Line], metric: str, places: dict[str, float | None]) -> Ends:
    """Return a point with its interval for each line whose place is known."""
    ends: Ends = {field: {} for field in ENDS}
    for title, line in titled(lines).items():
        if places[title] is None:
            continue
        for field, end in ENDS.items():
            ends[field][title] = [(places[title], shown(line.metrics[metric], end))]
    return ends


KINDS: dict[str, Callable[[Sequence[Line], str], Picture]] = {
    "bars": bars,
    "radar": radar,
    "curves": curves,
    "tasks": tasks,
    "seconds": seconds,
    "memory": memory,
}
