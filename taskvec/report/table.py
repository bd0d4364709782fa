"""Tables over any set of runs: rows and columns by any config key, mean and standard deviation over the rest."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from taskvec.errors import UserError
from taskvec.registry import did_you_mean
from taskvec.report.records import METRICS, records, says
from taskvec.runner.result import WHERE_AND_HOW, Result
from taskvec.training.recipe import Recipe

FORMATS = {"md": "github", "latex": "latex_booktabs", "csv": "csv"}
NOT_SPLIT = {"seed", "run", "row", "experiment", *WHERE_AND_HOW, *(f"finetune.{key}" for key in Recipe.unfingerprinted)}
NOT_SPLIT_BELOW = ("choices.", "tracker", "backbone.recipe.")
PERCENT = 100
NOT_PERCENT = ("alpha", "perplexity")


def run_table(result: Result) -> str:
    """Return one run's rows: each task's accuracy, or the metric its heading names, in percent, then what sums up."""
    tasks = list(dict.fromkeys(task for row in result.rows for task in row.accuracy))
    known = ("normalised_mean", "control", "perplexity")
    shown = [name for name in known if any(getattr(row, name) is not None for row in result.rows)]
    lines = []
    for row in result.rows:
        cells = [row.accuracy.get(task) for task in tasks] + [row.mean]
        extra = [number(getattr(row, name)) if name == "perplexity" else percent(getattr(row, name)) for name in shown]
        lines.append([row.row, "" if row.alpha is None else f"{row.alpha:.3g}", *map(percent, cells), *extra])
    definitions = result.config.get("suite", {}).get("definitions") or {}
    metrics = {task: (definitions.get(task) or {}).get("metric", "accuracy") for task in tasks}
    named = [task if metrics[task] == "accuracy" else f"{task} ({metrics[task]})" for task in tasks]
    heads = ["", "alpha", *named, "mean", *(name.removesuffix("_mean") for name in shown)]
    return tabulate(lines, headers=heads, tablefmt="github", disable_numparse=True, stralign="right")


def percent(value: float | None) -> str:
    """Return a fraction as percent with one decimal, empty for None."""
    return "" if value is None else f"{PERCENT * value:.1f}"


def number(value: float | None) -> str:
    """Return a number with two decimals, empty for None."""
    return "" if value is None else f"{value:.2f}"


def table(
    results: Sequence[Result],
    rows: Sequence[str],
    columns: Sequence[str],
    metrics: Sequence[str] | None = None,
    style: str = "md",
    where: Mapping[str, str] | None = None,
) -> str:
    """Return mean ± sample standard deviation of each metric per row and column group; ``where`` filters records.

    Runs that differ in a key that is neither a row nor a column nor a seed are not averaged: the key becomes a row key.
    Nor are different metrics, or different rows of one run.
    ``metrics`` None means those of :data:`METRICS` that have values.

    Raises:
        UserError: for an unknown key or metric.
    """
    lines = [record for result in results for record in records(result)]
    known = sorted({key for line in lines for key in line} - {"values"})
    available = list(dict.fromkeys([*METRICS, *(name for line in lines for name in line["values"])]))
    for key in (*rows, *columns, *(where or {})):
        if key not in known and key != "metric":
            raise UserError(f"table: unknown key {key!r}{did_you_mean(key, [*known, 'metric'])}")
    lines = [line for line in lines if all(says(v, line.get(k)) for k, v in (where or {}).items())]
    metrics = metrics or [m for m in METRICS if any(line["values"].get(m) is not None for line in lines)]
    for metric in metrics:
        if metric not in available:
            raise UserError(f"table: unknown metric {metric!r}{did_you_mean(metric, available)}")
    if not lines:
        raise UserError(f"table: no record has {', '.join(f'{k}={v}' for k, v in (where or {}).items())}")
    if len(metrics) > 1 and "metric" not in (*rows, *columns):
        columns = [*columns, "metric"]
    if len({line["row"] for line in lines}) > 1 and "row" not in (*rows, *columns):
        rows = [*rows, "row"]
    rows = [*rows, *undeclared(lines, (*rows, *columns))]
    lines = [{**line, "metric": m, "value": line["values"].get(m)} for line in lines for m in metrics]
    lines = [line for line in lines if line["value"] is not None]
    heads = list(dict.fromkeys(tuple(line.get(c) for c in columns) for line in lines))
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], list[float]]] = {}
    for line in lines:
        key = tuple(line.get(r) for r in rows)
        groups.setdefault(key, {}).setdefault(tuple(line.get(c) for c in columns), []).append(
            line["value"] if line["metric"].startswith(NOT_PERCENT) else PERCENT * line["value"]
        )
    names = [" ".join(map(_text, head)) for head in heads]
    if style == "csv":
        names = [name for head in names for name in (head, f"{head} std")]
        body = [
            [*map(_text, key), *(n for h in heads for n in exact(cells.get(h, [])))] for key, cells in groups.items()
        ]
        return render([*rows, *names], body, style)
    digits = {tuple(line.get(c) for c in columns): 2 if line["metric"].startswith(NOT_PERCENT) else 1 for line in lines}
    body = [
        [*map(_text, key), *(summarised(cells.get(h, []), digits[h]) for h in heads)] for key, cells in groups.items()
    ]
    return render([*rows, *names], body, style)


def undeclared(lines: Sequence[dict[str, Any]], declared: Sequence[str]) -> list[str]:
    """Return the keys by which runs differ although they share every declared key, the fewest that tell them apart."""
    extra: list[str] = []
    found = dict.fromkeys(key for line in lines for key in line)
    keys = [k for k in found if k not in NOT_SPLIT and k != "values" and not k.startswith(NOT_SPLIT_BELOW)]
    labels = [k for k in keys if "." not in k] + [k for k in keys if "." in k]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault(tuple(_text(line.get(k)) for k in (*declared, "row")), []).append(line)
    for key in labels:
        if key in declared:
            continue
        for members in groups.values():
            told = {(tuple(_text(m.get(e)) for e in extra), _text(m.get(key))) for m in members}
            if len(told) > len({told_apart[0] for told_apart in told}):
                extra.append(key)
                break
    return extra


def exact(values: Sequence[float]) -> tuple[str, str]:
    """Return mean and sample standard deviation in full precision, empty where there is none."""
    centre = repr(statistics.fmean(values)) if values else ""
    return centre, repr(statistics.stdev(values)) if len(values) > 1 else ""


def summarised(values: Sequence[float], digits: int) -> str:
    """Return "mean ± deviation" (n > 1), the value, or nothing."""
    if not values:
        return ""
    centre = statistics.fmean(values)
    if len(values) == 1:
        return f"{centre:.{digits}f}"
    return f"{centre:.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def render(heads: Sequence[str], body: Sequence[Sequence[str]], style: str) -> str:
    """Return the table as markdown, LaTeX (booktabs) or CSV."""
    if style == "csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([heads, *body])
        return out.getvalue().rstrip("\n")
    text = tabulate(body, headers=heads, tablefmt=FORMATS[style], disable_numparse=True)
    return text.replace("±", "$\\pm$") if style == "latex" else text


def _text(value: Any) -> str:
    return "" if value is None else str(value)
