"""Published tables: their cells, which ship as one CSV file, and which of our rows stands beside which of theirs."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from taskvec.config import Config

FILE = Path(__file__).resolve().parent / "published.csv"
MEAN = "mean"  # the task name of a row's average
# Our names of published metrics where they differ; the accuracy of a row is the metric of each of its tasks
OURS = {"target": "accuracy", "score": "accuracy", "gain over zero-shot": "accuracy"}

Beside = dict[str, str | int | float | bool | None]


class Published(Config):
    """What an experiment that reproduces a published table says about that table.

    ``rows`` maps each of the table's rows to the conditions on keys that choose ours (``row: "merged/*"`` is the mean
    over all such rows of a run), or to the reason why there is none. ``minus`` names a row that is taken off ours.
    ``tolerance`` in points makes the table a check. ``mini`` are overrides of the form that runs on the embedded
    suites, null for a key to drop.
    """

    title: str
    source: str
    note: str = ""
    rows: dict[str, Beside | str] = Field(min_length=1)
    minus: str | None = None
    mini: Beside = {}
    tolerance: float | None = Field(None, gt=0)


class Place(NamedTuple):
    """Which cell of a published table: its row and metric as published, backbone, suite and task by our names."""

    backbone: str
    suite: str
    row: str
    metric: str
    task: str


@cache
def published_cells() -> dict[str, dict[Place, float]]:
    """Return percentages by table ("tak/addition") and cell, in the order of publication."""
    found: dict[str, dict[Place, float]] = {}
    with FILE.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            cells = found.setdefault(line["table"], {})
            for cell in line["cells"].split():
                task, _, percent = cell.partition("=")
                place = Place(line["backbone"], line["suite"], line["row"], line["metric"], task)
                cells[place] = float(percent)
    return found
