"""What a model said of each test item, as the answers in the store keep it, and how resamples of it are scored."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from taskvec.data.tasks import Metric as TaskMetric
from taskvec.errors import UserError
from taskvec.protocols.metrics import score
from taskvec.protocols.rows import Row
from taskvec.report.records import section
from taskvec.report.runs import Run

FINGERPRINT = re.compile(r"[0-9a-f]{32}")
TENSORS = "tensors.safetensors"
ALL = "all"  # in a row's cells: one answer for all tasks
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
        once = np.ones((1, self.count), dtype=int)
        return float(self.scores(once)[0])


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
        numbers = np.arange(self.count)
        found = []
        for times in counts:
            items = np.repeat(numbers, times)
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
    for task in tasks_of(row, name):
        outcome = _outcome(run, row, name, task)
        if outcome is None:
            return {}
        found[task] = outcome
    return found


def tasks_of(row: Row, name: str) -> list[str]:
    """Return the tasks that a metric of a row is the mean of."""
    own = list(row.metrics[name].values)
    answered = [task for task in row.cells if task != ALL]
    return own or answered or [ALL]


def _outcome(run: Run, row: Row, name: str, task: str) -> Outcome | None:
    answer = row.cells.get(task, row.cells.get(ALL))
    if answer is None:
        return None
    suite = section(run.result.config, "suite")
    data = suite.get("control") if name in OF_CONTROL else task
    judge = row.metrics[name].by_task.get(task)
    alpha = float(row.alphas.get(task, row.alpha or 0.0))
    kept = _read(run, answer, _names(alpha, data, judge))
    if kept is None:
        return None
    tensor_name, tensor = kept
    if tensor_name.startswith("surprise/"):
        return Documents(data, tensor)
    if tensor_name.startswith("predicted/"):
        labels, predicted = tensor.T
        definition = section(section(suite, "definitions"), data)
        metric = judge or definition.get("metric")
        if metric not in get_args(TaskMetric):
            raise UserError(
                f"{run.result.run_id}: {data} is judged by {metric!r}, which this program does not know"
            )
        return Judged(data, metric, labels, predicted)
    return Means(data, tensor)


def _names(alpha: float, data: str, judge: str | None) -> list[str]:
    """Return what the tensor of a task may be called, according to how it is judged."""
    names = [f"{kind}/{alpha}/{data}" for kind in ("correct", "predicted", "surprise")]
    if judge is not None:  # lm-eval's metrics, named with their filter
        names += [f"example/{data}/{judge}", f"example/{data}/{judge},none"]
    return names


def _read(run: Run, answer: str, names: Iterable[str]) -> tuple[str, np.ndarray] | None:
    """Return the first of some tensors that an answer holds, with its name.

    Raises:
        UserError: if the answer is not in the store, or cannot be read.
    """
    path = _folder(run, answer) / TENSORS
    if not path.is_file():
        return None  # an answer without outcomes
    try:
        with safe_open(path, framework="numpy") as file:
            present = set(file.keys())
            for name in names:
                if name in present:
                    return name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    return None


def _folder(run: Run, answer: str) -> Path:
    """Return the folder of an answer, whatever kind of artefact the program of its time called it.

    Raises:
        UserError: if it is not in the store.
    """
    run_id = run.result.run_id
    if run.store is None or not FINGERPRINT.fullmatch(answer):
        raise UserError(
            f"{run_id}: its answers are not at hand; compare the run in its outputs folder"
        )
    for folder in run.store.glob(f"*/{answer}"):
        return folder
    raise UserError(f"{run.store}/*/{answer} is not there; run the command of {run_id} again")
