"""Results of earlier schema versions, as they were written, and how they become those of the next one.

A schema that is not written any more never changes, so what is here stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from taskvec.config import Config
from taskvec.protocols.rows import Better, Criterion, Metric, Row, metric

Json: TypeAlias = dict[str, Any]
Kind: TypeAlias = tuple[str, Better]  # a unit, and the direction of improvement
Metrics: TypeAlias = dict[str, Metric]

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
QUANTITIES_1: dict[str, Kind] = {
    "xi_labels": ("fraction", "lower"),
    "xi_features": ("fraction", "lower"),
    "xi_matrix": ("fraction", "lower"),
    "drift": ("number", "lower"),
    "orthogonality": ("number", "lower"),
    "relative_feature_error": ("fraction", "lower"),
}
# So do tasks of lm-eval that are judged by one of these metrics.
HARNESS_1: dict[str, Kind] = {
    "perplexity": ("perplexity", "lower"),
    "word_perplexity": ("perplexity", "lower"),
    "byte_perplexity": ("perplexity", "lower"),
    "bits_per_byte": ("bits", "lower"),
    "bleu": ("number", "higher"),
    "chrf": ("number", "higher"),
    "ter": ("number", "lower"),
}
# The number that ranked a sweep, by protocol: the metric, and the sign that made more of it better.
PRIMARY_1 = {
    "addition": ("normalised", 1),
    "negation": ("accuracy", -1),
    "disentanglement": ("xi", -1),
}


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
    config: Json
    primary: float
    metrics: dict[str, float]
    rows: tuple[Row1, ...]
    curves: dict[str, list[Json]]
    maps: dict[str, Json] = {}
    data_seen: dict[str, list[str]]
    stages: tuple[Stage1, ...]
    timing: Json = {}
    environment: Json = {}

    def section(self, name: str) -> Json:
        """Return a group's settings, empty where the config has none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def protocol(self) -> str | None:
        """The registered name of the protocol."""
        return self.section("protocol").get("kind")

    @property
    def cells(self) -> dict[str, str]:
        """The fingerprints of the answers by label."""
        return {stage.label: stage.fingerprint for stage in self.stages if stage.kind == "cell"}


KEPT = ("run_id", "fingerprint", "config", "maps", "data_seen", "stages", "timing", "environment")


def from_1(data: Json) -> Json:
    """Return the data of schema 1 in schema 2: every metric with its unit, rows with the cells they stand on.

    Raises:
        ValidationError: if it does not fit schema 1.
    """
    old = Result1.model_validate(data)
    new = {name: data[name] for name in KEPT if name in data}
    new["schema_version"] = 2
    new["immaterial"] = IMMATERIAL_1
    new["rows"] = [_row(row, old) for row in old.rows]
    new["criterion"] = _criterion(old, new["rows"])
    new["curves"] = {}
    for name, points in old.curves.items():
        new["curves"][name] = [_point(point, old) for point in points]
    return new


MIGRATIONS: dict[int, Callable[[Json], Json]] = {1: from_1}


def _row(row: Row1, old: Result1) -> Row:
    metrics = _judged(row, old)
    if row.normalised_mean is not None:
        metrics["normalised"] = Metric(values=row.normalised, mean=row.normalised_mean)
    if row.validation:
        metrics["validation"] = metric(row.validation)
    if row.control is not None:
        metrics["control"] = Metric(mean=row.control)
    if row.perplexity is not None:
        metrics["perplexity"] = Metric(mean=row.perplexity, unit="perplexity", better="lower")
    shared = row.model_dump(
        include={"row", "alpha", "alphas", "selected_on", "rule", "denominators"}
    )
    return Row(**shared, metrics=metrics, cells=_cells(row, old))


def _judged(row: Row1, old: Result1) -> Metrics:
    """Return what a row's "accuracy" was: that, another quantity, or lm-eval's metrics by name."""
    if row.row in QUANTITIES_1:
        unit, better = QUANTITIES_1[row.row]
        return {row.row: Metric(values=row.accuracy, mean=row.mean, unit=unit, better=better)}
    if old.protocol == "harness":
        return _by_metric(row.accuracy, old)
    definitions = old.section("suite").get("definitions") or {}
    by_task = {}
    for task in row.accuracy:
        definition = definitions.get(task) or {}
        judge = definition.get("metric", "accuracy")
        if judge != "accuracy":
            by_task[task] = judge
    return {"accuracy": Metric(values=row.accuracy, mean=row.mean, by_task=by_task)}


def _by_metric(values: Mapping[str, float], old: Result1) -> Metrics:
    """Return lm-eval's numbers by metric; all that are fractions, larger for the better, count as accuracies."""
    judges = {task: _harness_judge(task, old) for task in values}
    groups: dict[str, dict[str, float]] = {}
    for task, value in values.items():
        judge = judges[task].split(",")[0]
        name = judge if judge in HARNESS_1 else "accuracy"
        group = groups.setdefault(name, {})
        group[task] = value
    metrics = {}
    for name, found in groups.items():
        if name in HARNESS_1:
            unit, better = HARNESS_1[name]
            metrics[name] = metric(found, unit=unit, better=better)
        else:
            metrics[name] = metric(found, by_task={task: judges[task] for task in found})
    return metrics


def _harness_judge(task: str, old: Result1) -> str:
    """Return the metric that judged a task of lm-eval, without the name of a filter that does nothing."""
    chosen = old.section("protocol").get("metrics") or {}
    first = next(iter(old.maps.values()))
    judge = chosen.get(task, first[task]["main"])
    return judge.removesuffix(",none")


def _cells(row: Row1, old: Result1) -> dict[str, str]:
    """Return the fingerprints of a row's cells by task, which schema 1 named only in the labels of stages."""
    cells = old.cells
    name = row.row.replace("_alpha_1", "")
    found = {}
    for task in row.accuracy:
        # One cell for all tasks, one for each, or lm-eval's at a coefficient.
        for label in (f"cell {name}", f"cell {name}/{task}", f"cell merged/{row.alpha}/{task}"):
            if label in cells:
                found[task] = cells[label]
                break
    return found


def _point(point: Json, old: Result1) -> Json:
    """Return a point of a curve with every number under its metric's name."""
    new = dict(point)
    corpus = any(row.perplexity is not None for row in old.rows)
    if corpus and "control" in new:
        new["perplexity"] = new.pop("control")
    if old.protocol == "harness":
        metrics = _by_metric(new.pop("accuracy"), old)
        for name, found in metrics.items():
            new[name] = found.values
        main = next(iter(metrics.values()))
        new["mean"] = main.mean
    return new


def _criterion(old: Result1, rows: Sequence[Row]) -> Criterion:
    if old.protocol == "harness":
        merged = next(row for row in rows if row.row != "zero_shot")
        name = next(iter(merged.metrics))
        main = merged.metrics[name]
        return Criterion(
            name=name, value=main.mean, unit=main.unit, better=main.better, split="test"
        )
    name, sign = PRIMARY_1.get(old.protocol, ("accuracy", 1))
    better: Better = "higher" if sign > 0 else "lower"
    return Criterion(name=name, value=sign * old.primary, better=better, split="test")
