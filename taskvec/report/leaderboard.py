"""Which method is how good on what, at which cost: runs that are the same but for their seeds as one line."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from taskvec.protocols.rows import Row
from taskvec.report.compare import Line as Member
from taskvec.report.compare import lines_of
from taskvec.report.keys import row_keys
from taskvec.report.marks import NO_MARK, Mark, marks
from taskvec.report.records import Where, check_keys
from taskvec.report.runs import DONE, Run
from taskvec.report.spread import Spread, over_items, over_seeds
from taskvec.report.table import METRIC

# What a line is called by; keys that also tell runs apart stand beside them
ABOUT = ("method", "merge", "backbone", "suite", "protocol", "row")
BY_ITEM = ("accuracy", "control")  # metrics whose interval over test items a single run can have

Spreads: TypeAlias = dict[str, Spread]
Values: TypeAlias = tuple[str, ...]


@dataclass
class Line:
    """Runs that differ in their seeds only: what they are, their metrics with intervals, curves and cost.

    ``metrics`` holds "metric" and "metric/task", ``curve`` the validation accuracy by coefficient, ``settings`` the
    further keys by which the line differs from others. ``seconds`` and ``bytes`` are what a run costs if nothing of it
    is there yet, the mean of the runs.
    """

    about: dict[str, str]
    settings: dict[str, str]
    mark: Mark = NO_MARK
    members: list[Member] = field(default_factory=list)
    metrics: Spreads = field(default_factory=dict)
    better: dict[str, str] = field(default_factory=dict)
    curve: dict[float, Spread] = field(default_factory=dict)
    seconds: float | None = None
    bytes: float | None = None

    @property
    def name(self) -> str:
        """A short name: the method, its merge where that is another word, and the settings."""
        method, merge = self.about["method"], self.about["merge"]
        parts = [method]
        if merge not in ("", method):
            parts.append(merge)
        for key, value in self.settings.items():
            _, _, word = key.rpartition(".")
            parts.append(f"{word}={value}")
        return " ".join(parts)

    @property
    def state(self) -> str:
        """How its runs stand, "done" only if all are."""
        states = {member.run.state for member in self.members}
        others = sorted(states - {DONE})
        return ", ".join(others) or DONE

    def tasks(self, metric: str) -> Spreads:
        """Return a metric by task."""
        start = f"{metric}/"
        names = [name for name in self.metrics if name.startswith(start)]
        return {name.removeprefix(start): self.metrics[name] for name in names}


def leaderboard(runs: Sequence[Run], where: Where | None = None) -> list[Line]:
    """Return a line for each set of rows that differ in their seeds only, the most accurate ones first.

    A line is called and marked the same whether conditions leave out others or not.

    Raises:
        UserError: for conditions on an unknown key.
    """
    where = where or {}
    members = lines_of(runs)
    records = [member.record for member in members]
    check_keys(records, where, "report")
    keys = row_keys(records, ABOUT, (METRIC,))
    left_out = (*ABOUT, "state")
    further = [key for key in keys if key not in left_out]
    found: dict[Values, Line] = {}
    for member in members:
        values = member.record.texts(keys)
        if values not in found:
            about = texts_of(member, ABOUT)
            settings = texts_of(member, further)
            found[values] = Line(about, settings)
        line = found[values]
        line.members.append(member)
    lines = list(found.values())
    keep_telling(lines)
    known = marks(line.name for line in lines)
    for line in lines:
        line.mark = known[line.name]
        line.members = [member for member in line.members if member.says(where)]
    chosen = [line for line in lines if line.members]
    for line in chosen:
        summarise(line)
    return sorted(chosen, key=rank)


def texts_of(member: Member, keys: Iterable[str]) -> dict[str, str]:
    """Return what a row of a run is, as text."""
    return {key: member.record.text(key) for key in keys}


def keep_telling(lines: Sequence[Line]) -> None:
    """Keep of each line's settings those by which it differs from a line that is called the same."""
    alike: dict[Values, list[Line]] = {}
    for line in lines:
        peers = alike.setdefault(tuple(line.about.values()), [])
        peers.append(line)
    for peers in alike.values():
        for key in list(peers[0].settings):
            texts = {line.settings[key] for line in peers}
            for line in peers:
                if len(texts) == 1 or not line.settings[key]:
                    del line.settings[key]


def rank(line: Line) -> tuple[bool, float, str]:
    """Return the order of a line: by accuracy, those without one last."""
    spread = line.metrics.get("accuracy")
    if spread is None or spread.unit != "fraction":
        return True, 0.0, line.name
    return False, -spread.mean, line.name


def summarise(line: Line) -> None:
    """Fill in a line's metrics, curve and cost."""
    samples: dict[str, list[float]] = {}
    units: dict[str, str] = {}
    for member in line.members:
        for name, measured in member.record.metrics.items():
            values = samples.setdefault(name, [])
            values.append(measured.value)
            units.setdefault(name, measured.unit)
            line.better.setdefault(name, measured.better)
    for name, values in samples.items():
        line.metrics[name] = over_seeds(values, units[name])
    if len(line.members) == 1:
        add_items(line)
    line.curve = curve_of(line.members)
    runs = [member.run for member in line.members]
    line.seconds = mean_of(seconds(run) for run in runs)
    line.bytes = mean_of(peak_bytes(run) for run in runs)


def add_items(line: Line) -> None:
    """Give a single run the intervals over its test items."""
    (member,) = line.members
    for name in BY_ITEM:
        if name in member.row.metrics:
            spread = over_items(member.run, member.row, name)
            if spread is not None:
                line.metrics[name] = spread


def curve_of(members: Iterable[Member]) -> dict[float, Spread]:
    """Return the mean accuracy by coefficient of rows that were searched, on the split that they were searched on."""
    samples: dict[float, list[float]] = {}
    for member in members:
        for point in points_of(member.run, member.row):
            alpha, mean = float(point["alpha"]), float(point["mean"])
            values = samples.setdefault(alpha, [])
            values.append(mean)
    curve = {}
    for alpha in sorted(samples):
        curve[alpha] = over_seeds(samples[alpha], "fraction")
    return curve


def points_of(run: Run, row: Row) -> list[dict]:
    """Return the points of a row's curve that have a mean; a row whose tasks have their own coefficients has none."""
    curve = run.result.curves.get(row.row, ())
    return [point for point in curve if {"alpha", "mean"} <= point.keys()]


def seconds(run: Run) -> float | None:
    """Return the seconds of everything that a run stands on, computed by it or found in the store."""
    artefacts = run.result.timing.get("artefacts")
    if not artefacts:
        return run.result.timing.get("wall_s")
    return sum(usage.get("wall_s", 0.0) for usage in artefacts.values())


def peak_bytes(run: Run) -> float | None:
    """Return the peak memory of a run."""
    return run.result.timing.get("peak_memory_bytes")


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of those values that there are, None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
