"""How far each vector moves the features on other tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from taskvec.needs import Given, Signed
from taskvec.protocols.base import Answer
from taskvec.protocols.questions.looking import OfVectors, Subject
from taskvec.protocols.rows import Metric, mean, metric
from taskvec.registry import register

if TYPE_CHECKING:
    from taskvec.vectors.composition import Composition


@register("question", "drift", paper="Porrello et al., ICLR 2026, arXiv 2602.17385")
class Drift(OfVectors):
    """mean_x ||J(x) tau_s||^2 over the test images of task t, for all (t, s): ``matrix[t][s]`` (spec TAK 3.1)."""

    kind: Literal["drift"] = "drift"

    def answer(
        self, given: Given, composition: Composition, vectors: Sequence[Signed]
    ) -> tuple[Answer, dict]:
        """Return the matrix; one pass over a task's images serves all vectors."""
        import torch

        subject = Subject(given, vectors, linearised=True)
        matrix = []
        with torch.no_grad():
            for task in subject.tasks:
                total, count = 0.0, 0
                for need, rows in subject.batches(task):
                    _, derivatives = subject.derivatives(need, rows)
                    total = total + derivatives.double().square().sum(dim=(1, 2))
                    count += derivatives.shape[1]
                matrix.append((total / count).tolist())
        return Answer(
            values={"rows": subject.tasks, "columns": subject.tasks, "matrix": matrix}
        ), {}

    def summary(self, answer: Answer) -> dict[str, Metric]:
        """Return each vector's mean drift on the other tasks, in squared units of the features."""
        return {
            self.kind: metric(on_others(answer.values), unit="squared features", better="lower")
        }


def on_others(values: Mapping[str, Any]) -> dict[str, float]:
    """Return each column's mean magnitude over the rows of the other tasks, 0 if there are none."""
    found = {}
    for column, task in enumerate(values["columns"]):
        others = [abs(line[column]) for row, line in enumerate(values["matrix"]) if row != column]
        found[task] = mean(others) if others else 0.0
    return found
