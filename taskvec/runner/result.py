"""``result.json``: the versioned, typed truth about one run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from taskvec.config import Config
from taskvec.errors import UserError
from taskvec.protocols.question import Row, mean

SCHEMA_VERSION = 1
VOLATILE = ("timing", "environment")
WHERE_AND_HOW = ("outputs", "device", "offload", "tracker")


class Stage(Config):
    """One artefact a result stands on."""

    kind: str
    label: str
    fingerprint: str


class Result(Config):
    """Metrics, how they were chosen, what they stand on, what they cost.

    Two results are the same if they are equal without their ``timing`` and ``environment`` blocks, and without the
    settings that say where a run works and where it is mirrored.
    """

    schema_version: int = SCHEMA_VERSION
    run_id: str
    fingerprint: str
    config: dict[str, Any]
    primary: float
    metrics: dict[str, float]
    rows: tuple[Row, ...]
    curves: dict[str, list[dict[str, Any]]]
    maps: dict[str, dict[str, Any]] = {}
    data_seen: dict[str, list[str]]
    stages: tuple[Stage, ...]
    timing: dict[str, Any] = {}
    environment: dict[str, Any] = {}

    def same_as(self, other: Result) -> bool:
        """Return whether two results agree in all that matters."""
        excluded = dict.fromkeys(VOLATILE, True) | {"config": set(WHERE_AND_HOW)}
        return self.model_dump(exclude=excluded) == other.model_dump(exclude=excluded)


def row_metrics(row: Row) -> dict[str, float]:
    """Return a row's numbers that are there, as ``metric`` and ``metric/task``."""
    means = {"accuracy": row.mean, "normalised": row.normalised_mean, "control": row.control, "alpha": row.alpha}
    means |= {"perplexity": row.perplexity, "validation": mean(row.validation.values()) if row.validation else None}
    tasks = {"alpha": row.alphas, "accuracy": row.accuracy, "normalised": row.normalised, "validation": row.validation}
    found = {name: value for name, value in means.items() if value is not None}
    return found | {f"{name}/{task}": value for name, values in tasks.items() for task, value in values.items()}


def flat_metrics(rows: tuple[Row, ...]) -> dict[str, float]:
    """Return ``row/metric`` and ``row/metric/task`` keys, the flat form that dashboards take."""
    return {f"{row.row}/{name}": value for row in rows for name, value in row_metrics(row).items()}


# From each earlier schema version, the function that turns its data into the next one's.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


def migrate(data: dict[str, Any]) -> dict[str, Any]:
    """Return a result of any earlier schema version in the current one.

    Raises:
        UserError: if the version is newer than this program or unknown.
    """
    while (found := data.get("schema_version")) != SCHEMA_VERSION:
        if found not in MIGRATIONS:
            raise UserError(f"result schema {found!r}, but this program reads up to {SCHEMA_VERSION}; update taskvec")
        data = MIGRATIONS[found](data)
    return data


def read_result(path: Path) -> Result:
    """Return the result in a file, migrated to the current schema.

    Raises:
        UserError: if the file is missing, is not JSON or does not fit the schema.
    """
    try:
        return Result.model_validate(migrate(json.loads(path.read_text(encoding="utf-8"))))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # pydantic's and json's errors are ValueErrors
        raise UserError(f"{path}: not a taskvec result: {' '.join(str(error).split())[:200]}") from error
