"""Paired differences between rows of runs, seed by seed, with intervals over test items and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.errors import UserError
from taskvec.registry import did_you_mean
from taskvec.report.intervals import correct_items, paired_difference
from taskvec.report.records import records, says
from taskvec.report.table import PERCENT, render
from taskvec.runner.result import Result

SEEDS = "seed"


@dataclass(frozen=True)
class Side:
    """A row of those runs that fulfil ``where``: ``row`` or ``row@key=value@key=value``."""

    row: str
    where: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Side:
        """Return the side that a word of the command line names.

        Raises:
            UserError: if a condition is not of the form key=value.
        """
        row, *conditions = text.split("@")
        for condition in conditions:
            if "=" not in condition:
                raise UserError(f"compare: {condition!r} in {text!r} is not of the form key=value")
        return cls(row, dict(condition.split("=", 1) for condition in conditions))


def compare(
    results: Sequence[Result],
    outputs: Path,
    first: str,
    second: str,
    by: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    style: str = "md",
) -> str:
    """Return mean accuracy of ``first`` minus ``second`` in points with its 95 % interval, one line per group.

    Runs are paired by seed within a group of equal ``by`` keys; only seeds that both sides have count.

    Raises:
        UserError: for unknown keys or rows, or several runs of one side with the same seed in a group.
    """
    known = sorted({key for result in results for record in records(result) for key in record} - {"values"})
    for key in (*by, *(where or {})):
        if key not in known:
            raise UserError(f"compare: unknown key {key!r}{did_you_mean(key, known)}")
    sides = [_found(results, Side.parse(text), by, where or {}) for text in (first, second)]
    lines = []
    for group in dict.fromkeys([*sides[0], *sides[1]]):
        runs = [side.get(group, {}) for side in sides]
        seeds = sorted(runs[0].keys() & runs[1].keys(), key=int)
        if not seeds:
            continue
        items = [
            [correct_items(run[s], outputs, Side.parse(t).row) for s in seeds]
            for run, t in zip(runs, (first, second), strict=True)
        ]
        mean, low, high = (PERCENT * value for value in paired_difference(*items))
        lines.append(
            [*map(str, group), f"{first} - {second}", len(seeds), f"{mean:+.1f}", f"[{low:+.1f}, {high:+.1f}]"]
        )
    if not lines:
        raise UserError(f"compare: no seed has both {first} and {second}; `taskvec table --rows row seed` lists them")
    return render([*by, "difference", "seeds", "points", "95 % interval"], lines, style)


def _found(
    results: Sequence[Result], side: Side, by: Sequence[str], where: Mapping[str, str]
) -> dict[tuple[Any, ...], dict[str, Result]]:
    """Return the runs of one side by group and seed.

    Raises:
        UserError: if two runs of a group have the same seed.
    """
    found: dict[tuple[Any, ...], dict[str, Result]] = {}
    wanted = {**where, **side.where, "row": side.row}
    for result in results:
        for record in records(result):
            if any(not says(value, record.get(key)) for key, value in wanted.items()):
                continue
            group, seed = tuple(record.get(key) for key in by), str(record[SEEDS])
            if seed in found.setdefault(group, {}):
                other = found[group][seed].run_id
                raise UserError(
                    f"compare: {other} and {result.run_id} are the same but for other keys; add --where or --by"
                )
            found[group][seed] = result
    return found
