"""How metrics of any set of runs move with a number among their settings: one picture for each metric."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence

from taskvec.errors import UserError
from taskvec.panel import Lines
from taskvec.report.records import Names, Record, Where, check_keys, check_metrics, read, select
from taskvec.report.runs import Run
from taskvec.report.spread import over_seeds
from taskvec.report.table import METRIC, Table, Values, aggregate

log = logging.getLogger(__name__)

USUAL = "accuracy"
Points = list[tuple[float, float]]


def trends(
    runs: Iterable[Run], over: str, lines: Names, metrics: Names | None, where: Where
) -> list[Lines]:
    """Return a picture of each metric over a key, a line for each value of the keys ``lines`` and what tells apart.

    Points are means over seeds with their 95 % intervals (:func:`taskvec.report.spread.over_seeds`). Runs in which the
    key is null have no place, and are left out with a word.

    Raises:
        UserError: for an unknown key or metric, a key whose values are no numbers, or if no record is left.
    """
    everything = read(runs)
    metrics = metrics or [USUAL]
    check_keys(everything, [over, *lines], "figure")
    check_metrics(everything, metrics, "figure")
    records = _placed(select(everything, where), over)
    found = aggregate(records, [over, *lines], [METRIC], metrics)
    return [_picture(found, head, over) for head in found.heads]


def _placed(records: Sequence[Record], over: str) -> list[Record]:
    """Return the records that have a place along a key.

    Raises:
        UserError: if none has.
    """
    found = [record for record in records if record.text(over)]
    if not found:
        raise UserError(f"figure: --over {over}: it is null in all these runs")
    if len(found) < len(records):
        left_out = len(records) - len(found)
        log.warning("figure: %s is null in %d of %d rows, left out", over, left_out, len(records))
    return found


def _picture(found: Table, head: Values, over: str) -> Lines:
    (name,) = head
    series: dict[str, Points] = {}
    low: dict[str, Points] = {}
    high: dict[str, Points] = {}
    unit = "number"
    for values, cells in found.lines.items():
        sample = cells.get(head)
        if sample is None:
            continue
        place, *rest = values
        label = " ".join(part for part in rest if part) or name
        x = _number(place, over)
        unit = sample.unit
        spread = over_seeds(sample.values, unit)
        if not math.isfinite(spread.mean):
            continue
        centre, least, most = spread.drawn()
        series.setdefault(label, []).append((x, centre))
        if spread.known:
            low.setdefault(label, []).append((x, least))
            high.setdefault(label, []).append((x, most))
    y = f"{name}, %" if unit == "fraction" else name
    return Lines(
        title=name,
        x=over,
        y=y,
        series=_sorted(series),
        low=_sorted(low),
        high=_sorted(high),
    )


def _number(text: str, key: str) -> float:
    """Return the number that a key's value is.

    Raises:
        UserError: if it is none.
    """
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"figure: --over {key}: {text or 'null'!r} is no number; --where leaves runs out"
        ) from None


def _sorted(curves: Mapping[str, Points]) -> dict[str, tuple[tuple[float, float], ...]]:
    return {name: tuple(sorted(points)) for name, points in curves.items()}
