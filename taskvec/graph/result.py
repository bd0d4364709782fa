"""``result.json``: the versioned, typed truth about one run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError, model_validator

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.graph.encoding import encode, read_json
from taskvec.graph.migrations import MIGRATIONS
from taskvec.protocols.rows import Criterion, Row

SCHEMA_VERSION = 2
VOLATILE = {"timing", "environment", "immaterial", "migrated_from"}
SAID = 1_000  # problems of a file that are looked at one by one
LENGTH = 200  # of a message about a file
# Since schema 2
MOVED = {"device": "compute.device", "precision": "compute.precision", "offload": "compute.offload"}

Json: TypeAlias = dict[str, Any]


class Stage(Config):
    """One artefact that a result stands on."""

    kind: str
    label: str
    fingerprint: str


class Result(Config):
    """Rows of metrics, how they were chosen, what they stand on, what they cost.

    ``criterion`` sums the run up; one of validation data ranks it in a sweep. ``reports`` holds what stages have to say
    under their names; pictures among it under "figures" (:mod:`taskvec.panel`). ``data_seen`` lists "task/split" by
    use. ``immaterial`` are the dotted keys of the config that cannot change a result. ``migrated_from`` is the schema
    version of the file that it was read from, where an earlier program wrote it. Numbers may be infinite, never NaN.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    fingerprint: str
    config: Json
    immaterial: tuple[str, ...] = ()
    rows: tuple[Row, ...]
    curves: dict[str, list[Json]] = {}
    maps: dict[str, Json] = {}
    criterion: Criterion
    reports: dict[str, Json] = {}
    data_seen: dict[str, list[str]] = {}
    stages: tuple[Stage, ...] = ()
    timing: Json = {}
    environment: Json = {}
    migrated_from: int | None = None

    @model_validator(mode="after")
    def _numbers(self) -> Result:
        for name in ("rows", "curves", "maps", "criterion", "reports"):
            place = not_a_number(getattr(self, name), name)
            if place:
                raise ValueError(f"{place} is not a number")
        return self

    def to_json(self) -> str:
        """Return the text of ``result.json``."""
        return encode(self.model_dump()) + "\n"  # mode="json" would turn infinities into null

    def same_as(self, other: Result) -> bool:
        """Return whether two results agree in all but timing, environment and settings that cannot change them."""
        excluded = VOLATILE | {"config"}
        if self.settings() != other.settings():
            return False
        return self.model_dump(exclude=excluded) == other.model_dump(exclude=excluded)

    def settings(self) -> Json:
        """Return the settings that can change the result, by dotted key."""
        return settings_of(self.config, self.immaterial)

    def immaterial_among(self, keys: Iterable[str]) -> frozenset[str]:
        """Return which dotted keys of the config, or the records that they belong to, cannot change results."""
        return immaterial_among(keys, self.immaterial)


def settings_of(config: Json, immaterial: Iterable[str]) -> Json:
    """Return the settings of a recorded config that can change results, by dotted key."""
    found = dict(flatten(config))
    for key in immaterial_among(found, immaterial):
        del found[key]
    return found


def immaterial_among(keys: Iterable[str], immaterial: Iterable[str]) -> frozenset[str]:
    """Return which dotted keys are among those declared immaterial, or belong to a record that is."""
    records = tuple(f"{declared}." for declared in immaterial)
    return frozenset(key for key in keys if f"{key}.".startswith(records))


def flatten(node: Json, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of a config; lists as JSON text, so that they can be grouped by.

    Settings that stood at the top of a config up to schema 1 have the keys of today.
    """
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{key}.")
        elif isinstance(value, list | dict):
            yield key, json.dumps(value, separators=(",", ":"))
        else:
            yield MOVED.get(key, key), value


def row_metrics(row: Row) -> dict[str, float]:
    """Return a row's numbers: the mean of each metric by name, ``alpha``, and each task's as ``metric/task``."""
    means: dict[str, float] = {}
    by_task: dict[str, float] = {}
    for name, metric in row.metrics.items():
        if metric.mean is not None:
            means[name] = metric.mean
        for task, value in metric.values.items():
            by_task[f"{name}/{task}"] = value
    if row.alpha is not None:
        means["alpha"] = row.alpha
    for task, alpha in row.alphas.items():
        by_task[f"alpha/{task}"] = alpha
    return means | by_task


def flat_metrics(rows: tuple[Row, ...]) -> dict[str, float]:
    """Return ``row/metric`` and ``row/metric/task`` keys, the flat form that dashboards take."""
    found = {}
    for row in rows:
        for name, value in row_metrics(row).items():
            found[f"{row.row}/{name}"] = value
    return found


def not_a_number(value: Any, place: str) -> str | None:
    """Return the place of the first NaN in records, mappings and sequences, None if there is none."""
    if isinstance(value, float):
        return place if math.isnan(value) else None
    if isinstance(value, Config):
        value = dict(value)
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list | tuple):
        children = enumerate(value)
    for key, child in children:
        found = not_a_number(child, f"{place}.{key}")
        if found:
            return found
    return None


def migrate(data: Json) -> Json:
    """Return the data of a result of any earlier schema version in the current one.

    Raises:
        UserError: if the version is newer than this program or unknown.
        ValueError: if the data does not fit the schema that it names.
    """
    first = found = data.get("schema_version")
    while found != SCHEMA_VERSION:
        if not isinstance(found, int) or found not in MIGRATIONS:
            raise UserError(
                f"result schema {found!r}, but this program reads up to {SCHEMA_VERSION}; update taskvec"
            )
        try:
            data = MIGRATIONS[found](data)
        except (LookupError, TypeError, AttributeError, StopIteration) as error:
            raise ValueError(f"does not fit schema {found}") from error
        found = data["schema_version"]
    return data if first == SCHEMA_VERSION else data | {"migrated_from": first}


def read_result(path: Path) -> Result:
    """Return the result in a file, migrated to the current schema.

    Raises:
        UserError: in one line, if the file cannot be read, is too large or too deep, or does not fit the schema.
    """
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a taskvec result")
    try:
        return Result.model_validate(migrate(data))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except ValidationError as error:
        raise UserError(f"{path}: not a taskvec result: {first_problem(error)}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a taskvec result: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first of the problems that a schema has with some data, as "place: problem"."""
    count = error.error_count()
    if count > SAID:  # each takes a kilobyte when it is spelt out
        return f"{count} values do not fit"
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(map(str, problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if place:
        message = f"{place}: {message}"
    return message[:LENGTH]
