"""Finished runs as records for a program: a list, a data frame, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from taskvec.errors import UserError
from taskvec.graph.result import Json
from taskvec.report.drawn import Drawn
from taskvec.report.leaderboard import leaderboard
from taskvec.report.records import Names, Record, Where, read, select, usual_metrics
from taskvec.report.render import render
from taskvec.report.runs import Run, find_results
from taskvec.report.summary import picture
from taskvec.report.table import aggregate, short_grid
from taskvec.runner.survey import standing

if TYPE_CHECKING:
    import pandas


class Runs(Sequence[Json]):
    """The rows of finished runs: flat dicts of config keys, ``row`` and numbers (``accuracy``, ``accuracy/TASK``).

    ``finished`` are the runs that they come from, with their folders, ``where`` the conditions that chose them.
    """

    def __init__(self, finished: Sequence[Run], records: Sequence[Record], where: Where):
        self.finished, self.records, self.where = list(finished), list(records), where

    @overload
    def __getitem__(self, place: int) -> Json: ...
    @overload
    def __getitem__(self, place: slice) -> list[Json]: ...
    def __getitem__(self, place):
        """Return one record, or those of a slice."""
        if isinstance(place, slice):
            return [record.flat() for record in self.records[place]]
        return self.records[place].flat()

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"Runs({len(self)} records of {len(self.finished)} runs)"

    def _repr_html_(self) -> str:
        """Return the mean and deviation over seeds as a notebook shows them."""
        return self.table(style="html")

    def figure(self, kind: str = "bars", metric: str = "accuracy") -> Drawn:
        """Return one of the pictures over runs that ``taskvec figure --of`` draws.

        Raises:
            UserError: for an unknown kind or metric, or runs of which there is nothing to draw.
        """
        lines = leaderboard(self.finished, self.where)
        return Drawn([picture(lines, kind, metric)])

    def frame(self) -> pandas.DataFrame:
        """Return the records as a pandas data frame, one line each.

        Raises:
            UserError: if pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("runs().frame() needs pandas: pip install pandas") from error
        return pandas.DataFrame(list(self))

    def table(
        self,
        rows: Names = ("method", "row"),
        columns: Names = ("metric",),
        metrics: Names | None = None,
        style: str = "md",
    ) -> str:
        """Return mean and deviation over seeds as ``taskvec table`` prints them, in one of its formats."""
        found = aggregate(self.records, rows, columns, metrics or usual_metrics(self.records))
        return render(short_grid(found), style)


def runs(*places: str | Path, where: Mapping[str, Any] | None = None, stale: bool = False) -> Runs:
    """Return the finished runs of outputs folders, run folders and ``result.json`` files (none given: ``outputs``).

    ``where`` keeps records by keys of their config, ``row`` among them: ``where={"protocol": "negation", "seed": 0}``.
    Runs whose inputs have changed since are left out unless ``stale``.

    Raises:
        UserError: if no place holds a finished run, for an unknown key, or if no record is left.
    """
    folders = [Path(place) for place in places or ("outputs",)]
    found = find_results(folders, standing(), stale=stale)
    conditions = {}
    for key, value in (where or {}).items():
        conditions[key] = _text(value)
    records = read(found)
    chosen = select(records, conditions)
    named = {record.get("run") for record in chosen}
    kept = [run for run in found if run.result.run_id in named]
    return Runs(kept, chosen, conditions)


def _text(value: Any) -> str:
    """Return a condition's value as the command line has it."""
    return "null" if value is None else str(value)
