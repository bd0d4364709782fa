"""Our numbers beside published ones, cell by cell: only runs of exactly the table's settings fill a cell."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from taskvec.config import immaterial_keys
from taskvec.errors import UserError
from taskvec.graph.result import Json, flatten, settings_of
from taskvec.graph.run import RunConfig
from taskvec.report.keys import is_seed
from taskvec.report.published import MEAN, OURS, Beside, Place, Published, published_cells
from taskvec.report.records import Record, labels_of, records_of, says
from taskvec.report.render import Grid, render
from taskvec.report.runs import Run
from taskvec.report.units import mean_and_deviation, summarised

HEADS = ("row", "backbone", "suite", "metric", "task", "ours", "theirs", "deviation")
BELOW = "/*"  # ends the name of a row that stands for all rows below it
LISTED = 8  # names in one line

Setting: TypeAlias = frozenset[tuple[str, str]]
Options: TypeAlias = Mapping[str, str]
# Of each group, the option that stands for a published one at a smaller scale
Choices: TypeAlias = Mapping[str, Options]
Counts: TypeAlias = dict[str, int]
Rows: TypeAlias = Sequence[Record]  # of one run


@dataclass
class Job:
    """One setting of a table: what it is by key, and the rows of each finished run of it."""

    keys: Json
    runs: list[Rows] = field(default_factory=list)

    def says(self, conditions: Beside) -> bool:
        """Return whether every condition holds."""
        for key, value in conditions.items():
            wanted = "null" if value is None else str(value)
            if not says(wanted, self.keys.get(key)):
                return False
        return True

    @property
    def tasks(self) -> list[str]:
        """The tasks of the job's suite."""
        return json.loads(self.keys["suite.tasks"])


class Numbers(NamedTuple):
    """One cell's numbers, one for each run, in one unit."""

    values: list[float]
    unit: str = "fraction"


class Ask(NamedTuple):
    """One line of the table: a published cell, the job and the task of ours that stand in it, and their number."""

    place: Place
    job: Job
    task: str
    theirs: float | None

    @property
    def name(self) -> str:
        """The name of our number among a row's."""
        metric = OURS.get(self.place.metric, self.place.metric)
        return metric if self.task == MEAN else f"{metric}/{self.task}"


@dataclass
class Comparison:
    """A published table beside ours: its lines, and what is to be said about cells that stay empty."""

    lines: list[list[str]] = field(default_factory=list)
    deviations: dict[str, float] = field(default_factory=dict)
    filled: int = 0
    not_run: Counts = field(default_factory=dict)
    not_measured: Counts = field(default_factory=dict)
    not_asked: Counts = field(default_factory=dict)
    no_counterpart: dict[str, str] = field(default_factory=dict)

    def outside(self, tolerance: float) -> dict[str, float]:
        """Return the deviations, in points, that exceed a tolerance."""
        found = {}
        for name, points in self.deviations.items():
            if abs(points) > tolerance:
                found[name] = points
        return found

    def text(self, style: str = "md") -> str:
        """Return the table in a style of :mod:`taskvec.report.render`."""
        grid = Grid(list(HEADS), self.lines)
        return render(grid, style)

    def remarks(self) -> list[str]:
        """Return how many cells are ours and how far off, and which are empty and why, one line each."""
        total = len(self.lines)
        found = [f"{self.filled} of {total} cells are ours{self._spread()}"]
        empty = {
            "not run yet": self.not_run,
            "not measured": self.not_measured,
            "not among the jobs": self.not_asked,
        }
        for what, counts in empty.items():
            if counts:
                found.append(f"{what}: {_counted(counts)}")
        reasons = []
        for row, reason in self.no_counterpart.items():
            reasons.append(f"{row} ({reason})")
        if reasons:
            listed = "; ".join(reasons)
            found.append(f"no counterpart here: {listed}")
        return found

    def _spread(self) -> str:
        if not self.deviations:
            return ""
        sizes = {name: abs(points) for name, points in self.deviations.items()}
        mean = statistics.fmean(sizes.values())
        worst = max(sizes, key=sizes.get)
        largest = self.deviations[worst]
        return f"; mean absolute deviation {mean:.1f} points, largest {largest:+.1f} ({worst})"


def against(
    name: str,
    published: Published,
    jobs: Iterable[RunConfig],
    runs: Iterable[Run],
    choices: Choices | None = None,
) -> Comparison:
    """Return a published table with the numbers of the runs whose settings are those of one of its jobs.

    ``choices`` are what stands for the published models and suites at a smaller scale; there the columns of tasks are
    ours, and nothing deviates, because nothing is the same.

    Raises:
        UserError: if a row stands for several settings.
    """
    table = _Table(published, _settings(jobs, runs), choices)
    for place, theirs in published_cells()[name].items():
        for ask in table.asks(place, theirs):
            table.add(ask)
    return table.found


def setting(config: Json, immaterial: Iterable[str]) -> Setting:
    """Return what tells settings apart: every key that can change a result, but for seeds."""
    found = settings_of(config, immaterial)
    return frozenset((key, str(value)) for key, value in found.items() if not is_seed(key))


def _settings(jobs: Iterable[RunConfig], runs: Iterable[Run]) -> list[Job]:
    """Return each setting once, with its finished runs."""
    found: dict[Setting, Job] = {}
    for job in jobs:
        recorded = job.recorded()
        keys = dict(flatten(recorded)) | labels_of(recorded)
        own = setting(recorded, immaterial_keys(job))
        found.setdefault(own, Job(keys))
    for run in runs:
        result = run.result
        own = setting(result.config, result.immaterial)
        if own in found:
            rows = list(records_of(run))
            found[own].runs.append(rows)
    return list(found.values())


@dataclass
class _Table:
    """A table while it is filled."""

    published: Published
    jobs: list[Job]
    choices: Choices | None
    found: Comparison = field(default_factory=Comparison)
    spread: set[Place] = field(default_factory=set)  # rows whose tasks stand there already

    def asks(self, place: Place, theirs: float) -> Iterator[Ask]:
        """Yield the lines that a published cell becomes, or note why there is none."""
        selector = self.published.rows.get(place.row, "not said")
        if isinstance(selector, str):
            self.found.no_counterpart[place.row] = selector
            return
        job = self._job(place, selector)
        row = place._replace(task="")
        if job is None:
            _count(self.found.not_asked, f"{place.backbone} on {place.suite}")
        elif self.choices is None or place.task == MEAN:
            yield Ask(place, job, place.task, theirs)
        elif row not in self.spread:
            self.spread.add(row)
            for task in job.tasks:
                yield Ask(place, job, task, None)

    def _job(self, place: Place, selector: Beside) -> Job | None:
        """Return the one job that a row stands for, None if there is none on its backbone and suite.

        Raises:
            UserError: if there are several: their numbers must not be averaged.
        """
        wanted = dict(selector)
        del wanted["row"]
        if "finetune" in wanted:
            wanted["finetune"] = self._standing("finetune", str(wanted["finetune"]))
        wanted["backbone"] = self._standing("backbone", place.backbone)
        wanted["suite"] = self._standing("suite", place.suite)
        chosen = [job for job in self.jobs if job.says(wanted)]
        if len(chosen) > 1:
            several = f"{len(chosen)} settings on {place.backbone}"
            raise UserError(f"published.rows: {place.row!r} stands for {several}")
        return chosen[0] if chosen else None

    def _standing(self, group: str, named: str) -> str:
        """Return the option that stands for a published one."""
        if self.choices is None:
            return named
        options = self.choices.get(group, {})
        return options.get(named, named)

    def add(self, ask: Ask) -> None:
        """Add one line, with the deviation where the setting is the same."""
        place, keys = ask.place, ask.job.keys
        numbers = self._numbers(ask)
        ours, _ = mean_and_deviation(numbers.values, numbers.unit)
        theirs = deviation = ""
        if ask.theirs is not None:
            theirs = f"{ask.theirs:g}"
        if ours is None:
            self._empty(ask)
        else:
            self.found.filled += 1
        if ours is not None and self.choices is None:
            points = ours - ask.theirs
            deviation = f"{points:+.1f}"
            self.found.deviations[f"{place.row}, {place.backbone}, {ask.task}"] = points
        line = [place.row, keys["backbone"], keys["suite"], place.metric, ask.task]
        shown = summarised(numbers.values, numbers.unit)
        self.found.lines.append([*line, shown, theirs, deviation])

    def _empty(self, ask: Ask) -> None:
        """Note an empty cell."""
        found = self.found
        counts = found.not_measured if ask.job.runs else found.not_run
        backbone = ask.job.keys["backbone"]
        _count(counts, f"{ask.place.row} on {backbone}")

    def _numbers(self, ask: Ask) -> Numbers:
        """Return a cell's numbers, one for each run that has it."""
        selector = self.published.rows[ask.place.row]
        row, minus = str(selector["row"]), self.published.minus
        values = []
        unit = "fraction"
        for rows in ask.job.runs:
            own = _mean_of(rows, row, ask.name)
            base = _mean_of(rows, minus, ask.name) if minus else Numbers([0.0])
            if own.values and base.values:
                gain = own.values[0] - base.values[0]
                values.append(gain)
                unit = own.unit
        return Numbers(values, unit)


def _mean_of(rows: Rows, row: str, name: str) -> Numbers:
    """Return the mean of a metric over the rows of one run that a name stands for, nothing if none has it."""
    measured = []
    for record in rows:
        if _means(row, record.text("row")) and name in record.metrics:
            measured.append(record.metrics[name])
    if not measured:
        return Numbers([])
    values = [number.value for number in measured]
    mean = statistics.fmean(values)
    return Numbers([mean], measured[0].unit)


def _means(row: str, called: str) -> bool:
    """Return whether a row's name, or the beginning that ``merged/*`` stands for, is that of a row."""
    if row.endswith(BELOW):
        start = row.removesuffix("*")
        return called.startswith(start)
    return called == row


def _count(counts: Counts, name: str) -> None:
    counts[name] = counts.get(name, 0) + 1


def _counted(counts: Counts) -> str:
    """Return names with the number of their cells, the first of many."""
    said = []
    for name, count in counts.items():
        said.append(f"{name} ({count})")
    listed = ", ".join(said[:LISTED])
    more = len(said) - LISTED
    return f"{listed}, and {more} more" if more > 0 else listed
