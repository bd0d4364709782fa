"""Results of earlier schema versions, as they were written, and how they become those of the next one.

A schema that is not written any more never changes, so what is here stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from taskvec.config import Config
from taskvec.protocols.rows import Better, Criterion, Metric, Row, mean

# What could not change a result of schema 1.
IMMATERIAL_1 = (
    "method",
    "experiment",
    "outputs",
    "compute.device",
    "compute.offload",
    "tracker",
    "choices",
    "backbone.recipe",
    "finetune.checkpoint_every",
    "finetune.gradient_checkpointing",
)

# Schema 1 called every number of a row an accuracy. These rows hold other quantities: unit and direction by row.
QUANTITIES_1: dict[str, tuple[str, Better]] = {
    "xi_labels": ("fraction", "lower"),
    "xi_features": ("fraction", "lower"),
    "xi_matrix": ("fraction", "lower"),
    "drift": ("number", "lower"),
    "orthogonality": ("number", "lower"),
    "relative_feature_error": ("fraction", "lower"),
}
# So do tasks of lm-eval that are judged by one of these metrics.
HARNESS_1: dict[str, tuple[str, Better]] = {
    "perplexity": ("perplexity", "lower"),
    "word_perplexity": ("perplexity", "lower"),
    "byte_perplexity": ("perplexity", "lower"),
    "bits_per_byte": ("bits", "lower"),
    "bleu": ("number", "higher"),
    "chrf": ("number", "higher"),
    "ter": ("number", "lower"),
}
# The number that ranked a sweep, by protocol: the metric, and the sign that made more of it better.
PRIMARY_1 = {"addition": ("normalised", 1), "negation": ("accuracy", -1), "disentanglement": ("xi", -1)}


class Row1(Config):
    """A row of schema 1."""

    row: str
    alpha: float | None = None
    alphas: dict[str, float] = {}
    selected_on: str | None = None
    rule: str | None = None
    accuracy: dict[str, float]
    mean: float
    normalised: dict[str, float] = {}
    normalised_mean: float | None = None
    denominators: dict[str, float] = {}
    validation: dict[str, float] = {}
    control: float | None = None
    perplexity: float | None = None


class Stage1(Config):
    """An artefact that a result of schema 1 stands on."""

    kind: str
    label: str
    fingerprint: str


class Result1(Config):
    """A result of schema 1."""

    schema_version: int
    run_id: str
    fingerprint: str
    config: dict[str, Any]
    primary: float
    metrics: dict[str, float]
    rows: tuple[Row1, ...]
    curves: dict[str, list[dict[str, Any]]]
    maps: dict[str, dict[str, Any]] = {}
    data_seen: dict[str, list[str]]
    stages: tuple[Stage1, ...]
    timing: dict[str, Any] = {}
    environment: dict[str, Any] = {}

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a group's settings, empty where the config has none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}


def from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Return the data of schema 1 in schema 2: every metric with its unit, rows with the cells they stand on.

    Raises:
        ValidationError: if it does not fit schema 1.
    """
    old = Result1.model_validate(data)
    rows = [_row(row, old) for row in old.rows]
    kept = ("run_id", "fingerprint", "config", "maps", "data_seen", "timing", "environment")
    return {name: data[name] for name in kept if name in data} | {
        "schema_version": 2,
        "immaterial": IMMATERIAL_1,
        "rows": rows,
        "curves": {name: [_point(point, old) for point in points] for name, points in old.curves.items()},
        "criterion": _criterion(old, rows),
        "stages": data["stages"],
    }


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: from_1}


def _row(row: Row1, old: Result1) -> Row:
    metrics = _judged(row, old)
    if row.normalised_mean is not None:
        metrics["normalised"] = Metric(values=row.normalised, mean=row.normalised_mean)
    if row.validation:
        metrics["validation"] = Metric(values=row.validation, mean=mean(row.validation.values()))
    if row.control is not None:
        metrics["control"] = Metric(mean=row.control)
    if row.perplexity is not None:
        metrics["perplexity"] = Metric(mean=row.perplexity, unit="perplexity", better="lower")
    shared = row.model_dump(include={"row", "alpha", "alphas", "selected_on", "rule", "denominators"})
    return Row(**shared, metrics=metrics, cells=_cells(row, old))


def _judged(row: Row1, old: Result1) -> dict[str, Metric]:
    """Return what a row's "accuracy" was: that, another quantity, or lm-eval's metrics by name."""
    if row.row in QUANTITIES_1:
        unit, better = QUANTITIES_1[row.row]
        return {row.row: Metric(values=row.accuracy, mean=row.mean, unit=unit, better=better)}
    if old.section("protocol").get("kind") == "harness":
        return _by_metric(row.accuracy, _harness_names(old))
    definitions = old.section("suite").get("definitions") or {}
    named = {}
    for task in row.accuracy:
        metric = (definitions.get(task) or {}).get("metric", "accuracy")
        if metric != "accuracy":
            named[task] = metric
    return {"accuracy": Metric(values=row.accuracy, mean=row.mean, by_task=named)}


def _harness_names(old: Result1) -> dict[str, str]:
    """Return the metric that judged each task of lm-eval, without the name of a filter that does nothing."""
    chosen = old.section("protocol").get("metrics") or {}
    first = next(iter(old.maps.values()), {})
    names = {}
    for task, found in first.items():
        main = found.get("main", "") if isinstance(found, dict) else ""
        names[task] = str(chosen.get(task, main)).removesuffix(",none")
    return names


def _by_metric(values: Mapping[str, float], names: Mapping[str, str]) -> dict[str, Metric]:
    """Return lm-eval's numbers by metric; all that are fractions, larger for the better, count as accuracies."""
    grouped: dict[str, dict[str, float]] = {}
    for task, value in values.items():
        name = names.get(task, "").split(",")[0]
        grouped.setdefault(name if name in HARNESS_1 else "accuracy", {})[task] = value
    metrics = {}
    for name, found in grouped.items():
        unit, better = HARNESS_1.get(name, ("fraction", "higher"))
        by_task = {task: names[task] for task in found if task in names} if name == "accuracy" else {}
        metrics[name] = Metric(values=found, mean=mean(found.values()), unit=unit, better=better, by_task=by_task)
    return metrics


def _cells(row: Row1, old: Result1) -> dict[str, str]:
    """Return the fingerprints of a row's cells by task, which schema 1 named only in the labels of stages."""
    cells = {stage.label: stage.fingerprint for stage in old.stages if stage.kind == "cell"}
    name = row.row.replace("_alpha_1", "")
    found = {}
    for task in row.accuracy:
        labels = (f"cell {name}", f"cell {name}/{task}", f"cell merged/{row.alpha}/{task}")
        for label in labels:
            if label in cells:
                found[task] = cells[label]
                break
    return found


def _point(point: Mapping[str, Any], old: Result1) -> dict[str, Any]:
    """Return a point of a curve with every number under its metric's name."""
    new = dict(point)
    if "control" in new and any(row.perplexity is not None for row in old.rows):
        new["perplexity"] = new.pop("control")
    if old.section("protocol").get("kind") == "harness":
        metrics = _by_metric(new.pop("accuracy"), _harness_names(old))
        new |= {name: metric.values for name, metric in metrics.items()}
        new["mean"] = next(iter(metrics.values())).mean
    return new


def _criterion(old: Result1, rows: list[Row]) -> Criterion:
    kind = old.section("protocol").get("kind")
    if kind == "harness":
        merged = next(row for row in rows if row.row != "zero_shot")
        name, metric = next(iter(merged.metrics.items()))
        return Criterion(name=name, value=metric.mean, unit=metric.unit, better=metric.better, split="test")
    name, sign = PRIMARY_1.get(kind, ("accuracy", 1))
    better: Better = "higher" if sign > 0 else "lower"
    return Criterion(name=name, value=sign * old.primary, better=better, split="test")
