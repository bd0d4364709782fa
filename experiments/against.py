"""Rows of an experiment's runs, and their paired difference to one of them, as a table of comma-separated values.

Usage: python experiments/against.py EXPERIMENT[,EXPERIMENT] ROW[@KEY=VALUE...] [--by KEY ...] [--row ROW]
       [--where KEY=VALUE ...] [--outputs FOLDER] [--output FILE]

One line for each group of equal ``by`` keys: seeds, mean accuracy and its sample standard deviation over them, mean
coefficient, and the mean difference to the reference with a 95 % interval over test items and seeds, in points. The
reference of a group is the row that has the group's keys but for those of what the reference sets itself.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from taskvec.errors import UserError
from taskvec.report.compare import Line, Pairs, Side, difference, grouped, lines_of, seed_keys
from taskvec.report.runs import find_results

COLUMNS = ("seeds", "accuracy", "deviation", "alpha", "difference", "low", "high")


def main(arguments: Sequence[str]) -> int:
    """Write the table."""
    options = read(arguments)
    where = dict(word.split("=", 1) for word in options.where)
    runs = find_results([options.outputs])
    found = [line for line in lines_of(runs) if line.says(where)]
    lines = []
    for experiment in options.experiment.split(","):
        lines += [line for line in found if line.says({"experiment": experiment})]
    reference = Side.parse(options.reference)
    table = against(lines, options.row, reference, options.by)
    with open(options.output, "w", newline="") if options.output else sys.stdout as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*options.by, *COLUMNS])
        writer.writerows(table)
    return 0


def read(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment")
    parser.add_argument("reference", metavar="ROW[@KEY=VALUE...]")
    parser.add_argument("--by", nargs="+", default=["backbone", "merge"])
    parser.add_argument("--row", default="merged")
    parser.add_argument("--where", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--output", type=Path)
    return parser.parse_args(arguments)


def against(lines: Sequence[Line], row: str, reference: Side, by: Sequence[str]) -> list[list[str]]:
    """Return the lines of the table, those of highest accuracy first."""
    own = [line for line in lines if line.row.row == row]
    others = reference.of(lines, {})
    set_by_it = reference.where.keys()
    shared = [key for key in by if not {key, key.split(".")[0]} & set_by_it]
    try:
        groups = grouped(own, by, ["seed"])
        references = grouped(others, shared, ["seed"])
    except UserError:  # runs of one seed whose components have seeds of their own
        seeds = sorted(seed_keys(lines))
        groups = grouped(own, by, seeds)
        references = grouped(others, shared, seeds)
    table = []
    for group, rows in groups.items():
        keys = dict(zip(by, group, strict=True))
        peers = references.get(tuple(keys[key] for key in shared), {})
        pairs = [(line, peers[seed]) for seed, line in rows.items() if seed in peers]
        own = list(rows.values())
        table.append([*group, *numbers(own, pairs)])
    place = len(by) + COLUMNS.index("accuracy")

    def best_first(line: list[str]) -> tuple[list[str], float]:
        return line[: len(shared)], -float(line[place])

    return sorted(table, key=best_first)


def numbers(rows: Sequence[Line], pairs: Pairs) -> list[str]:
    """Return what :data:`COLUMNS` names of one group."""
    count = len(rows)
    accuracies = [100 * line.row.mean("accuracy") for line in rows]
    accuracy = f"{statistics.mean(accuracies):.2f}"
    deviation, alpha = "", ""
    if count > 1:
        deviation = f"{statistics.stdev(accuracies):.2f}"
    alphas = [line.row.alpha for line in rows if line.row.alpha is not None]
    if alphas:
        alpha = f"{statistics.mean(alphas):.2f}"
    return [str(count), accuracy, deviation, alpha, *gap(pairs)]


def gap(pairs: Pairs) -> list[str]:
    """Return the mean difference and the ends of its interval in points; nothing without a pair."""
    if not pairs:
        return ["", "", ""]
    found = difference((), pairs, "accuracy").interval
    return [f"{100 * value:+.2f}" for value in (found.mean, found.low, found.high)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
