"""The published tables that ship as experiments: their jobs, and what each needs and has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from taskvec.errors import UserError
from taskvec.graph.run import RunConfig
from taskvec.registry import did_you_mean
from taskvec.report.against import Comparison, against
from taskvec.report.published import Published
from taskvec.report.runs import Run, find_results
from taskvec.runner import compose, explain, scale
from taskvec.runner.configs import options
from taskvec.runner.expand import expand, experiments, unions
from taskvec.runner.survey import standing
from taskvec.text import printable_lines

FOLDER = "papers/"


@dataclass(frozen=True)
class PaperTable:
    """A published table as an experiment: what it says of the table, and the run of each job."""

    name: str
    published: Published
    jobs: tuple[RunConfig, ...]
    scale: str | None = None


def names() -> list[str]:
    """Return the names of all tables, PAPER/TABLE."""
    found = []
    for name in options("experiment"):
        if name.startswith(FOLDER):
            found.append(name.removeprefix(FOLDER))
    return found


def published_of(name: str) -> Published:
    """Return what a table's experiment says of it.

    Raises:
        UserError: if there is no such table, or its section does not fit.
    """
    name = name.removeprefix(FOLDER)
    known = names()
    if name not in known:
        hint = did_you_mean(name, known)
        raise UserError(f"no published table {name!r}{hint}")
    composed = compose.compose([f"experiment={FOLDER}{name}"])
    section = OmegaConf.to_container(composed.node.published)
    try:
        return explain.checked(Published, section, "published")
    except explain.InvalidError as error:
        raise UserError(error.explain(composed.overrides, compose.sources(composed))) from error


def jobs_of(name: str, words: Sequence[str] = ()) -> list[list[str]]:
    """Return the overrides of each job of a table, ``words`` being those of a command line."""
    name = name.removeprefix(FOLDER)
    jobs = []
    for sweep in unions([f"experiment={FOLDER}{name}", *words]):
        jobs += expand(sweep)
    return jobs


def paper_table(name: str, words: Sequence[str] = ()) -> PaperTable:
    """Return a table with the runs of its jobs.

    Raises:
        UserError: if there is no such table, or a job's config is wrong.
    """
    published = published_of(name)
    jobs = []
    for job in jobs_of(name, words):
        composed = compose.compose(job)
        jobs.append(compose.resolve(composed))
    chosen, _ = scale.taken(words)
    plain = name.removeprefix(FOLDER)
    return PaperTable(plain, published, tuple(jobs), chosen)


def comparison(table: PaperTable, runs: Iterable[Run]) -> Comparison:
    """Return a table with the numbers of some finished runs beside the published ones."""
    choices = scale.load(table.scale).choices if table.scale else None
    return against(table.name, table.published, table.jobs, runs, choices)


def told(table: PaperTable, found: Comparison, style: str = "md") -> list[str]:
    """Return a comparison as text: the table, and what is to be said of it, one line each."""
    lines = [f"{table.name}: {table.published.title}", "", found.text(style), ""]
    lines += found.remarks()
    if found.not_run:
        words = f" scale={table.scale}" if table.scale else ""
        lines.append(f"`taskvec -m experiment={FOLDER}{table.name}{words}` runs them")
    if table.scale:
        lines.append(
            f"scale={table.scale}: ours are of other models and data than theirs, so nothing deviates"
        )
    if table.published.note:
        lines.append(f"note: {table.published.note}")
    lines.append(f"source: {table.published.source}")
    return lines + outside(table, found)


def outside(table: PaperTable, found: Comparison) -> list[str]:
    """Return a line that names the cells beyond the table's tolerance, none where it holds or there is none."""
    tolerance = table.published.tolerance
    if tolerance is None:
        return []
    cells = []
    for name, points in found.outside(tolerance).items():
        cells.append(f"{name} {points:+.1f}")
    listed = ", ".join(cells)
    return [f"beyond {tolerance:g} points: {listed}"] if cells else []


def beside(overrides: Sequence[str]) -> int:
    """Print the published tables that a finished sweep reproduces, and return 1 if one exceeds its tolerance."""
    status = 0
    for name in _reproduced(overrides):
        words = [word for word in overrides if not word.startswith("experiment=")]
        table = paper_table(name, words)
        roots = {config.root for config in table.jobs}
        runs = finished(roots)
        found = comparison(table, runs)
        lines = ["", *told(table, found)]
        text = "\n".join(lines)
        print(printable_lines(text))
        if outside(table, found):
            status = 1
    return status


def finished(roots: Iterable[Path]) -> list[Run]:
    """Return the finished runs below some outputs folders."""
    try:
        return find_results(sorted(roots), standing())
    except UserError:
        return []  # no run is finished


def _reproduced(overrides: Sequence[str]) -> list[str]:
    """Return the published tables among the experiments that a command line names."""
    named = [word for word in overrides if word.startswith("experiment=")]
    chosen = experiments(named[-1]) if named else []
    return [name for name in chosen if name.startswith(FOLDER)]
