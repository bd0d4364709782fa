"""Results as flat records: one per row of a run, with every config key and every metric."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from taskvec.errors import UserError
from taskvec.graph.result import Json, Result, flatten, row_metrics
from taskvec.protocols.rows import Better, Row
from taskvec.registry import did_you_mean
from taskvec.report.runs import SHARED, Run

# In the order in which tables show them
METRICS = ("accuracy", "normalised", "control", "perplexity", "alpha")
CHOSEN_BY = "validation"  # recipes are chosen by it, so a table shows it when it is asked for
LABELS = ("backbone", "suite", "finetune", "merge", "protocol")

Names: TypeAlias = Sequence[str]
Where: TypeAlias = Mapping[str, str]


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

    def text(self, key: str) -> str:
        """Return the value of a key as it stands in a table, None as nothing."""
        value = self.keys.get(key)
        return "" if value is None else str(value)

    def texts(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Return the values of several keys as they stand in a table."""
        return tuple(self.text(key) for key in keys)

    def says(self, where: Where) -> bool:
        """Return whether every condition holds."""
        return all(says(text, self.get(key)) for key, text in where.items())

    def flat(self) -> Json:
        """Return keys and numbers in one dict; a metric that is called like a key is ``metric/NAME``."""
        found = dict(self.keys)
        for name, measured in self.metrics.items():
            taken = name in self.keys
            found[f"metric/{name}" if taken else name] = measured.value
        return found


Records: TypeAlias = Sequence[Record]


def records(runs: Iterable[Run | Result]) -> list[Json]:
    """Return one flat dict per row of each run, a list that ``pandas.DataFrame`` takes."""
    return [record.flat() for record in read(runs)]


def read(runs: Iterable[Run | Result]) -> list[Record]:
    """Return one record per row of each run."""
    found: list[Record] = []
    for run in runs:
        known = run if isinstance(run, Run) else Run(run)
        found += records_of(known)
    return found


def records_of(run: Run) -> Iterator[Record]:
    """Yield the records of a run, which differ in ``row`` and metrics only."""
    result = run.result
    keys = dict(flatten(result.config))
    immaterial = result.immaterial_among(keys)
    keys |= labels_of(result.config)
    keys |= {"run": result.run_id, "fingerprint": result.fingerprint, "state": run.state}
    for row in result.rows:
        yield Record(keys | {"row": row.row}, measured(row), immaterial)


def labels_of(config: Json) -> Json:
    """Return the readable names of a run's choices: presets where it took some, else registered names."""
    choices = section(config, "choices")
    labels = {}
    for group in LABELS:
        kind = section(config, group).get("kind")
        labels[group] = choices.get(group) or kind
    transforms = "+".join(section(config, "transform"))
    labels["transform"] = transforms or None
    labels["method"] = config.get("method")
    labels["experiment"] = config.get("experiment")
    return labels


def measured(row: Row) -> dict[str, Measured]:
    """Return a row's numbers with their units, by ``metric`` and ``metric/task``."""
    found = {}
    for name, value in row_metrics(row).items():
        title = name if name in row.metrics else name.split("/", 1)[0]
        if title in row.metrics:
            metric = row.metrics[title]
            found[name] = Measured(value, metric.unit, metric.better)
        else:
            found[name] = Measured(value, "coefficient", "neither")
    return found


def check_keys(found: Records, keys: Iterable[str], verb: str) -> None:
    """Check that some record has each key.

    Raises:
        UserError: for an unknown key.
    """
    known: set[str] = set()
    for record in found:
        known.update(record.keys)
    for key in keys:
        if key not in known:
            hint = did_you_mean(key, sorted(known))
            raise UserError(f"{verb}: unknown key {key!r}{hint}")


def select(found: Records, where: Where) -> list[Record]:
    """Return the records that fulfil every condition.

    Raises:
        UserError: for an unknown key, or if no record is left.
    """
    check_keys(found, where, "table")
    chosen = [record for record in found if record.says(where)]
    if not chosen:
        conditions = [f"{key}={text}" for key, text in where.items()]
        raise UserError(f"table: no record has {', '.join(conditions)}")
    return chosen


def metrics_in(found: Records) -> list[str]:
    """Return the names of all metrics that some record has, those of single tasks included."""
    names: dict[str, None] = {}
    for record in found:
        names |= dict.fromkeys(record.metrics)
    return list(names)


def usual_metrics(found: Records) -> list[str]:
    """Return the metrics that a table shows unasked: those that all protocols share, then the records' own."""
    present = metrics_in(found)
    shared = [name for name in METRICS if name in present]
    known = (*METRICS, CHOSEN_BY)
    own = [name for name in present if name not in known and "/" not in name]
    return shared + own


def check_metrics(found: Records, names: Names, verb: str) -> None:
    """Check that some record has each metric.

    Raises:
        UserError: for an unknown metric.
    """
    present = metrics_in(found)
    for name in names:
        if name not in present:
            hint = did_you_mean(name, present)
            raise UserError(f"{verb}: unknown metric {name!r}{hint}")


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
    shown = str(value)
    return text == shown or text in shown.split(SHARED)


def section(config: Json, name: str) -> Json:
    """Return the settings below a key, none where there are none."""
    found = config.get(name)
    return found if isinstance(found, dict) else {}
