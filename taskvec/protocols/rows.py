"""What a protocol says of its answers: rows of metrics with their units, curves, maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from taskvec.config import Config

Better = Literal["higher", "lower", "neither"]


class Metric(Config):
    """One quantity of a row: its value per task and their mean.

    ``unit`` "fraction" is shown in percent, others as they are; ``better`` is the direction of improvement.
    ``by_task`` names the metric of a task that is judged otherwise than the row's others ("matthews").
    """

    values: dict[str, float] = {}
    mean: float | None = None
    unit: str = "fraction"
    better: Better = "higher"
    by_task: dict[str, str] = {}


class Row(Config):
    """One line of a result: a named model, how its coefficient was chosen, and its metrics by name.

    Names that every protocol shares: ``accuracy`` (on the test split; the metric of each task), ``normalised`` (divided
    by the individually fine-tuned model's, whose values are ``denominators``), ``validation`` (``accuracy`` on the
    validation split), ``control``, ``perplexity``. ``alphas`` holds each task's coefficient where tasks have their own;
    ``alpha`` is their mean. ``cells`` are the fingerprints of the answers that the row stands on, by task or as "all".
    """

    row: str
    alpha: float | None = None
    alphas: dict[str, float] = {}
    selected_on: str | None = None
    rule: str | None = None
    metrics: dict[str, Metric] = {}
    denominators: dict[str, float] = {}
    cells: dict[str, str] = {}

    def mean(self, metric: str) -> float | None:
        """Return a metric's mean, None where the row does not have it."""
        return self.metrics[metric].mean if metric in self.metrics else None

    def values(self, metric: str) -> dict[str, float]:
        """Return a metric's values by task, empty where the row does not have it."""
        return self.metrics[metric].values if metric in self.metrics else {}


class Criterion(Config):
    """The number that sums a run up; only one of validation data ranks the runs of a sweep."""

    name: str
    value: float
    unit: str = "fraction"
    better: Better = "higher"
    split: str = "val"

    @property
    def ranks(self) -> bool:
        """Whether runs may be chosen by it: it was measured on validation data, and has a better direction."""
        return self.split == "val" and self.better != "neither"


class Report(Config):
    """What a protocol makes of its answers: rows, coefficient curves, matrices and maps by name, and the criterion."""

    rows: tuple[Row, ...]
    curves: dict[str, list[dict[str, Any]]] = {}
    maps: dict[str, dict[str, Any]] = {}
    criterion: Criterion


def metric(values: Mapping[str, float], **more: Any) -> Metric:
    """Return a metric whose mean is that of its values."""
    average = mean(values.values()) if values else None
    return Metric(values=dict(values), mean=average, **more)


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    values = list(values)
    return sum(values) / len(values)
