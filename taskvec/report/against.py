"""Our numbers beside published ones, cell by cell: only runs of exactly the table's settings fill a cell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

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
# Of each group, the option that stands for a published one at a smaller scale
Choices: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass
class Job:
    """One setting of a table: what it is by key, and the rows of each finished run of it."""

    keys: Json
    runs: list[list[Record]] = field(default_factory=list)

    def says(self, conditions: Mapping[str, Any]) -> bool:
        """Return whether every condition holds."""
        return all(says(_text(value), self.keys.get(key)) for key, value in conditions.items())

    @property
    def tasks(self) -> list[str]:
        """The tasks of the job's suite."""
        return json.loads(self.keys["suite.tasks"])


class Numbers(NamedTuple):
    """One cell's numbers, one for each run, in one unit."""

    values: list[float]
    unit: str


class Ask(NamedTuple):
    """One line of the table: a published cell, the task of ours that stands in it, and their number."""

    place: Place
    task: str
    theirs: float | None


@dataclass
class Comparison:
    """A published table beside ours: its lines, and what is to be said about cells that stay empty."""

    lines: list[list[str]] = field(default_factory=list)
    deviations: dict[str, float] = field(default_factory=dict)
    filled: int = 0
    not_run: dict[str, int] = field(default_factory=dict)
    not_measured: dict[str, int] = field(default_factory=dict)
    not_asked: dict[str, int] = field(default_factory=dict)
    no_counterpart: dict[str, str] = field(default_factory=dict)

    def outside(self, tolerance: float) -> dict[str, float]:
        """Return the deviations, in points, that exceed a tolerance."""
        return {name: points for name, points in self.deviations.items() if abs(points) > tolerance}

    def text(self, style: str = "md") -> str:
        """Return the table in a style of :mod:`taskvec.report.render`."""
        return render(Grid(list(HEADS), self.lines), style)

    def remarks(self) -> list[str]:
        """Return how many cells are ours and how far off, and which are empty and why, one line each."""
        found = [f"{self.filled} of {len(self.lines)} cells are ours{self._spread()}"]
        for what, counts in (
            ("not run yet", self.not_run),
            ("not measured", self.not_measured),
            ("not among the jobs", self.not_asked),
        ):
            if counts:
                found.append(f"{what}: {_counted(counts)}")
        if self.no_counterpart:
            reasons = [f"{row} ({reason})" for row, reason in self.no_counterpart.items()]
            found.append(f"no counterpart here: {'; '.join(reasons)}")
        return found

    def _spread(self) -> str:
        if not self.deviations:
            return ""
        sizes = [abs(points) for points in self.deviations.values()]
        mean = sum(sizes) / len(sizes)
        worst = max(self.deviations, key=lambda name: abs(self.deviations[name]))
        return (
            f"; mean absolute deviation {mean:.1f} points, largest {self.deviations[worst]:+.1f} "
            f"({worst})"
        )


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
    settings = _settings(jobs)
    for run in runs:
        job = settings.get(setting(run.result.config, run.result.immaterial))
        if job is not None:
            job.runs.append(list(records_of(run)))
    found = Comparison()
    known = list(settings.values())
    for ask, job in _asks(name, published, known, choices, found):
        selector = published.rows[ask.place.row]
        numbers = _numbers(job, selector, ask, published.minus)
        _add(found, ask, job, numbers, same=choices is None)
    return found


def setting(config: Json, immaterial: Iterable[str]) -> Setting:
    """Return what tells settings apart: every key that can change a result, but for seeds."""
    found = settings_of(config, immaterial)
    return frozenset((key, str(value)) for key, value in found.items() if not is_seed(key))


def _settings(jobs: Iterable[RunConfig]) -> dict[Setting, Job]:
    found: dict[Setting, Job] = {}
    for job in jobs:
        recorded = job.recorded()
        keys = dict(flatten(recorded)) | labels_of(recorded)
        found.setdefault(setting(recorded, immaterial_keys(job)), Job(keys))
    return found


def _asks(
    name: str,
    published: Published,
    jobs: Sequence[Job],
    choices: Choices | None,
    found: Comparison,
) -> Iterator[tuple[Ask, Job]]:
    """Yield the lines of a table that a job of ours answers, and note the others."""
    spread: set[Place] = set()  # rows whose tasks are ours, at a smaller scale
    for place, theirs in published_cells()[name].items():
        selector = published.rows.get(place.row, "not said")
        if isinstance(selector, str):
            found.no_counterpart[place.row] = selector
            continue
        job = _job_of(place, selector, jobs, choices)
        if job is None:
            where = f"{place.backbone} on {place.suite}"
            found.not_asked[where] = found.not_asked.get(where, 0) + 1
        elif choices is None or place.task == MEAN:
            yield Ask(place, place.task, theirs), job
        elif place._replace(task="") not in spread:
            spread.add(place._replace(task=""))
            for task in job.tasks:
                yield Ask(place, task, None), job


def _job_of(
    place: Place, selector: Beside, jobs: Sequence[Job], choices: Choices | None
) -> Job | None:
    """Return the one job that a row stands for, None if there is none on its backbone and suite.

    Raises:
        UserError: if there are several: their numbers must not be averaged.
    """
    stand = choices or {}
    wanted: dict[str, Any] = {key: value for key, value in selector.items() if key != "row"}
    for group in ("backbone", "suite"):
        named = getattr(place, group)
        wanted.setdefault(group, stand.get(group, {}).get(named, named))
    chosen = [job for job in jobs if job.says(wanted)]
    if len(chosen) > 1:
        raise UserError(
            f"published.rows: {place.row!r} stands for {len(chosen)} settings on {place.backbone}"
        )
    return chosen[0] if chosen else None


def _numbers(job: Job, selector: Beside, ask: Ask, minus: str | None) -> Numbers:
    """Return a cell's numbers, one for each run that has it."""
    metric = OURS.get(ask.place.metric, ask.place.metric)
    name = metric if ask.task == MEAN else f"{metric}/{ask.task}"
    values, unit = [], "fraction"
    for rows in job.runs:
        own = _mean_of(rows, str(selector["row"]), name)
        taken_off = _mean_of(rows, minus, name) if minus else Numbers([0.0], unit)
        if own.values and taken_off.values:
            values.append(own.values[0] - taken_off.values[0])
            unit = own.unit
    return Numbers(values, unit)


def _mean_of(rows: Sequence[Record], row: str, name: str) -> Numbers:
    """Return the mean of a metric over the rows of one run that a name stands for, nothing if none has it."""
    start = row.removesuffix(BELOW)
    measured = []
    for record in rows:
        called = record.text("row")
        meant = called.startswith(f"{start}/") if row.endswith(BELOW) else called == row
        if meant and name in record.metrics:
            measured.append(record.metrics[name])
    if not measured:
        return Numbers([], "fraction")
    mean = sum(number.value for number in measured) / len(measured)
    return Numbers([mean], measured[0].unit)


def _add(found: Comparison, ask: Ask, job: Job, numbers: Numbers, *, same: bool) -> None:
    """Add one line, with the deviation where the setting is the same."""
    place = ask.place
    ours, _ = mean_and_deviation(numbers.values, numbers.unit)
    theirs = "" if ask.theirs is None else f"{ask.theirs:g}"
    deviation = ""
    if ours is not None:
        found.filled += 1
        if same and ask.theirs is not None:
            points = ours - ask.theirs
            deviation = f"{points:+.1f}"
            found.deviations[f"{place.row}, {place.backbone}, {ask.task}"] = points
    else:
        counts = found.not_measured if job.runs else found.not_run
        where = f"{place.row} on {job.keys['backbone']}"
        counts[where] = counts.get(where, 0) + 1
    models = [job.keys["backbone"], job.keys["suite"]]
    numbers_shown = [summarised(numbers.values, numbers.unit), theirs, deviation]
    found.lines.append([place.row, *models, place.metric, ask.task, *numbers_shown])


def _counted(counts: Mapping[str, int]) -> str:
    """Return names with the number of their cells, the first of many."""
    said = [f"{name} ({count})" for name, count in counts.items()]
    more = len(said) - LISTED
    listed = ", ".join(said[:LISTED])
    return f"{listed}, and {more} more" if more > 0 else listed


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
