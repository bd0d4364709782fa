"""Results as flat records: one per row of a run, with every config key and every metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from taskvec.errors import UserError
from taskvec.graph.result import Result, flatten, row_metrics
from taskvec.protocols.rows import Better, Row
from taskvec.registry import did_you_mean
from taskvec.report.runs import SHARED, Run

METRICS = ("accuracy", "normalised", "control", "perplexity", "alpha")  # in the order in which tables show them
CHOSEN_BY = "validation"  # recipes are chosen by it, so a table shows it when it is asked for
LABELS = ("backbone", "suite", "finetune", "merge", "protocol")


@dataclass(frozen=True)
class Measured:
    """One number with its unit and the direction of improvement."""

    value: float
    unit: str
    better: Better = "higher"


@dataclass(frozen=True)
class Record:
    """One row of a run: what it is by key, and its numbers by name (``metric`` and ``metric/task``).

    ``immaterial`` are the keys that cannot change a result.
    """

    keys: Mapping[str, Any]
    metrics: Mapping[str, Measured]
    immaterial: frozenset[str] = frozenset()

    def get(self, key: str) -> Any:
        """Return the value of a key, None where the record does not have it."""
        return self.keys.get(key)

    def says(self, where: Mapping[str, str]) -> bool:
        """Return whether every condition holds."""
        return all(says(text, self.keys.get(key)) for key, text in where.items())

    def flat(self) -> dict[str, Any]:
        """Return keys and numbers in one dict; a metric that is called like a key is ``metric/NAME``."""
        numbers = {}
        for name, measured in self.metrics.items():
            numbers[f"metric/{name}" if name in self.keys else name] = measured.value
        return {**self.keys, **numbers}


def records(runs: Iterable[Run | Result]) -> list[dict[str, Any]]:
    """Return one flat dict per row of each run, a list that ``pandas.DataFrame`` takes."""
    return [record.flat() for record in read(runs)]


def read(runs: Iterable[Run | Result]) -> list[Record]:
    """Return one record per row of each run."""
    found: list[Record] = []
    for run in runs:
        found += records_of(run if isinstance(run, Run) else Run(run))
    return found


def records_of(run: Run) -> Iterator[Record]:
    """Yield the records of a run, which differ in ``row`` and metrics only."""
    result = run.result
    settings = dict(flatten(result.config))
    immaterial = frozenset(key for key in settings if result.is_immaterial(key))
    keys = {**settings, **labels_of(result.config), "run": result.run_id, "fingerprint": result.fingerprint}
    keys["state"] = run.state
    for row in result.rows:
        yield Record({**keys, "row": row.row}, measured(row), immaterial)


def labels_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the readable names of a run's choices: presets where it took some, else registered names."""
    choices = _section(config, "choices")
    labels = {}
    for group in LABELS:
        labels[group] = choices.get(group) or _section(config, group).get("kind")
    labels["method"] = config.get("method")
    labels["experiment"] = config.get("experiment")
    labels["transform"] = "+".join(_section(config, "transform")) or None
    return labels


def measured(row: Row) -> dict[str, Measured]:
    """Return a row's numbers with their units, by ``metric`` and ``metric/task``."""
    found = {}
    for name, value in row_metrics(row).items():
        metric = row.metrics.get(name) or row.metrics.get(name.split("/", 1)[0])
        if metric is None:
            found[name] = Measured(value, "coefficient", "neither")
        else:
            found[name] = Measured(value, metric.unit, metric.better)
    return found


def check_keys(found: Sequence[Record], keys: Iterable[str], verb: str) -> None:
    """Check that some record has each key.

    Raises:
        UserError: for an unknown key.
    """
    known = {key for record in found for key in record.keys}
    for key in keys:
        if key not in known:
            raise UserError(f"{verb}: unknown key {key!r}{did_you_mean(key, sorted(known))}")


def select(found: Sequence[Record], where: Mapping[str, str]) -> list[Record]:
    """Return the records that fulfil every condition.

    Raises:
        UserError: for an unknown key, or if no record is left.
    """
    check_keys(found, where, "table")
    chosen = [record for record in found if record.says(where)]
    if not chosen:
        conditions = ", ".join(f"{key}={text}" for key, text in where.items())
        raise UserError(f"table: no record has {conditions}")
    return chosen


def metrics_of(found: Sequence[Record], names: Sequence[str] | None = None, verb: str = "table") -> list[str]:
    """Return ``names``, or without them the metrics that the records have, those that all protocols share first.

    Raises:
        UserError: for a metric that no record has.
    """
    present = list(dict.fromkeys(name for record in found for name in record.metrics))
    if names is None:
        shared = [name for name in METRICS if name in present]
        own = [name for name in present if name not in (*METRICS, CHOSEN_BY) and "/" not in name]
        return shared + own
    for name in names:
        if name not in present:
            raise UserError(f"{verb}: unknown metric {name!r}{did_you_mean(name, present)}")
    return list(names)


def says(text: str, value: Any) -> bool:
    """Return whether a condition's text stands for a record's value.

    6e-4 is 0.0006, empty or null is None, and one experiment of several that share a run is enough.
    """
    if value is None:
        return text in ("", "null")
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int | float):
        with suppress(ValueError):
            return float(text) == value
    return text == str(value) or text in str(value).split(SHARED)


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}
