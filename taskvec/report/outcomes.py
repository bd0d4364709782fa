"""What a model said of each test item, as the answers in the store keep it, and how resamples of it are scored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from safetensors import SafetensorError, safe_open

from taskvec.errors import UserError
from taskvec.protocols.metrics import score
from taskvec.protocols.rows import Metric, Row
from taskvec.report.runs import Run

FINGERPRINT = re.compile(r"[0-9a-f]{32}")
TENSORS = "tensors.safetensors"
OF_CONTROL = ("control", "perplexity")
OF_ITEMS = ("accuracy", *OF_CONTROL)  # metrics of which answers keep the outcome per test item


@dataclass(frozen=True)
class Outcome(ABC):
    """What a model said of the N test items of ``data``, from which its score on any resample of them follows."""

    data: str

    slow: ClassVar[bool] = False

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of test items N."""

    @abstractmethod
    def scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the score of each resample [R], given how often it holds each item, [R, N] int."""

    def score(self) -> float:
        """Return the score on the items as they are."""
        return float(self.scores(np.ones((1, self.count), dtype=int))[0])


@dataclass(frozen=True)
class Means(Outcome):
    """A score that is the mean over items of ``values`` [N]: accuracy, exact match."""

    values: np.ndarray

    @property
    def count(self) -> int:
        """The number of test items."""
        return len(self.values)

    def scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the weighted means."""
        return counts @ self.values.astype(float) / self.count


@dataclass(frozen=True)
class Judged(Outcome):
    """Labels and predictions [N] of a task whose ``metric`` is not a mean over items."""

    metric: str
    labels: np.ndarray
    predicted: np.ndarray

    slow: ClassVar[bool] = True

    @property
    def count(self) -> int:
        """The number of test items."""
        return len(self.labels)

    def scores(self, counts: np.ndarray) -> np.ndarray:
        """Return the metric of each resample."""
        found = []
        for times in counts:
            items = np.repeat(np.arange(self.count), times)
            found.append(score(self.metric, self.labels[items], self.predicted[items]))
        return np.array(found)


@dataclass(frozen=True)
class Documents(Outcome):
    """Negative log-likelihood and number of predicted tokens of each document, ``rows`` [N, 2]: a perplexity."""

    rows: np.ndarray

    @property
    def count(self) -> int:
        """The number of documents."""
        return len(self.rows)

    def scores(self, counts: np.ndarray) -> np.ndarray:
        """Return exp(sum of negative log-likelihoods / number of tokens) of each resample."""
        nll, tokens = (counts @ self.rows).T
        with np.errstate(over="ignore"):  # what overflows is infinite
            return np.exp(nll / tokens)


def outcomes(run: Run, row: Row, name: str) -> dict[str, Outcome]:
    """Return a row's outcomes of one metric by task, from the answers in the store; empty where there are none.

    Raises:
        UserError: if the store no longer holds an answer that the row stands on.
    """
    if name not in OF_ITEMS:
        return {}
    found = {}
    for task, fingerprint in answers(row, row.metrics[name]).items():
        outcome = _outcome(run, row, name, task, fingerprint)
        if outcome is None:
            return {}
        found[task] = outcome
    return found


def answers(row: Row, metric: Metric) -> dict[str, str]:
    """Return the fingerprint of the answer that holds each task of a metric; empty where one is not known."""
    shared = row.cells.get("all")
    tasks = list(metric.values) or [task for task in row.cells if task != "all"] or ["all"]
    found = {task: row.cells.get(task, shared) for task in tasks}
    return {} if None in found.values() else found


def _outcome(run: Run, row: Row, name: str, task: str, fingerprint: str) -> Outcome | None:
    suite = run.result.config.get("suite", {})
    data = suite.get("control") if name in OF_CONTROL else task
    judge = row.metrics[name].by_task.get(task)
    alpha = float(row.alphas.get(task, row.alpha or 0.0))
    kept = _read(run, fingerprint, _names(alpha, data, judge))
    if kept is None:
        return None
    tensor_name, tensor = kept
    kind = tensor_name.split("/", 1)[0]
    if kind == "surprise":
        return Documents(data, tensor)
    if kind == "predicted":
        if name in OF_CONTROL:
            judge = suite["definitions"][data]["metric"]
        return Judged(data, judge, tensor[:, 0], tensor[:, 1])
    return Means(data, tensor)


def _names(alpha: float, data: str, judge: str | None) -> list[str]:
    """Return what the tensor of a task may be called, according to how it is judged."""
    names = [f"{kind}/{alpha}/{data}" for kind in ("correct", "predicted", "surprise")]
    if judge is not None:  # lm-eval's metrics, named with their filter
        names += [f"example/{data}/{judge}", f"example/{data}/{judge},none"]
    return names


def _read(run: Run, fingerprint: str, names: Iterable[str]) -> tuple[str, np.ndarray] | None:
    """Return the first of some tensors that an answer holds, with its name.

    Raises:
        UserError: if the answer is not in the store, or cannot be read.
    """
    path = _place(run, fingerprint)
    if path is None:
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            present = set(file.keys())
            for name in names:
                if name in present:
                    return name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return None


def _place(run: Run, fingerprint: str) -> Path | None:
    """Return the file of an answer's tensors, None for an answer that keeps none.

    Raises:
        UserError: if the answer is not in the store.
    """
    if run.store is None or not FINGERPRINT.fullmatch(fingerprint):
        raise UserError(f"{run.result.run_id}: its answers are not at hand; compare the run in its outputs folder")
    with suppress(StopIteration):
        folder = next(run.store.glob(f"*/{fingerprint}"))
        path = folder / TENSORS
        return path if path.is_file() else None
    raise UserError(f"{run.store}/*/{fingerprint} is not there; run the command of {run.result.run_id} again")
