"""Alignment error on held-out activations by the number of calibration images, against random maps, as a table.

Usage: python experiments/theseus/errors.py [--outputs FOLDER] [--output FILE]

Of the runs of experiment=theseus/batches on the tasks' own images: mean and largest error over spaces and tasks, and
the least number of standard deviations by which a map's error lies below the mean of random maps, which is 1.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from taskvec.report.compare import Line, lines_of
from taskvec.report.runs import find_results

COLUMNS = ("examples", "maps", "mean error", "largest error", "least distance below random")
WHERE = {"experiment": "theseus/batches", "row": "transported"}


def main(arguments: Sequence[str]) -> int:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--outputs", type=Path, default=Path("outputs"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    found: dict[int, list[dict[str, Any]]] = {}
    lines = lines_of(find_results([options.outputs]))
    for line in filter(of_the_experiment, lines):
        settings = line.run.result.config["transform"]["theseus"]
        if settings["calibration"] is None:
            found.setdefault(settings["examples"], []).extend(maps_of(line.run.result.reports))
    with open(options.output, "w", newline="") if options.output else sys.stdout as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for examples, maps in sorted(found.items()):
            writer.writerow([examples, len(maps), *numbers(maps)])
    return 0


def of_the_experiment(line: Line) -> bool:
    """Return whether a row is one of the experiment's carried vectors."""
    return line.says(WHERE)


def maps_of(reports: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what a run reports of each map that was measured."""
    for report in reports.values():
        for described in report.get("maps", {}).values():
            if "random_spread" in described:
                yield described


def numbers(maps: Sequence[dict[str, Any]]) -> list[str]:
    """Return mean and largest error, and the least distance from random maps in their standard deviations."""
    errors = [described["held_out_error"] for described in maps]
    distances = [(1 - found["held_out_error"]) / found["random_spread"] for found in maps]
    mean, largest, least = statistics.mean(errors), max(errors), min(distances)
    return [f"{mean:.4f}", f"{largest:.4f}", f"{least:.0f}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
