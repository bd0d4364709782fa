"""Paired differences between two models with a bootstrap interval over test items and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from taskvec.errors import UserError
from taskvec.runner.result import Result
from taskvec.runner.store import TENSORS

Correct = Mapping[str, np.ndarray]


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval, as fractions."""

    mean: float
    low: float
    high: float


def paired_difference(
    first: Sequence[Correct], second: Sequence[Correct], *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return mean accuracy of ``first`` minus ``second`` with its 95 % percentile bootstrap interval.

    Each sequence holds, per seed, which test items are right per task ([N] bool, the same items everywhere); accuracy
    is the mean over tasks. A resample draws seeds, and within every task the same items for all seeds.
    """
    rng = np.random.default_rng(seed)
    per_task = []
    for task in first[0]:
        gaps = np.stack([a[task].astype(float) - b[task] for a, b in zip(first, second, strict=True)])  # [seeds, N]
        count = gaps.shape[1]
        weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count  # [resamples, N]
        per_task.append((gaps.mean(1), weights @ gaps.T))
    centre = np.mean([plain for plain, _ in per_task])
    drawn = np.mean([resampled for _, resampled in per_task], axis=0)  # [resamples, seeds]
    seeds = rng.integers(0, len(first), size=drawn.shape)
    low, high = np.quantile(np.take_along_axis(drawn, seeds, axis=1).mean(1), [0.025, 0.975])
    return Interval(float(centre), float(low), float(high))


def correct_items(result: Result, outputs: Path, row: str) -> Correct:
    """Return which test items a row of a result gets right, per task, from the cells in the store.

    Raises:
        UserError: if the store no longer holds a cell of the row.
    """
    line = next((r for r in result.rows if r.row == row), None)
    if line is None:
        raise UserError(f"{result.run_id} has no row {row!r} (it has {', '.join(r.row for r in result.rows)})")
    cell = row.replace("_alpha_1", "")
    found = {}
    for task in line.accuracy:
        stage = next(s for s in result.stages if s.label in (f"cell {cell}", f"cell {cell}/{task}"))
        path = outputs / "store" / "cell" / stage.fingerprint / TENSORS
        if not path.is_file():
            raise UserError(f"{path} is not there; run the command of {result.run_id} again")
        found[task] = load_file(path)[f"correct/{float(line.alphas.get(task, line.alpha))}/{task}"]
    return found
