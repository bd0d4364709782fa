"""What analysis questions share: vectors by task, looked at on the test images of every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from taskvec.needs import Examples, Given, Needs, Scope, Signed
from taskvec.protocols.base import REPORT, Question

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.training.evaluator import Along
    from taskvec.vectors import TaskVector

ROWS = 200  # of a batch, and of all derivatives computed at once
Point = Mapping[str, float]
Look = Callable[[Sequence[Point]], tuple["Tensor", "Tensor"]]


class OfVectors(Question):
    """A question about the vectors of several tasks; it looks at them on the test examples of those tasks."""

    of_vectors: ClassVar[bool] = True

    def needs(self, scope: Scope) -> Needs:
        """Return the test examples of each vector's task."""
        return [report_on(task) for task in scope.tasks]


def report_on(task: str) -> Examples:
    """Return the labelled test examples of a task."""
    return Examples(task, REPORT, "report", labels=True)


class Subject:
    """Vectors by task and the examples they are looked at on."""

    def __init__(self, given: Given, vectors: Sequence[Signed], *, linearised: bool):
        self.given, self.evaluator, self.linearised = given, given.evaluator, linearised
        self.vectors: dict[str, TaskVector] = {vector.tasks[0]: vector.delta for vector in vectors}

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the vectors' order."""
        return list(self.vectors)

    def size(self, task: str) -> int:
        """Return the number of a task's examples."""
        return len(self.given[report_on(task)])

    def batches(self, task: str) -> Iterator[tuple[Examples, Tensor | slice]]:
        """Yield the need of a task with the rows of each batch."""
        need = report_on(task)
        for rows in self.given[need].batches(ROWS):
            yield need, rows

    def derivatives(self, need: Examples, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return the features at theta_0 [N, d] and their derivatives along all vectors [T, N, d]."""
        block = max(1, ROWS // len(self.vectors))  # each direction takes a batch's memory
        return self._along(need, rows, block=block)

    @cached_property
    def _along(self) -> Along:
        return self.evaluator.along(list(self.vectors.values()))

    def look(self, need: Examples, rows: Tensor | slice) -> Look:
        """Return the features [K, N, d] and predicted labels [K, N] at K points of coefficients by task.

        Linearised, all points come from one evaluation of the derivatives; otherwise each costs a forward pass.
        """
        return self._linearised(need, rows) if self.linearised else self._moved(need, rows)

    def labels(self, features: Tensor, need: Examples) -> Tensor:
        """Return the labels [K, N] that the base's weights give features [K, N, d]."""
        logits = self.evaluator.classify(features.flatten(0, 1), need)
        return logits.argmax(1).view(features.shape[:2])

    def _linearised(self, need: Examples, rows: Tensor | slice) -> Look:
        import torch

        base, derivatives = self.derivatives(need, rows)

        def look(points: Sequence[Point]) -> tuple[Tensor, Tensor]:
            coefficients = []
            for point in points:
                coefficients.append([point.get(task, 0.0) for task in self.vectors])
            weights = base.new_tensor(coefficients)
            features = base + torch.tensordot(weights, derivatives, dims=1)
            return features, self.labels(features, need)

        return look

    def _moved(self, need: Examples, rows: Tensor | slice) -> Look:
        import torch

        from taskvec.vectors import TaskVector

        def look(points: Sequence[Point]) -> tuple[Tensor, Tensor]:
            features, labels = [], []
            for point in points:
                parts = [self.vectors[task] * scale for task, scale in point.items() if scale]
                weights = sum(parts, TaskVector({})).apply_to(self.given.model.parameters)
                found = self.evaluator.features(weights, need, rows)
                logits = self.evaluator.classify(found, need, weights)
                features.append(found)
                labels.append(logits.argmax(1))
            return torch.stack(features), torch.stack(labels)

        return look
