"""Results as flat records: one per run and row, with every config key and every metric."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from taskvec.errors import UserError
from taskvec.runner.folder import RunFolder, run_folders
from taskvec.runner.result import Result, read_result, row_metrics

METRICS = ("accuracy", "normalised", "control", "perplexity", "alpha")
SHARED = ", "  # between the experiments that share a run
LABELS = ("backbone", "suite", "finetune", "merge", "protocol")


def find_results(places: Iterable[Path]) -> list[Result]:
    """Return the results in outputs folders, run folders and ``result.json`` files.

    Raises:
        UserError: if a place holds no result, or a file is not one.
    """
    results = []
    for place in places:
        if place.is_file():
            results.append(read_result(place))
        elif (place / "result.json").is_file():
            results.append(_labelled(read_result(place / "result.json"), RunFolder(place)))
        elif place.is_dir():
            results += [_labelled(result, folder) for folder in run_folders(place) if (result := folder.result())]
        else:
            raise UserError(f"{place}: no such run, outputs folder or result.json")
    if not results:
        raise UserError(f"no finished run in {', '.join(map(str, places))}; `taskvec status` lists all runs")
    return results


def _labelled(result: Result, folder: RunFolder) -> Result:
    """Return the result under the names of all experiments that share the run."""
    names = dict.fromkeys(filter(None, [result.config.get("experiment"), *folder.experiments()]))
    return result.model_copy(update={"config": result.config | {"experiment": SHARED.join(names) or None}})


def records(result: Result) -> Iterator[dict[str, Any]]:
    """Yield one record per row: labels and flattened config keys, then ``row``, ``metric/...`` values."""
    config = dict(flatten(result.config))
    choices = result.config["choices"]
    labels = {name: choices.get(name) or result.config[name]["kind"] for name in LABELS}
    labels |= {"method": result.config["method"], "experiment": result.config.get("experiment")}
    labels["transform"] = "+".join(result.config["transform"]) or None
    for row in result.rows:
        yield {**config, **labels, "row": row.row, "run": result.run_id, "values": row_metrics(row)}


def flatten(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every leaf of a nested dict; lists as JSON text, to be grouped by."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            text = isinstance(value, list | dict)
            yield f"{prefix}{key}", json.dumps(value, separators=(",", ":")) if text else value


def says(text: str, value: Any) -> bool:
    """Return whether a condition's text stands for a record's value: 6e-4 is 0.0006, empty or null is None, and one
    experiment of several that share a run is enough.
    """
    if value is None:
        return text in ("", "null")
    if isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, int | float):
        with suppress(ValueError):
            return float(text) == value
    return text == str(value) or text in str(value).split(SHARED)
