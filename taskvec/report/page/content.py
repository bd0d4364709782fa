"""What the page of some runs shows, as plain values: lines of the leaderboard, runs, pictures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskvec.errors import UserError
from taskvec.graph.result import Json
from taskvec.graph.status import read_status
from taskvec.report.keys import is_seed, telling
from taskvec.report.leaderboard import ABOUT, Line, leaderboard
from taskvec.report.panels import panels
from taskvec.report.records import METRICS, Record, Where, records_of
from taskvec.report.runs import Run
from taskvec.report.spread import Spread
from taskvec.text import printable

DIGITS = 5  # significant ones of the numbers that charts are drawn from
FILTERS = ("method", "merge", "backbone", "suite", "protocol", "row")
HIDDEN = ("validation", "alpha")  # means that are no column of the leaderboard
MACHINE = ("platform", "devices", "threads")
COST = ("wall_s", "peak_memory_bytes")
GIB = 2**30


@dataclass(frozen=True)
class Column:
    """A metric of the leaderboard."""

    name: str
    better: str

    @property
    def title(self) -> str:
        """The metric with the direction of improvement."""
        arrow = {"higher": "↑", "lower": "↓"}.get(self.better, "")
        return f"{printable(self.name)} {arrow}".strip()


@dataclass(frozen=True)
class Content:
    """Everything that a page is made from."""

    lines: Sequence[Line]
    columns: Sequence[Column]
    filters: dict[str, list[str]]
    runs: Sequence[Json]
    pictures: dict[str, Json]

    def data(self) -> Json:
        """Return what the charts are drawn from."""
        known = {}
        for line in self.lines:
            known[printable(line.name)] = line.mark._asdict()
        return {
            "lines": [chart_data(line) for line in self.lines],
            "marks": known,
            "metrics": [printable(column.name) for column in self.columns],
            "runs": {run["run"]: run for run in self.runs},
        }


EMPTY = Content((), (), {key: [] for key in FILTERS}, (), {})


def content(runs: Sequence[Run], where: Where | None = None) -> Content:
    """Return the content of a page over those rows of some runs that fulfil conditions.

    Raises:
        UserError: for conditions on an unknown key, or if nothing fulfils them.
    """
    lines = leaderboard(runs, where)
    if not lines:
        conditions = [f"{key}={text}" for key, text in (where or {}).items()]
        raise UserError(f"report: no run has {', '.join(conditions)}")
    kept = named(lines)
    filters = {}
    for key in FILTERS:
        texts = [line.about[key] for line in lines]
        filters[key] = distinct(texts)
    pictures = {}
    for name, run in kept.items():
        found = pictures_of(run)
        if found:
            pictures[name] = found
    return Content(lines, columns_of(lines), filters, details(kept), pictures)


def named(lines: Sequence[Line]) -> dict[str, Run]:
    """Return the runs of some lines by name, with their fingerprint where two have the same one."""
    runs: dict[tuple[str, str], Run] = {}
    for line in lines:
        for member in line.members:
            result = member.run.result
            runs[result.run_id, result.fingerprint] = member.run
    names = Counter(name for name, _ in runs)
    found = {}
    for (name, fingerprint), run in runs.items():
        title = name if names[name] == 1 else f"{name} {fingerprint[:8]}"
        found[printable(title)] = run
    return found


def distinct(texts: Iterable[str]) -> list[str]:
    """Return different texts in order."""
    return sorted({printable(text) for text in texts})


def columns_of(lines: Sequence[Line]) -> list[Column]:
    """Return the metrics that some line has the mean of: those that all protocols share first."""
    found: dict[str, str] = {}
    for line in lines:
        for name in line.metrics:
            if "/" not in name and name not in HIDDEN:
                found.setdefault(name, line.better[name])
    shared = [name for name in METRICS if name in found]
    own = [name for name in found if name not in METRICS]
    return [Column(name, found[name]) for name in (*shared, *own)]


def chart_data(line: Line) -> Json:
    """Return what the charts show of a line, numbers in their shown units."""
    means, units, tasks = {}, {}, {}
    for name, spread in line.metrics.items():
        if "/" in name:
            continue
        title = printable(name)
        means[title], units[title] = drawn(spread), spread.unit
        by_task = line.tasks(name)
        if by_task:
            tasks[title] = all_drawn(by_task)
    seconds = None if line.seconds is None else rounded(line.seconds)
    memory = None if line.bytes is None else rounded(line.bytes / GIB)
    return {
        "name": printable(line.name),
        "about": {key: printable(line.about[key]) for key in ABOUT},
        "means": means,
        "units": units,
        "tasks": tasks,
        "curve": [[alpha, *drawn(spread)] for alpha, spread in line.curve.items()],
        "seconds": seconds,
        "memory": memory,
    }


def all_drawn(spreads: Mapping[str, Spread]) -> dict[str, list[float | None]]:
    """Return means and their ends by name."""
    return {printable(name): drawn(spread) for name, spread in spreads.items()}


def drawn(spread: Spread) -> list[float | None]:
    """Return a mean and its ends for a chart."""
    return [None if value is None else rounded(value) for value in spread.drawn()]


def rounded(value: float) -> float:
    """Return a number with as many digits as a chart can show."""
    return float(f"{value:.{DIGITS}g}")


# Runs


def details(runs: Mapping[str, Run]) -> list[Json]:
    """Return what is said of each run: its command, what tells it from the others, seeds, data, versions, cost."""
    firsts = {name: next(records_of(run)) for name, run in runs.items()}
    keys = [key for key in telling(list(firsts.values())) if "." in key]
    return [detail(name, run, firsts[name], keys) for name, run in runs.items()]


def detail(name: str, run: Run, record: Record, keys: Iterable[str]) -> Json:
    """Return what is said of one run."""
    result = run.result
    command, overrides = asked(run)
    seeds = {key: value for key, value in record.keys.items() if is_seed(key)}
    packages = result.environment.get("packages", {})
    machine = {key: result.environment.get(key) for key in MACHINE}
    cost = {key: result.timing.get(key) for key in COST}
    differing = {key: record.text(key) for key in keys}
    said = {
        "command": command,
        "changed keys": overrides,
        "differs from others in": pairs(differing),
        "seeds": pairs(seeds),
        "data seen": data_seen(result.data_seen),
        "versions": pairs(packages),
        "machine": pairs(machine),
        "cost": pairs(cost),
        "fingerprint": [result.fingerprint],
    }
    shown = {}
    for title, texts in said.items():
        if texts:
            shown[title] = [printable(text) for text in texts]
    return {
        "run": name,
        "state": run.state,
        "method": printable(record.text("method")),
        "seed": printable(record.text("seed")),
        "said": shown,
    }


def asked(run: Run) -> tuple[list[str], list[str]]:
    """Return the command of a run and the words that changed something, nothing where no status is beside it."""
    if run.folder is None:
        return [], []
    try:
        status = read_status(run.folder)
    except UserError:
        return [], []
    if status is None:
        return [], []
    return [status.command] if status.command else [], list(status.overrides)


def pairs(values: Json) -> list[str]:
    """Return keys with their values as text, those without a value left out."""
    found = []
    for key, value in values.items():
        if value not in (None, "", []):
            found.append(f"{key}: {value}")
    return found


def data_seen(uses: dict[str, list[str]]) -> list[str]:
    """Return which splits were seen for what."""
    return pairs({use: ", ".join(splits) for use, splits in uses.items()})


def pictures_of(run: Run) -> Json:
    """Return what is to be drawn of a run, by name."""
    found = {}
    for name, pictures in panels(run.result).items():
        found[printable(name)] = [safe(picture.data()) for picture in pictures]
    return found


def safe(value: Any) -> Any:
    """Return JSON values in which texts are printable, numbers rounded, and what is infinite is None."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return rounded(value) if math.isfinite(value) else None
    if isinstance(value, list):
        return [safe(item) for item in value]
    if isinstance(value, dict):
        return {printable(key): safe(item) for key, item in value.items()}
    return value
