"""The published tables that ship as experiments: their jobs, and what each needs and has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf

from taskvec.errors import UserError
from taskvec.graph.run import RunConfig
from taskvec.registry import did_you_mean
from taskvec.report.published import Published
from taskvec.runner import compose, explain, scale
from taskvec.runner.configs import options
from taskvec.runner.expand import expand, unions

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
    experiments = options("experiment")
    return [name.removeprefix(FOLDER) for name in experiments if name.startswith(FOLDER)]


def published_of(name: str) -> Published:
    """Return what a table's experiment says of it.

    Raises:
        UserError: if there is no such table, or its section does not fit.
    """
    name = name.removeprefix(FOLDER)
    if name not in names():
        raise UserError(f"no published table {name!r}{did_you_mean(name, names())}")
    composed = compose.compose([f"experiment={FOLDER}{name}"])
    section = OmegaConf.to_container(composed.node.published)
    try:
        return explain.checked(Published, section, "published")
    except explain.InvalidError as error:
        raise UserError(error.explain(composed.overrides, compose.sources(composed))) from error


def jobs_of(name: str, words: Sequence[str] = ()) -> list[list[str]]:
    """Return the overrides of each job of a table, ``words`` being those of a command line."""
    name = name.removeprefix(FOLDER)
    sweeps = unions([f"experiment={FOLDER}{name}", *words])
    return [job for sweep in sweeps for job in expand(sweep)]


def paper_table(name: str, words: Sequence[str] = ()) -> PaperTable:
    """Return a table with the runs of its jobs.

    Raises:
        UserError: if there is no such table, or a job's config is wrong.
    """
    published = published_of(name)
    jobs = [compose.resolve(compose.compose(job)) for job in jobs_of(name, words)]
    chosen, _ = scale.taken(words)
    return PaperTable(name.removeprefix(FOLDER), published, tuple(jobs), chosen)
