"""Paired differences between two models with a bootstrap interval over test items and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from taskvec.errors import UserError
from taskvec.protocols.metrics import score
from taskvec.runner.result import Result
from taskvec.runner.store import TENSORS

if TYPE_CHECKING:
    from taskvec.data.tasks import Metric

RESAMPLES = 10_000
JUDGED_RESAMPLES = 1_000  # where a resample costs an evaluation of the metric


class Judged(NamedTuple):
    """Labels and predictions [N] of the test items of a task whose ``metric`` is not a mean over items."""

    metric: Metric
    labels: np.ndarray
    predicted: np.ndarray


Correct = Mapping[str, np.ndarray | Judged]


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval, as fractions."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Sequence[Correct], second: Sequence[Correct], *, resamples: int | None = None, seed: int = 0
) -> Interval:
    """Return mean accuracy of ``first`` minus ``second`` with its 95 % percentile bootstrap interval.

    Each sequence holds, per seed, which test items are right per task ([N] bool, the same items everywhere), or labels
    and predictions where another metric judges the task; the mean is over tasks. A resample draws seeds, and within
    every task the same items for all seeds. ``resamples`` None means 10,000, or 1,000 with such metrics.
    """
    rng = np.random.default_rng(seed)
    slow = any(isinstance(items, Judged) for items in first[0].values())
    resamples = resamples or (JUDGED_RESAMPLES if slow else RESAMPLES)
    per_task = []
    for task in first[0]:
        pairs = [(a[task], b[task]) for a, b in zip(first, second, strict=True)]
        if isinstance(pairs[0][0], Judged):
            per_task.append(_judged_gaps(pairs, resamples, rng))
            continue
        gaps = np.stack([a.astype(float) - b for a, b in pairs])  # [seeds, N]
        count = gaps.shape[1]
        weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count  # [resamples, N]
        per_task.append((gaps.mean(1), weights @ gaps.T))
    centre = np.mean([plain for plain, _ in per_task])
    drawn = np.mean([resampled for _, resampled in per_task], axis=0)  # [resamples, seeds]
    seeds = rng.integers(0, len(first), size=drawn.shape)
    low, high = np.quantile(np.take_along_axis(drawn, seeds, axis=1).mean(1), [0.025, 0.975])
    return Interval(float(centre), float(low), float(high))


def _judged_gaps(
    pairs: Sequence[tuple[Judged, Judged]], resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the difference of a metric per seed, on all items [seeds] and on drawn ones [resamples, seeds]."""

    def gaps(items: np.ndarray | slice) -> list[float]:
        return [
            score(a.metric, a.labels[items], a.predicted[items]) - score(b.metric, b.labels[items], b.predicted[items])
            for a, b in pairs
        ]

    count = len(pairs[0][0].labels)
    drawn = [gaps(rng.integers(0, count, count)) for _ in range(resamples)]
    return np.array(gaps(slice(None))), np.array(drawn)


def correct_items(result: Result, outputs: Path, row: str) -> Correct:
    """Return what a row of a result says of the test items, per task, from the cells in the store.

    Raises:
        UserError: if the store no longer holds a cell of the row.
    """
    line = next((r for r in result.rows if r.row == row), None)
    if line is None:
        raise UserError(f"{result.run_id} has no row {row!r} (it has {', '.join(r.row for r in result.rows)})")
    cell = row.replace("_alpha_1", "")
    definitions = result.config["suite"].get("definitions") or {}
    found = {}
    for task in line.accuracy:
        stage = next(s for s in result.stages if s.label in (f"cell {cell}", f"cell {cell}/{task}"))
        path = outputs / "store" / "cell" / stage.fingerprint / TENSORS
        if not path.is_file():
            raise UserError(f"{path} is not there; run the command of {result.run_id} again")
        tensors, key = load_file(path), f"{float(line.alphas.get(task, line.alpha))}/{task}"
        if f"correct/{key}" in tensors:
            found[task] = tensors[f"correct/{key}"]
        else:
            found[task] = Judged(definitions[task]["metric"], *tensors[f"predicted/{key}"].T)
    return found
